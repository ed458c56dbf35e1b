// The published filter's way of working, written anew for comparison: scalar code, short keys in a hash table, one channel after the other,
// threads over images only. Its numbers are ours. Built by lattice.py with -O3.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int d = 5, D = d + 1;

class HashTable {
  public:
    explicit HashTable(size_t expected) : table_(2 * expected + 1, -1) { keys_.reserve(expected * d); }
    int find(const short* key, bool create) {
        size_t h = hash(key) % table_.size();
        for (;;) {
            const int e = table_[h];
            if (e < 0) {
                if (!create) return -1;
                if (2 * size_t(count_ + 1) > table_.size()) { grow(); return find(key, true); }
                keys_.insert(keys_.end(), key, key + d);
                return table_[h] = count_++;
            }
            bool same = true;
            for (int i = 0; i < d && same; ++i) same = keys_[size_t(e) * d + i] == key[i];
            if (same) return e;
            if (++h == table_.size()) h = 0;
        }
    }
    int count() const { return count_; }
    const short* key(int i) const { return &keys_[size_t(i) * d]; }

  private:
    std::vector<int> table_;
    std::vector<short> keys_;
    int count_ = 0;
    static size_t hash(const short* key) {
        size_t r = 0;
        for (int i = 0; i < d; ++i) r = (r + key[i]) * 1664525;
        return r;
    }
    void grow() {
        std::vector<int> old(2 * table_.size(), -1);
        old.swap(table_);
        for (int e : old)
            if (e >= 0) {
                size_t h = hash(key(e)) % table_.size();
                while (table_[h] >= 0) if (++h == table_.size()) h = 0;
                table_[h] = e;
            }
    }
};

class PeerLattice {
  public:
    PeerLattice(const float* features, int points) : N(points), offset(size_t(points) * D), weight(size_t(points) * D) {
        HashTable table(size_t(points) * D / 8);
        const float s = float(std::sqrt(2. / 3.) * D), inverse = 1.f / D;
        float scale[d];
        for (int i = 0; i < d; ++i) scale[i] = float(1. / std::sqrt(double(i + 1) * (i + 2)) * s);
        short canonical[D][D], key[D];
        for (int p = 0; p < D; ++p)
            for (int r = 0; r < D; ++r) canonical[p][r] = short(r <= d - p ? p : p - D);
        const int padded = (points + 3) / 4 * 4;
        const float nothing[d] = {};
        for (int n = 0; n < padded; ++n) {
            const float* f = n < points ? features + size_t(n) * d : nothing;
            float e[D], z[D], b[D + 1] = {};
            int rank[D] = {}, sum = 0;
            float m = 0;
            for (int j = d; j > 0; --j) {
                const float c = f[j - 1] * scale[j - 1];
                e[j] = m - j * c;
                m += c;
            }
            e[0] = m;
            for (int i = 0; i < D; ++i) {
                const float v = std::nearbyint(e[i] * inverse);
                z[i] = v * D;
                sum += int(v);
            }
            for (int i = 0; i < d; ++i)
                for (int j = i + 1; j < D; ++j)
                    if (e[i] - z[i] < e[j] - z[j]) ++rank[i];
                    else ++rank[j];
            for (int i = 0; i < D; ++i) {
                rank[i] += sum;
                if (rank[i] < 0) rank[i] += D, z[i] += D;
                else if (rank[i] > d) rank[i] -= D, z[i] -= D;
            }
            for (int i = 0; i < D; ++i) {
                const float u = (e[i] - z[i]) * inverse;
                b[d - rank[i]] += u;
                b[d + 1 - rank[i]] -= u;
            }
            b[0] += 1.f + b[D];
            for (int p = 0; p < D; ++p) {
                for (int i = 0; i < d; ++i) key[i] = short(z[i] + canonical[p][rank[i]]);
                const int id = table.find(key, true);
                if (n < points) offset[size_t(n) * D + p] = id, weight[size_t(n) * D + p] = b[p];
            }
        }
        M = table.count();
        before.resize(size_t(M) * D), after.resize(size_t(M) * D);
        for (int j = 0; j < D; ++j)
            for (int v = 0; v < M; ++v) {
                const short* k = table.key(v);
                short one[D], two[D];
                for (int i = 0; i < d; ++i) one[i] = short(k[i] - 1), two[i] = short(k[i] + 1);
                if (j < d) one[j] = short(k[j] + d), two[j] = short(k[j] - d);
                before[size_t(j) * M + v] = table.find(one, false);
                after[size_t(j) * M + v] = table.find(two, false);
            }
    }
    // Any number of interleaved channels, as a general filter has it; the published caller passes one.
    void filter(const float* in, float* out, int size) const {
        std::vector<float> values(size_t(M + 1) * size), blurred(size_t(M + 1) * size);  // entry 0 stands for a missing vertex
        for (int n = 0; n < N; ++n)
            for (int p = 0; p < D; ++p) {
                const int o = offset[size_t(n) * D + p] + 1;
                const float w = weight[size_t(n) * D + p];
                for (int k = 0; k < size; ++k) values[o * size + k] += w * in[n * size + k];
            }
        for (int j = 0; j < D; ++j) {
            for (int v = 0; v < M; ++v) {
                const int one = before[size_t(j) * M + v] + 1, two = after[size_t(j) * M + v] + 1;
                for (int k = 0; k < size; ++k) blurred[(v + 1) * size + k] = values[(v + 1) * size + k] + .5f * (values[one * size + k] + values[two * size + k]);
            }
            values.swap(blurred);
        }
        const float alpha = 1.f / (1 + std::pow(2.f, -d));
        for (int n = 0; n < N; ++n) {
            for (int k = 0; k < size; ++k) out[n * size + k] = 0;
            for (int p = 0; p < D; ++p) {
                const int o = offset[size_t(n) * D + p] + 1;
                const float w = weight[size_t(n) * D + p];
                for (int k = 0; k < size; ++k) out[n * size + k] += w * values[o * size + k] * alpha;
            }
        }
    }
    int N, M = 0;

  private:
    std::vector<int> offset, before, after;
    std::vector<float> weight;
};

}  // namespace

extern "C" int peer_filter(const float* images, const float* values, float* out, int batch, int channels, int height, int width, float sigma_rgb, float sigma_xy, int one, int threads) {
    const bool tight = one == 0;  // the number of channels known to the compiler
    const size_t N = size_t(height) * width;
    std::atomic<int> next{0}, vertices{0};
    auto work = [&] {
        for (int b; (b = next++) < batch;) {
            std::vector<float> features(N * d);
            const float* image = images + size_t(b) * 3 * N;
            for (int j = 0; j < height; ++j)
                for (int i = 0; i < width; ++i) {
                    const size_t n = size_t(j) * width + i;
                    float* f = &features[n * d];
                    f[0] = i / sigma_xy, f[1] = j / sigma_xy;
                    for (int c = 0; c < 3; ++c) f[2 + c] = image[c * N + n] / sigma_rgb;
                }
            const PeerLattice lattice(features.data(), int(N));
            vertices += lattice.M;
            for (int k = 0; k < channels; ++k) {
                const float* in = values + (size_t(b) * channels + k) * N;
                float* to = out + (size_t(b) * channels + k) * N;
                if (tight) lattice.filter(in, to, 1);
                else lattice.filter(in, to, one);
            }
        }
    };
    std::vector<std::thread> others;
    for (int t = 1; t < std::min(threads, batch); ++t) others.emplace_back(work);
    work();
    for (auto& o : others) o.join();
    return vertices;
}
