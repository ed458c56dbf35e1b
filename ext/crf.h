// Fully connected CRF: lattices and normalisations are built once per image; mean field slices, takes the softmax and splats for the next
// iteration in one pass over the pixels.
#pragma once
#include <memory>

#include "filter.h"

namespace lattice {

enum Normalization { none = 0, before = 1, after = 2, symmetric = 3 };

// A lattice with its normalisation folded into the weights.
struct Kernel {
    Lattice lattice;
    Buffer<float> normalised;              // weights times the normalisation, where one is used
    const float *in = nullptr, *out = nullptr;  // weights of splat and slice
    float alpha = 1;

    float* weights_in(bool transpose) const { return const_cast<float*>(transpose ? out : in); }
    float* weights_out(bool transpose) const { return const_cast<float*>(transpose ? in : out); }

    // All threads of the team; `prepare` by one of them before.
    void prepare_norm(int normalization) {
        normalization_ = normalization;
        alpha = float(1. / (1. + std::pow(2., -lattice.d)));
        in = out = lattice.weights.data();
        if (normalization == none) return;
        normalised.reset(lattice.weights.size());
        ones_.reset(std::max<size_t>(1, lattice.M));
        if (normalization != after) in = normalised.data();
        if (normalization != before) out = normalised.data();
        for (auto& p : phases_) p.reset();
    }
    void norm(Team& team) {
        if (normalization_ == none) return;
        const Kernels& k = kernels();
        const int D = lattice.d + 1;
        phases_[0].all(team, lattice.M, 1 << 16, [&](size_t a, size_t b) { std::memset(ones_.data() + a, 0, (b - a) * sizeof(float)); });
        const int groups = std::min(team.size(), D);
        phases_[1].all(team, groups, 1, [&](size_t g, size_t) {
            auto [p0, p1] = classes(int(g), groups, D);
            k.splat_ones(lattice.ids.data(), lattice.weights.data(), D, p0, p1, 0, lattice.N, ones_.data());
        });
        for (int j = 0; j < D; ++j) {
            lattice.blur_axis(k, phases_[2 + j], j, ones_.data(), 1);
            phases_[2 + j].wait(team, lattice.chains[j].size());
        }
        phases_[11].all(team, lattice.N, 1024, [&](size_t n0, size_t n1) {
            float a[1024];
            k.slice_one(lattice.ids.data(), lattice.weights.data(), D, n0, n1, alpha, ones_.data(), a);
            for (size_t n = 0; n < n1 - n0; ++n) {
                const double x = double(a[n]) + 1e-20;
                a[n] = float(1. / (normalization_ == symmetric ? std::sqrt(x) : x));
            }
            k.scale_weights(lattice.weights.data(), a, D, n0, n1, normalised.data());
        });
    }
    void finish() {
        lattice.finish();
        for (size_t n = lattice.N; n < lattice.blocks() * 8 && normalised.size(); ++n)
            for (int p = 0; p <= lattice.d; ++p) normalised[n / 8 * (lattice.d + 1) * 8 + p * 8 + n % 8] = 0;
        ones_.clear();
        if (normalization_ == symmetric) lattice.weights.clear();
        lattice.codes.clear();
    }

  private:
    int normalization_ = none;
    Buffer<float> ones_;
    Phase phases_[12];
};

// Pixels in tiles: neighbours in the plane are neighbours in time, so their vertices are in the cache. Rows of a tile are long enough to read planes well.
inline Buffer<int32_t> tiles(size_t height, size_t width) {
    constexpr size_t tall = 16, wide = 64;
    Buffer<int32_t> order(height * width + 8);
    size_t n = 0;
    for (size_t y = 0; y < height; y += tall)
        for (size_t x = 0; x < width; x += wide)
            for (size_t j = y; j < std::min(height, y + tall); ++j)
                for (size_t i = x; i < std::min(width, x + wide); ++i) order[n++] = int32_t(j * width + i);
    return order;
}

struct Term {
    enum Kind { gaussian, bilateral, features } kind = gaussian;
    float sxy[2] = {1, 1}, srgb[3] = {1, 1, 1};
    const float* points = nullptr;  // features: (N,d), only while building
    int d = 2, normalization = symmetric;
    enum Form { potts, diagonal, full } form = potts;
    std::vector<float> compat;      // one number, K or K*K
    std::shared_ptr<Kernel> kernel;
};

// The last few Gaussian kernels, for the next image: they depend on size and sigma only. Like the pool it never waits for its lock.
class Remembered {
  public:
    struct Key {
        size_t height, width;
        float sx, sy;
        int normalization, pad;
        bool operator==(const Key& o) const { return height == o.height && width == o.width && sx == o.sx && sy == o.sy && normalization == o.normalization && pad == o.pad; }
    };
    static std::shared_ptr<Kernel> get(const Key& key) {
        if (Lock lock; lock.held)
            for (auto& e : entries) if (e.kernel && e.key == key) { e.used = ++clock; return e.kernel; }
        return nullptr;
    }
    static void put(const Key& key, std::shared_ptr<Kernel> kernel) {
        if (kernel->lattice.N > (size_t(1) << 20)) return;  // keep small: at most some 40 MB for images of a megapixel
        std::shared_ptr<Kernel> old;  // freed after the lock
        if (Lock lock; lock.held) {
            Entry& e = *std::min_element(entries, entries + count, [](const Entry& a, const Entry& b) { return a.used < b.used; });
            old.swap(e.kernel);
            e = {key, std::move(kernel), ++clock};
        }
    }
    static void forget() {
        std::shared_ptr<Kernel> old[count];
        if (Lock lock; lock.held) for (int i = 0; i < count; ++i) old[i].swap(entries[i].kernel), entries[i].used = 0;
    }

  private:
    static constexpr int count = 4;
    struct Entry { Key key; std::shared_ptr<Kernel> kernel; uint64_t used; };
    static inline Entry entries[count] = {};
    static inline uint64_t clock = 0;
    static inline std::atomic_flag busy = ATOMIC_FLAG_INIT;
    struct Lock {
        bool held = false;
        Lock() { for (int i = 0; i < 1000 && !held; ++i) held = !busy.test_and_set(std::memory_order_acquire); }
        ~Lock() { if (held) busy.clear(std::memory_order_release); }
    };
};

class Crf {
  public:
    size_t height = 0, width = 0, N = 0;
    std::vector<Term> terms;

    void build(const uint8_t* image, int pad_to, int threads) {
        const Pool::Snapshot before = Pool::now();
        N = height * width;
        order_ = tiles(height, width);
        for (Term& term : terms) {
            const Remembered::Key key{height, width, term.sxy[0], term.sxy[1], term.normalization, pad_to};
            if (term.kind == Term::gaussian && (term.kernel = Remembered::get(key))) continue;
            auto kernel = std::make_shared<Kernel>();
            std::vector<Range> ranges(term.d, Range{0, 0});
            Buffer<float> tables[5];
            Lattice::Source source;
            if (term.kind == Term::features) {
                for (size_t n = 0; n < N; ++n)
                    for (int j = 0; j < term.d; ++j) {
                        const float v = term.points[n * term.d + j];
                        if (!std::isfinite(v)) throw std::invalid_argument("features: not all values are finite");
                        ranges[j] = {std::min(ranges[j].low, v), std::max(ranges[j].high, v)};
                    }
                source = [&](size_t n0, size_t n1, float* f, size_t stride) {
                    for (size_t n = n0; n < n1; ++n) for (int j = 0; j < term.d; ++j) f[j * stride + n - n0] = term.points[size_t(order_[n]) * term.d + j];
                };
            } else {  // every coordinate takes few values: divide once for each
                const size_t count[5] = {width, height, 256, 256, 256};
                for (int j = 0; j < term.d; ++j) {
                    const float s = j < 2 ? term.sxy[j] : term.srgb[j - 2];
                    tables[j].reset(count[j]);
                    for (size_t i = 0; i < count[j]; ++i) tables[j][i] = float(i) / s;
                    ranges[j].high = tables[j][count[j] - 1];
                }
                source = [&](size_t n0, size_t n1, float* f, size_t stride) {
                    size_t y = order_[n0] / width, x = order_[n0] % width;
                    for (size_t n = n0; n < n1; ++n) {
                        if (n > n0) {
                            if (order_[n] == order_[n - 1] + 1 && x + 1 < width) ++x;
                            else y = order_[n] / width, x = order_[n] % width;
                        }
                        float* at = f + (n - n0);
                        at[0] = tables[0][x], at[stride] = tables[1][y];
                        if (term.kind == Term::bilateral) {
                            const uint8_t* rgb = image + 3 * size_t(order_[n]);
                            for (int c = 0; c < 3; ++c) at[(2 + c) * stride] = tables[2 + c][rgb[c]];
                        }
                    }
                };
            }
            Phase ready, built;
            Team::run(threads, [&](Team& team) {
                ready.once(team, [&] { kernel->lattice.prepare(term.d, N, ranges.data(), pad_to, team.size()); });
                kernel->lattice.build(team, source);
                built.once(team, [&] { kernel->prepare_norm(term.normalization); });
                kernel->norm(team);
            });
            kernel->finish();
            term.kernel = kernel;
            if (term.kind == Term::gaussian) Remembered::put(key, kernel);
        }
        Pool::release_new(before);
    }

    // unary: classes planes of N. Either q (planes) or labels is written. False if a unary is not finite.
    // With Potts terms only, classes with equal unaries have equal probabilities for ever, so they share one channel: absent classes, all at
    // the floor that the unaries are clipped to, cost nothing.
    bool infer(const float* unary, int classes, int iterations, int threads, float* q, int32_t* labels) const {
        bool alike = true;
        for (const Term& term : terms) alike &= term.form == Term::potts;
        std::vector<int> first, channel_of(classes);  // the first class of each channel
        std::vector<float> copies;
        for (int k = 0; k < classes; ++k) {
            size_t c = 0;
            while (c < first.size() && !(alike && std::memcmp(unary + k * N, unary + first[c] * N, N * sizeof(float)) == 0)) ++c;
            if (c == first.size()) first.push_back(k), copies.push_back(0);
            channel_of[k] = int(c), copies[c] += 1;
        }
        const int channels = int(first.size());
        copies.resize(row_floats(channels), 0.f);
        if (channels == classes) return infer(unary, channels, copies, iterations, threads, q, labels);
        Buffer<float> few(channels * N), result(labels ? 1 : channels * N);
        for (int c = 0; c < channels; ++c) std::memcpy(few.data() + c * N, unary + first[c] * N, N * sizeof(float));
        const bool finite = infer(few.data(), channels, copies, iterations, threads, result.data(), labels);
        if (labels) for (size_t n = 0; n < N; ++n) labels[n] = first[labels[n]];
        else for (int k = 0; k < classes; ++k) std::memcpy(q + k * N, result.data() + channel_of[k] * N, N * sizeof(float));
        return finite;
    }

  private:
    struct Group { int term, p0, p1; };
    Buffer<int32_t> order_;

    bool infer(const float* unary, int channels, const std::vector<float>& copies, int iterations, int threads, float* q, int32_t* labels) const {
        const Kernels& k = kernels();
        const int row = row_floats(channels), count = int(terms.size());
        const size_t passes = count ? size_t(iterations) + 1 : 1;
        Buffer<float> u(N * row + 64);
        std::vector<Buffer<float>> values(2 * count), factors(count);
        for (int i = 0; i < count; ++i) {
            values[i].reset(std::max<size_t>(1, terms[i].kernel->lattice.M) * row);
            if (iterations > 1) values[count + i].reset(values[i].size());
            factors[i] = factors_of(terms[i], channels, row);
        }
        std::vector<Phase> clear(passes * count), blur(passes * count * (max_dim + 1));
        Phase ready, unaries, last;
        std::vector<Pipeline> pipelines;
        Buffer<float> ring;
        std::vector<Group> groups;
        std::atomic<bool> finite{true};
        Team::run(threads, [&](Team& team) {
            ready.once(team, [&] {
                for (int i = 0; i < count; ++i) {
                    const int D = terms[i].kernel->lattice.d + 1, parts = std::min(D, std::max(1, (team.size() * D + 5) / 9));
                    for (int g = 0; g < parts; ++g) { auto [p0, p1] = classes(g, parts, D); groups.push_back({i, p0, p1}); }
                }
                pipelines = std::vector<Pipeline>(passes);
                ring.reset(Pipeline::room(team.size(), row));
                for (auto& p : pipelines) p.prepare(N, team.size(), row, int(groups.size()), ring.data());
            });
            Buffer<float> work(9 * row);
            unaries.take(N, 1024, [&](size_t a, size_t b) {
                if (!k.planes_to_rows(unary, N, order_.data(), channels, a, b, u.data() + a * row, row)) finite.store(false, std::memory_order_relaxed);
                k.scale_unary(u.data() + a * row, b - a, channels, row);
            });
            std::vector<TermView> views(count);
            for (size_t pass = 0; pass < passes; ++pass) {
                const bool end = pass + 1 == passes;
                // values[old] hold the blurred vertices of the last pass, values[now] take this one's
                const size_t old = (pass + 1) % 2 * count, now = pass % 2 * count;
                for (int i = 0; i < count; ++i) {
                    const Kernel& kernel = *terms[i].kernel;
                    views[i] = {kernel.lattice.ids.data(), kernel.out, values[old + i].data(), terms[i].form == Term::full ? nullptr : factors[i].data(),
                                terms[i].form == Term::full ? factors[i].data() : nullptr, kernel.lattice.d + 1, kernel.lattice.far(row)};
                    if (!end) clear[pass * count + i].take(kernel.lattice.M * row, 1 << 16, [&](size_t a, size_t b) { std::memset(values[now + i].data() + a, 0, (b - a) * sizeof(float)); });
                }
                if (pass == 0) unaries.wait(team, N);
                if (!end) for (int i = 0; i < count; ++i) clear[pass * count + i].wait(team, terms[i].kernel->lattice.M * row);
                auto make = [&](size_t n0, size_t n1, float* rows) {
                    k.mean_field(views.data(), pass ? count : 0, u.data() + n0 * row, channels, row, n0, n1, copies.data(), rows, nullptr, work.data());
                };
                if (end) {
                    last.take(N, Pipeline::part, [&](size_t a, size_t b) {
                        if (labels) {
                            int32_t found[Pipeline::part];
                            k.mean_field(views.data(), pass ? count : 0, u.data() + a * row, channels, row, a, b, copies.data(), nullptr, found, work.data());
                            for (size_t n = a; n < b; ++n) labels[order_[n]] = found[n - a];
                            return;
                        }
                        float* rows = u.data() + a * row;  // no longer needed: becomes the result
                        k.mean_field(views.data(), pass ? count : 0, rows, channels, row, a, b, copies.data(), rows, nullptr, work.data());
                        k.rows_to_planes(rows, row, order_.data(), channels, a, b, q, N);
                    });
                    break;
                }
                pipelines[pass].run(team, make, [&](int group, size_t n0, size_t n1, const float* rows) {
                    for (size_t g = group < 0 ? 0 : group; g < (group < 0 ? groups.size() : size_t(group) + 1); ++g) {
                        const Kernel& kernel = *terms[groups[g].term].kernel;
                        k.splat(kernel.lattice.ids.data(), kernel.in, kernel.lattice.d + 1, groups[g].p0, groups[g].p1, n0, n1, rows, row, values[now + groups[g].term].data(), kernel.lattice.far(row));
                    }
                });
                for (int j = 0; j <= max_dim; ++j) {
                    auto phase = [&](int i) -> Phase& { return blur[(pass * count + i) * (max_dim + 1) + j]; };
                    for (int i = 0; i < count; ++i) if (j <= terms[i].kernel->lattice.d) terms[i].kernel->lattice.blur_axis(k, phase(i), j, values[now + i].data(), row);
                    for (int i = 0; i < count; ++i) if (j <= terms[i].kernel->lattice.d) phase(i).wait(team, terms[i].kernel->lattice.chains[j].size());
                }
            }
        });
        return finite.load();
    }

  public:
    // The normalised kernel of one term on planes q of N.
    bool apply(size_t term, const float* q, int channels, bool transpose, int threads, float* out) const {
        const Kernel& kernel = *terms[term].kernel;
        Filter filter;
        Phase ready;
        Team::run(threads, [&](Team& team) {
            ready.once(team, [&] { filter.prepare(kernel.lattice, channels, team.size()); });
            filter.planes(team, kernel.lattice, q, out, N, transpose, kernel.weights_in(transpose), kernel.weights_out(transpose), order_.data());
        });
        return filter.finite();
    }

  private:
    // E gains +w o (Potts), -v o (vector), -(m + m^T)/2 o (matrix); here times alpha, padded with zeros.
    static Buffer<float> factors_of(const Term& term, int channels, int row) {
        const bool matrix = term.form == Term::full;
        Buffer<float> f(size_t(matrix ? channels : 1) * row);
        const double scale = term.kernel->alpha;
        std::fill(f.data(), f.data() + f.size(), 0.f);
        for (int k = 0; k < channels; ++k) {
            if (matrix) for (int j = 0; j < channels; ++j) f[k * row + j] = float(-.5 * scale * (double(term.compat[k * channels + j]) + term.compat[j * channels + k]));
            else f[k] = float(scale * (term.form == Term::potts ? double(term.compat[0]) : -double(term.compat[k])));
        }
        return f;
    }
};

}  // namespace lattice
