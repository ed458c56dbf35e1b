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

// Vertex ids by key. A key is one integer, `code`; ids are handed out in order of first appearance. Open addressing with 8-byte slots:
// the id and 32 bits of the hash, so that a foreign slot is nearly always told apart without a look at its code.
class Table {
  public:
    explicit Table(size_t expected = 0) { grow(expected); }
    Buffer<uint64_t> codes;
    size_t count = 0;

    void reserve(size_t more) { if (count + more > limit_) grow(count + more); }
    static uint64_t hash(uint64_t code) { return (code ^ code >> 29) * 0x9E3779B97F4A7C15ull; }
    void prefetch(uint64_t code) const {
#if defined(__GNUC__)
        __builtin_prefetch(&slots_[hash(code) >> shift_]);
#endif
    }
    int32_t find(uint64_t code) const {  // -1: not there
        uint64_t h = hash(code), tag = h << 32;
        for (size_t i = h >> shift_;; i = (i + 1) & mask_) {
            uint64_t s = slots_[i];
            if (!s) return -1;
            if ((s & ~0xFFFFFFFFull) == tag && codes[uint32_t(s) - 1] == code) return int32_t(uint32_t(s) - 1);
        }
    }
    int32_t add(uint64_t code) {  // after `reserve`
        uint64_t h = hash(code), tag = h << 32;
        for (size_t i = h >> shift_;; i = (i + 1) & mask_) {
            uint64_t s = slots_[i];
            if (!s) {
                slots_[i] = tag | uint32_t(count + 1);
                codes[count] = code;
                return int32_t(count++);
            }
            if ((s & ~0xFFFFFFFFull) == tag && codes[uint32_t(s) - 1] == code) return int32_t(uint32_t(s) - 1);
        }
    }

  private:
    Buffer<uint64_t> slots_;
    size_t limit_ = 0, mask_ = 0;
    int shift_ = 0;

    void grow(size_t needed) {
        int bits = 13;
        while ((size_t(1) << bits) < 3 * needed) ++bits;
        const size_t n = size_t(1) << bits;
        Buffer<uint64_t> slots(n), longer(n / 2);
        std::memset(slots.data(), 0, n * sizeof(uint64_t));
        if (count) std::memcpy(longer.data(), codes.data(), count * sizeof(uint64_t));
        slots_.swap(slots), codes.swap(longer);
        limit_ = n / 2, mask_ = n - 1, shift_ = 64 - bits;
        for (size_t id = 0; id < count; ++id) {
            uint64_t h = hash(codes[id]);
            size_t i = h >> shift_;
            while (slots_[i]) i = (i + 1) & mask_;
            slots_[i] = h << 32 | uint32_t(id + 1);
        }
    }
};

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
        Team::run(threads, [&](Team& team, int t) { if (t == 0) prepare(dim, points, ranges, pad_to, team.size()); team.barrier(); build(team, t, source); });
        finish();
    }

    // values (C planes of N) -> result, both planar. `stage` holds the rows of the vertices between calls.
    size_t blocks() const { return (N + 7) / 8; }
    size_t vertices_floats(int row) const { return M * row; }

    void key(size_t vertex, int32_t* out) const {
        uint64_t c = codes[vertex];
        for (int i = 0; i < d; ++i) {
            out[i] = int32_t(int64_t(c / stride_[i]) + low_[i]);
            c %= stride_[i];
        }
    }

    // One axis of the blur for the pieces that this thread gets.
    void blur_axis(const Kernels& k, Counter& counter, int axis, float* values, int row) const {
        const size_t n = chains[axis].size();
        counter.each(n, std::max<size_t>(256, 32768 / row), [&](size_t i0, size_t i1) { k.blur(chains[axis].data(), i0, i1, n, values, row); });
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
        ids.reset(blocks() * D * 8);
        weights.reset(blocks() * D * 8);
        parts_.clear();
        const size_t chunks = (N + chunk - 1) / chunk;
        parts = int(std::max<size_t>(1, std::min<size_t>(parts, chunks / 8)));
        for (int i = 0; i < parts; ++i) parts_.emplace_back(), parts_.back().begin = chunks * i / parts * chunk, parts_.back().end = std::min(N, chunks * (i + 1) / parts * chunk);
        for (auto* c : {&next_part_, &next_search_, &next_axis_, &next_renumber_}) c->reset();
    }

    void build(Team& team, int t, const Source& source) {
        next_part_.each(parts_.size(), 1, [&](size_t i, size_t) { fill(parts_[i], source); });
        team.barrier();
        if (t == 0) merge();
        team.barrier();
        const int D = d + 1;
        if (parts_.size() > 1)
            next_renumber_.each(blocks() * D * 8 - parts_[1].begin * D, 1 << 15, [&](size_t a, size_t b) {
                size_t i = a + parts_[1].begin * D, end = b + parts_[1].begin * D;
                for (size_t s = 1; s < parts_.size(); ++s) {
                    const size_t stop = s + 1 < parts_.size() ? std::min(end, parts_[s].end * D) : end;
                    for (; i < stop; ++i) ids[i] = parts_[s].renamed[ids[i]];
                }
            });
        const Table& table = parts_[0].table;
        const size_t pieces = (M + piece - 1) / piece;
        next_search_.each(pieces * D, 1, [&](size_t i, size_t) { search(table, int(i / pieces), i % pieces * piece); });
        team.barrier();
        next_axis_.each(D, 1, [&](size_t axis, size_t) { link(int(axis)); });
        team.barrier();
    }

    void finish() {
        codes.swap(parts_[0].table.codes);
        parts_.clear();
        next_.clear();
    }

  private:
    static constexpr size_t piece = 2048;
    struct Part {
        size_t begin, end;
        Table table;
        Buffer<int32_t> renamed;
    };
    std::vector<Part> parts_;
    Buffer<int32_t> next_;  // [axis][vertex]
    Counter next_part_, next_search_, next_axis_, next_renumber_;
    float scale_[max_dim] = {}, inverse_ = 0;
    uint64_t stride_[max_dim] = {};
    int64_t low_[max_dim] = {};
    uint64_t base_ = 0, step_ = 0;
    bool pad_ = false;

    // A key becomes one integer by row-major strides over a box around all keys and their neighbours. The box follows from the ranges of
    // the features, since elevation is linear.
    void number_keys(const Range* ranges) {
        const int D = d + 1;
        double low[max_dim + 1] = {}, high[max_dim + 1] = {}, sum_low = 0, sum_high = 0;
        for (int j = d; j > 0; --j) {
            const double a = double(std::min(ranges[j - 1].low, 0.f)) * scale_[j - 1], b = double(std::max(ranges[j - 1].high, 0.f)) * scale_[j - 1];  // 0: the padding point
            low[j] = sum_low - j * b, high[j] = sum_high - j * a;
            sum_low += a, sum_high += b;
        }
        low[0] = sum_low, high[0] = sum_high;
        double cells = 1;
        for (int j = 0; j <= d; ++j)
            if (!(std::max(-low[j], high[j]) < 2097152.)) throw std::invalid_argument("features: a coordinate is too large for the lattice (divide by larger sigmas)");
        uint64_t stride = 1;
        step_ = 0, base_ = 0;
        for (int i = d - 1; i >= 0; --i) {
            low_[i] = int64_t(std::floor(low[i])) - 3 * D;
            const int64_t extent = int64_t(std::ceil(high[i])) + 3 * D - low_[i] + 1;
            stride_[i] = stride;
            step_ += stride;
            base_ += uint64_t(low_[i]) * stride;
            cells *= double(extent);
            if (cells > 4e18) throw std::invalid_argument("features: the points span too many cells of the lattice (divide by larger sigmas)");
            stride *= uint64_t(extent);
        }
    }

    struct Simplex { uint64_t code; uint32_t order; int32_t ids[max_dim + 1]; };

    void fill(Part& part, const Source& source) {
        switch (d) {
            case 1: return fill<1>(part, source);
            case 2: return fill<2>(part, source);
            case 3: return fill<3>(part, source);
            case 4: return fill<4>(part, source);
            case 5: return fill<5>(part, source);
            case 6: return fill<6>(part, source);
            case 7: return fill<7>(part, source);
            default: return fill<8>(part, source);
        }
    }

    // Neighbouring pixels often lie in the same simplex, so the last ones are remembered: one look-up instead of d+1.
    template <int d> void fill(Part& part, const Source& source) {
        constexpr int D = d + 1;
        constexpr int cache_bits = 11;
        struct Known { uint64_t code; uint32_t order; int32_t ids[D]; };
        Buffer<Known> known(size_t(1) << cache_bits);
        for (size_t i = 0; i < known.size(); ++i) known[i].code = ~0ull;  // no code
        float f[d * chunk];
        int32_t z[d * chunk];
        uint32_t order[chunk];
        uint64_t base[chunk], codes[chunk][D];
        uint32_t slot[chunk];
        int missing[chunk];
        const Kernels& k = kernels();
        Table& table = part.table;
        uint64_t inc[D];
        for (int i = 0; i < D; ++i) inc[i] = step_ - (i < d ? D * stride_[i] : 0);
        for (size_t n0 = part.begin; n0 < part.end; n0 += chunk) {
            const size_t n1 = std::min(part.end, n0 + chunk), count = n1 - n0, blocks = (count + 7) / 8;
            if (count % 8) std::memset(f, 0, sizeof f);
            source(n0, n1, f, chunk);
            float* w = weights.data() + n0 * D;
            int32_t* id = ids.data() + n0 * D;
            k.embed[d](f, chunk, blocks, scale_, inverse_, z, order, w);
            const size_t lanes = count + (pad_ && n1 == N && count % 8 ? 1 : 0);  // the padding point follows the last one
            int misses = 0;
            for (size_t n = 0; n < lanes; ++n) {
                uint64_t c = 0 - base_;
                const int32_t* zn = z + n / 8 * d * 8 + n % 8;
                for (int i = 0; i < d; ++i) c += uint64_t(int64_t(zn[i * 8])) * stride_[i];
                base[n] = c;
                slot[n] = uint32_t((c + order[n] * 0x9E3779B97F4A7C15ull) * 0xD6E8FEB86659FD93ull >> (64 - cache_bits));
                const Known& q = known[slot[n]];
                if (q.code == c && q.order == order[n]) {
                    for (int p = 0; p < D; ++p) id[n / 8 * D * 8 + p * 8 + n % 8] = q.ids[p];
                } else {
                    codes[misses][0] = c;
                    for (int p = 1; p < D; ++p) codes[misses][p] = codes[misses][p - 1] + inc[order[n] >> 4 * (d - p) & 15];
                    for (int p = 0; p < D; ++p) table.prefetch(codes[misses][p]);
                    missing[misses++] = int(n);
                }
            }
            table.reserve(size_t(misses) * D);
            for (int m = 0; m < misses; ++m) {
                const int n = missing[m];
                Known& q = known[slot[n]];
                q.code = base[n], q.order = order[n];
                for (int p = 0; p < D; ++p) id[n / 8 * D * 8 + p * 8 + n % 8] = q.ids[p] = table.add(codes[m][p]);
            }
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
                if (v + ahead < part.count) all.prefetch(part.codes[v + ahead]);
                parts_[s].renamed[v] = all.add(part.codes[v]);
            }
        }
        M = all.count;
        next_.reset((d + 1) * M);
    }

    uint64_t neighbour_step(int axis) const { return (axis < d ? (d + 1) * stride_[axis] : 0) - step_; }

    // Neighbours in one direction; the other direction is the inverse.
    void search(const Table& table, int axis, size_t begin) {
        const uint64_t step = neighbour_step(axis);
        const size_t end = std::min(M, begin + piece);
        int32_t* next = next_.data() + axis * M;
        constexpr size_t ahead = 16;
        for (size_t v = begin; v < std::min(end, begin + ahead); ++v) table.prefetch(table.codes[v] + step);
        for (size_t v = begin; v < end; ++v) {
            if (v + ahead < end) table.prefetch(table.codes[v + ahead] + step);
            next[v] = table.find(table.codes[v] + step);
        }
    }

    void link(int axis) {
        const int32_t* next = next_.data() + axis * M;
        Buffer<uint8_t> follows(M);
        std::memset(follows.data(), 0, M);
        for (size_t v = 0; v < M; ++v) if (next[v] >= 0) follows[next[v]] = 1;
        Buffer<int32_t>& chain = chains[axis];
        chain.reset(M);
        size_t n = 0;
        for (size_t v = 0; v < M; ++v) {
            if (follows[v] || next[v] < 0) continue;
            for (int32_t u = int32_t(v);; u = next[u]) {
                chain[n++] = next[u] < 0 ? ~u : u;
                if (next[u] < 0) break;
            }
        }
        chain.reset(n);
    }
};

}  // namespace lattice
