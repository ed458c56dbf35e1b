// The permutohedral lattice of a set of points: which vertices each point touches, with which weights, and which vertices are neighbours.
// Built once, it filters any number of channels. The numbers are those of the published filter, bit for bit.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "threads.h"

namespace lattice {

struct Range { float low, high; };

// Vertex ids by key. A key is one integer, `code`; ids are handed out in order of first appearance. A bucket is one cache line: 31 bits for each of
// up to 8 vertices, compared at once, and their ids. The hash, an odd multiple, is a bijection: bucket, those bits and the distance from the bucket
// where the code belongs give it back if it has no more than 29 bits besides those of the bucket. Then a match needs no look at the code.
// Tables are asked by hash, which is linear: a step to another vertex of the simplex or a neighbour adds a constant.
class Table {
  public:
    explicit Table(int width = 32) : width_(std::max(32, width)), factor_(odd << (64 - width_)) { grow(0); }
    Buffer<uint64_t> codes;
    size_t count = 0;

    uint64_t hash(uint64_t code) const { return code * factor_; }
    void reserve(size_t more) { if (count + more > limit_) grow(count + more); }
    void prefetch(uint64_t h) const {
#if defined(__GNUC__)
        __builtin_prefetch(&buckets_[h >> shift_]);
#endif
    }
    int32_t find(uint64_t h) const {  // -1: not there
        size_t b = h >> shift_;
        for (uint32_t tag = tag_of(h);; ++tag, b = (b + 1) & mask_) {
            const Bucket& bucket = buckets_[b];
            for (unsigned hits = equal(bucket, tag); hits; hits &= hits - 1) {
                const int32_t id = bucket.id[first(hits)];
                if (exact_ || hash(codes[id]) == h) return id;
            }
            if (!bucket.tag[7] || (tag & 3) == 0) return -1;  // filled from the front
        }
    }
    int32_t add(uint64_t h) {  // after `reserve`
        size_t b = h >> shift_;
        for (uint32_t tag = tag_of(h);; ++tag, b = (b + 1) & mask_) {
            Bucket& bucket = buckets_[b];
            for (unsigned hits = equal(bucket, tag); hits; hits &= hits - 1) {
                const int32_t id = bucket.id[first(hits)];
                if (exact_ || hash(codes[id]) == h) return id;
            }
            if (!bucket.tag[7]) {
                codes[count] = (h >> (64 - width_)) * inverse & (~0ull >> (64 - width_));
                put(bucket, tag, int32_t(count));
                return int32_t(count++);
            }
            if ((tag & 3) == 0) {  // four full buckets in a row
                grow(2 * limit_);
                return add(h);
            }
        }
    }

  private:
    static constexpr uint64_t odd = 0x9E3779B97F4A7C15ull, inverse = 0xF1DE83E19937733Dull;
    static_assert(odd * inverse == 1, "an odd number has an inverse");
    struct Bucket { uint32_t tag[8]; int32_t id[8]; };  // tag 0: free; otherwise 1 + 4 * rest of the hash + distance
    Buffer<Bucket> buckets_;
    size_t limit_ = 0, mask_ = 0;
    int width_, shift_ = 0, rest_ = 0;
    uint32_t rest_mask_ = 0;
    uint64_t factor_;
    bool exact_ = true;

    uint32_t tag_of(uint64_t h) const { return (uint32_t(h >> rest_) & rest_mask_) * 4 + 1; }
    static void put(Bucket& bucket, uint32_t tag, int32_t id) {
        const int i = first(equal(bucket, 0));
        bucket.tag[i] = tag, bucket.id[i] = id;
    }
#if defined(__SSE2__)
    static unsigned equal(const Bucket& bucket, uint32_t tag) {
        const __m128i t = _mm_set1_epi32(int32_t(tag)), *at = reinterpret_cast<const __m128i*>(bucket.tag);
        return unsigned(_mm_movemask_ps(_mm_castsi128_ps(_mm_cmpeq_epi32(_mm_load_si128(at), t))) |
                        _mm_movemask_ps(_mm_castsi128_ps(_mm_cmpeq_epi32(_mm_load_si128(at + 1), t))) << 4);
    }
    static int first(unsigned bits) { return __builtin_ctz(bits); }
#else
    static unsigned equal(const Bucket& bucket, uint32_t tag) {
        unsigned bits = 0;
        for (int i = 0; i < 8; ++i) bits |= unsigned(bucket.tag[i] == tag) << i;
        return bits;
    }
    static int first(unsigned bits) {
        int i = 0;
        while (!(bits >> i & 1)) ++i;
        return i;
    }
#endif
    void grow(size_t needed) {
        int bits = 10;
        while ((size_t(1) << bits) * 4 < needed * 3 / 2) ++bits;
        for (;; ++bits) {
            const size_t n = size_t(1) << bits;
            Buffer<Bucket> buckets(n);
            std::memset(static_cast<void*>(buckets.data()), 0, n * sizeof(Bucket));
            buckets_.swap(buckets);
            const int rest = std::min(29, width_ - bits);
            shift_ = 64 - bits, limit_ = n * 4, mask_ = n - 1;  // half full at most
            rest_ = shift_ - rest, rest_mask_ = (uint32_t(1) << rest) - 1, exact_ = width_ - bits <= 29;
            size_t id = 0;
            for (; id < count; ++id) {
                const uint64_t h = hash(codes[id]);
                size_t b = h >> shift_;
                uint32_t tag = tag_of(h);
                while (buckets_[b].tag[7] && (tag & 3)) b = (b + 1) & mask_, ++tag;
                if (buckets_[b].tag[7]) break;
                put(buckets_[b], tag, int32_t(id));
            }
            if (id == count) break;
        }
        Buffer<uint64_t> longer(limit_);
        if (count) std::memcpy(longer.data(), codes.data(), count * sizeof(uint64_t));
        codes.swap(longer);
    }
};

// Calls f with d as a constant.
template <class F> void with_dim(int d, F&& f) {
    switch (d) {
        case 1: return f(std::integral_constant<int, 1>());
        case 2: return f(std::integral_constant<int, 2>());
        case 3: return f(std::integral_constant<int, 3>());
        case 4: return f(std::integral_constant<int, 4>());
        case 5: return f(std::integral_constant<int, 5>());
        case 6: return f(std::integral_constant<int, 6>());
        case 7: return f(std::integral_constant<int, 7>());
        case 8: return f(std::integral_constant<int, 8>());
    }
}

class Lattice {
  public:
    // Writes the features of points n0..n1 to f[j*stride + n - n0].
    using Source = std::function<void(size_t n0, size_t n1, float* f, size_t stride)>;
    static constexpr size_t chunk = 64;  // points whose vertices are looked up together: enough to hide the waiting for memory

    int d = 0;
    size_t N = 0, M = 0;
    Buffer<int32_t> ids;      // [block][D][8]
    Buffer<float> weights;    // [block][D][8], zero for points that do not exist
    Buffer<int32_t> chains[max_dim + 1];  // per axis: runs of neighbours; the last of a run is stored as its complement
    Buffer<uint64_t> codes;   // the key of each vertex

    // pad_to > 1: if N is no multiple of it, a point with feature 0 is added, whose vertices conduct the blur (what the x86 build of the
    // published filter does with pad_to = 4).
    void build(int dim, size_t points, const Range* ranges, const Source& source, int pad_to, int threads) {
        Phase ready;
        Team::run(threads, [&](Team& team) {
            ready.once(team, [&] { prepare(dim, points, ranges, pad_to, team.size()); });
            build(team, source);
        });
    }

    size_t blocks() const { return (N + 7) / 8; }
    bool far(int row) const { return M * row * sizeof(float) > size_t(3) << 20; }  // the rows of the vertices do not fit the nearer caches

    void key(size_t vertex, int32_t* out) const {
        const uint64_t D = d + 1, remainder = codes[vertex] % D;
        uint64_t c = codes[vertex] / D;
        for (int i = 0; i < d; ++i) {
            out[i] = int32_t((int64_t(c / stride_[i]) + low_[i]) * int64_t(D) + int64_t(remainder));
            c %= stride_[i];
        }
    }

    // One axis of the blur for the pieces that this thread gets.
    void blur_axis(const Kernels& k, Phase& phase, int axis, float* values, int row) const {
        const size_t n = chains[axis].size();
        phase.take(n, std::max<size_t>(256, 32768 / row), [&](size_t i0, size_t i1) { k.blur(chains[axis].data(), i0, i1, n, values, row); });
    }

    void prepare(int dim, size_t points, const Range* ranges, int pad_to, int parts) {
        d = dim, N = points;
        const int D = d + 1;
        if (d < 1 || d > max_dim) throw std::invalid_argument("features: dimension must be 1 to 8");
        if (N * D > size_t(std::numeric_limits<int32_t>::max()) - 16 * D) throw std::invalid_argument("features: too many points");
        pad_ = pad_to > 1 && N % pad_to;
        const float s = float(std::sqrt(2. / 3.) * D);
        for (int i = 0; i < d; ++i) scale_[i] = float(1. / std::sqrt(double(i + 1) * (i + 2)) * s);
        inverse_ = float(1. / D);
        number_keys(ranges);
        ids.reset((blocks() + 1) * D * 8);
        std::fill(ids.data() + blocks() * D * 8, ids.data() + ids.size(), 0);
        weights.reset(blocks() * D * 8);
        parts_.clear();
        const size_t chunks = (N + chunk - 1) / chunk;
        parts = int(std::max<size_t>(1, std::min<size_t>(parts, chunks / 8)));
        for (int i = 0; i < parts; ++i) parts_.emplace_back(width_), parts_.back().begin = chunks * i / parts * chunk, parts_.back().end = std::min(N, chunks * (i + 1) / parts * chunk);
        for (auto* p : {&filling_, &merging_, &searching_, &renumbering_, &linking_, &ending_}) p->reset();
    }

    // By all threads of the team, after `prepare` by one.
    void build(Team& team, const Source& source) {
        filling_.all(team, parts_.size(), 1, [&](size_t i, size_t) { fill(parts_[i], source); });
        merging_.once(team, [&] { merge(); });
        const size_t D = d + 1, begin = parts_.size() > 1 ? parts_[1].begin * D : blocks() * D * 8, pieces = (M + piece - 1) / piece;
        renumbering_.take(blocks() * D * 8 - begin, 1 << 15, [&](size_t a, size_t b) {
            size_t i = a + begin;
            for (size_t s = 1; s < parts_.size(); ++s) {
                const size_t stop = s + 1 < parts_.size() ? std::min(b + begin, parts_[s].end * D) : b + begin;
                for (; i < stop; ++i) ids[i] = parts_[s].renamed[ids[i]];
            }
        });
        searching_.all(team, pieces * D, 1, [&](size_t i, size_t) { search(parts_[0].table, int(i / pieces), i % pieces * piece); });
        linking_.all(team, D, 1, [&](size_t axis, size_t) { link(int(axis)); });
        renumbering_.wait(team, blocks() * D * 8 - begin);
        ending_.once(team, [&] { codes.swap(parts_[0].table.codes); });  // parts_ stays: a late thread may still look at it
    }
    void finish() { parts_.clear(), next_.clear(); }  // once the team is gone

  private:
    static constexpr size_t piece = 1024;
    struct Part {
        explicit Part(int width) : table(width) {}
        size_t begin = 0, end = 0;
        Table table;
        Buffer<int32_t> renamed;
    };
    std::vector<Part> parts_;
    Buffer<int32_t> next_;  // [axis][vertex]
    Phase filling_, merging_, renumbering_, searching_, linking_, ending_;
    float scale_[max_dim] = {}, inverse_ = 0;
    uint64_t stride_[max_dim] = {};
    int64_t low_[max_dim] = {};
    uint64_t base_ = 0, step_ = 0;
    int width_ = 1;
    bool pad_ = false;

    // All coordinates of a key leave the same remainder on division by D. So a key is D quotients, numbered by row-major strides over a box
    // around all keys and their neighbours, and one remainder. The box follows from the ranges of the features, since elevation is linear.
    void number_keys(const Range* ranges) {
        const int D = d + 1;
        double low[max_dim + 1] = {}, high[max_dim + 1] = {}, sum_low = 0, sum_high = 0;
        for (int j = d; j > 0; --j) {
            const double a = double(std::min(ranges[j - 1].low, 0.f)) * scale_[j - 1], b = double(std::max(ranges[j - 1].high, 0.f)) * scale_[j - 1];  // 0: the padding point
            low[j] = sum_low - j * b, high[j] = sum_high - j * a;
            sum_low += a, sum_high += b;
        }
        low[0] = sum_low, high[0] = sum_high;
        for (int j = 0; j <= d; ++j)
            if (!(std::max(-low[j], high[j]) < 2097152.)) throw std::invalid_argument("features: a coordinate is too large for the lattice (divide by larger sigmas)");
        double cells = D;
        uint64_t stride = 1;
        step_ = 0, base_ = 0;
        for (int i = d - 1; i >= 0; --i) {
            low_[i] = int64_t(std::floor(low[i] / D)) - 3;
            const int64_t extent = int64_t(std::ceil(high[i] / D)) + 3 - low_[i] + 1;
            stride_[i] = stride;
            step_ += stride;
            base_ += uint64_t(low_[i]) * stride;
            cells *= double(extent);
            if (cells > double(uint64_t(1) << 62)) throw std::invalid_argument("features: the points span too many cells of the lattice (divide by larger sigmas)");
            stride *= uint64_t(extent);
        }
        width_ = 1;
        while (double(uint64_t(1) << width_) < cells) ++width_;
    }

    void fill(Part& part, const Source& source) {
        with_dim(d, [&](auto dim) { fill<dim()>(part, source); });
    }
    template <int d> void fill(Part& part, const Source& source) {
        constexpr int D = d + 1;
        float f[d * chunk];
        int32_t z[d * chunk];
        uint32_t order[chunk];
        uint64_t hashes[chunk * D];
        const Kernels& k = kernels();
        Table& table = part.table;
        uint64_t step[D], stride[d];
        for (int i = 0; i < D; ++i) step[i] = table.hash(1 - (i < d ? D * stride_[i] : 0));
        for (int i = 0; i < d; ++i) stride[i] = table.hash(D * stride_[i]);
        const uint64_t base = table.hash(0 - D * base_);
        for (size_t n0 = part.begin; n0 < part.end; n0 += chunk) {
            const size_t n1 = std::min(part.end, n0 + chunk), count = n1 - n0, blocks = (count + 7) / 8;
            if (count % 8) std::memset(f, 0, sizeof f);
            source(n0, n1, f, chunk);
            float* w = weights.data() + n0 * D;
            int32_t* id = ids.data() + n0 * D;
            k.embed[d](f, chunk, blocks, scale_, inverse_, z, order, w);
            const size_t lanes = count + (pad_ && n1 == N && count % 8 ? 1 : 0);  // the padding point follows the last one
            uint64_t* h = hashes;
            for (size_t n = 0; n < lanes; ++n, h += D) {
                h[0] = base;
                const int32_t* at = z + n / 8 * d * 8 + n % 8;
                for (int i = 0; i < d; ++i) h[0] += uint64_t(int64_t(at[i * 8])) * stride[i];
                for (int p = 1; p < D; ++p) h[p] = h[p - 1] + step[order[n] >> 4 * (d - p) & 15];
                for (int p = 0; p < D; ++p) table.prefetch(h[p]);
            }
            table.reserve(lanes * D);
            h = hashes;
            for (size_t n = 0; n < lanes; ++n, h += D)
                for (int p = 0; p < D; ++p) id[n / 8 * D * 8 + p * 8 + n % 8] = table.add(h[p]);
            for (size_t n = count; n < blocks * 8; ++n)
                for (int p = 0; p < D; ++p) id[n / 8 * D * 8 + p * 8 + n % 8] = 0, w[n / 8 * D * 8 + p * 8 + n % 8] = 0;
        }
    }

    // Parts in their order, so the ids are those of a single thread.
    void merge() {
        Table& all = parts_[0].table;
        for (size_t s = 1; s < parts_.size(); ++s) {
            Table& part = parts_[s].table;
            parts_[s].renamed.reset(std::max<size_t>(1, part.count));
            all.reserve(part.count);
            constexpr size_t ahead = 16;
            for (size_t v = 0; v < part.count; ++v) {
                if (v + ahead < part.count) all.prefetch(all.hash(part.codes[v + ahead]));
                parts_[s].renamed[v] = all.add(all.hash(part.codes[v]));
            }
        }
        M = all.count;
        next_.reset((d + 1) * M);
    }

    // Neighbours in one direction; the other direction is the inverse. Minus one everywhere and plus D on `axis`: the remainder falls by one,
    // or from 0 to d, which takes one from all quotients.
    void search(const Table& table, int axis, size_t begin) {
        with_dim(d, [&](auto dim) { search<dim()>(table, axis, begin); });
    }
    template <int d> void search(const Table& table, int axis, size_t begin) {
        constexpr uint64_t D = d + 1;
        const uint64_t along = axis < d ? D * stride_[axis] : 0, step[2] = {table.hash(along - 1), table.hash(along + d - D * step_)};
        const size_t end = std::min(M, begin + piece);
        int32_t* next = next_.data() + axis * M;
        constexpr size_t ahead = 16;
        uint64_t hashes[piece];
        for (size_t v = begin; v < end; ++v) hashes[v - begin] = table.hash(table.codes[v]) + step[table.codes[v] % D == 0];
        for (size_t v = begin; v < std::min(end, begin + ahead); ++v) table.prefetch(hashes[v - begin]);
        for (size_t v = begin; v < end; ++v) {
            if (v + ahead < end) table.prefetch(hashes[v + ahead - begin]);
            next[v] = table.find(hashes[v - begin]);
        }
    }

    void link(int axis) {
        const int32_t* next = next_.data() + axis * M;
        Buffer<uint8_t> follows(M);
        std::memset(follows.data(), 0, M);
        for (size_t v = 0; v < M; ++v) if (next[v] >= 0) follows[next[v]] = 1;
        Buffer<int32_t>& chain = chains[axis];
        chain.reset(M + chain_margin);
        size_t n = 0;
        for (size_t v = 0; v < M; ++v) {
            if (follows[v] || next[v] < 0) continue;
            for (int32_t u = int32_t(v);; u = next[u]) {
                chain[n++] = next[u] < 0 ? ~u : u;
                if (next[u] < 0) break;
            }
        }
        std::fill(chain.data() + n, chain.data() + n + chain_margin, 0);
        chain.reset(n);
    }
};

}  // namespace lattice
