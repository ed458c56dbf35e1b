// Filtering planar channels with a lattice: splat, blur, slice; and batches of images.
#pragma once
#include "lattice.h"

namespace lattice {

// Two stages over bands of points: `make` writes the rows of a band, `take` splats them. Each vertex takes contributions from one of the
// D classes only, so threads share a splat by classes: no locks, no second buffer, and the sums have the same bits for any number of threads.
class Pipeline {
  public:
    static constexpr size_t band = 2048, part = 512, ring = 3, step = 64;
    static constexpr int parts = int(band / part);

    static size_t room(int threads, int row) { return (threads > 1 ? ring * band : step) * row; }  // floats
    // Passes that follow each other may share their `rows`, room() floats; without them a pipeline has its own.
    void prepare(size_t points, int threads, int row, int groups, float* rows = nullptr) {
        points_ = points, groups_ = groups;
        bands_ = (points + band - 1) / band;
        if (!rows) rows_.reset(room(threads, row));
        at_ = rows ? rows : rows_.data();
        row_ = row;
        std::vector<std::atomic<int>> made(bands_), taken(bands_);
        made_.swap(made), taken_.swap(taken);
        next_.reset();
    }
    // make(n0, n1, rows), take(group, n0, n1, rows)
    template <class Make, class Take> void run(Team& team, Make&& make, Take&& take) {
        if (team.size() == 1) {
            for (size_t n = 0; n < points_; n += step) {
                const size_t end = std::min(points_, n + step);
                make(n, end, at_);
                take(-1, n, end, at_);
            }
            return;
        }
        const size_t tasks = parts + groups_;
        next_.take((bands_ + 1) * tasks, 1, [&](size_t i, size_t) {
            const size_t round = i / tasks;
            const int task = int(i % tasks);
            if (task < parts) {
                const size_t b = round, n0 = b * band + task * part, n1 = std::min(points_, n0 + part);
                if (b >= bands_) return;
                if (b >= ring) team.wait([&] { return taken_[b - ring].load(std::memory_order_acquire) == groups_; });
                if (n0 < n1) make(n0, n1, at_ + ((b % ring) * band + task * part) * row_);
                made_[b].fetch_add(1, std::memory_order_acq_rel);
            } else if (round > 0) {
                const size_t b = round - 1;
                const int group = task - parts;
                // The bands of a class one after the other: `taken_` counts up in the order of the groups.
                team.wait([&] { return made_[b].load(std::memory_order_acquire) == parts && (b == 0 || taken_[b - 1].load(std::memory_order_acquire) == groups_); });
                take(group, b * band, std::min(points_, (b + 1) * band), at_ + (b % ring) * band * row_);
                taken_[b].fetch_add(1, std::memory_order_acq_rel);
            }
        });
        team.wait([&] { return taken_[bands_ - 1].load(std::memory_order_acquire) == groups_; });
    }

  private:
    size_t points_ = 0, bands_ = 0;
    int groups_ = 1, row_ = 0;
    float* at_ = nullptr;
    Buffer<float> rows_;
    std::vector<std::atomic<int>> made_, taken_;
    Phase next_;
};

// The classes of vertices [first,last) of a group; group -1 is all of them.
inline std::pair<int, int> classes(int group, int groups, int D) { return group < 0 ? std::make_pair(0, D) : std::make_pair(D * group / groups, D * (group + 1) / groups); }

// Filters up to 24 channels at a time with one lattice.
class Filter {
  public:
    static constexpr int most = 24;

    void prepare(const Lattice& lattice, int channels, int threads) {
        channels_ = channels;
        const int row = row_floats(std::min(channels, most));
        groups_ = std::min(threads, lattice.d + 1);
        values_.reset(std::max<size_t>(1, lattice.M) * row);
        passes_ = (channels + most - 1) / most;
        pipelines_ = std::vector<Pipeline>(passes_);
        clear_ = std::vector<Phase>(passes_);
        cut_ = std::vector<Phase>(passes_);
        blur_ = std::vector<Phase>(passes_ * (max_dim + 1));
        for (int i = 0; i < passes_; ++i) pipelines_[i].prepare(lattice.N, threads, row_floats(std::min(most, channels - i * most)), groups_);
        finite_.store(true);
    }
    // make(first channel, channels, n0, n1, rows, row) writes rows of points, cut(...) takes those that come back. The weights of splat and
    // slice may hold a normalisation.
    template <class Make, class Cut>
    void run(Team& team, const Lattice& lattice, bool reverse, const float* weights_in, const float* weights_out, Make&& make, Cut&& cut) {
        const Kernels& k = kernels();
        const int D = lattice.d + 1;
        const float alpha = float(1. / (1. + std::pow(2., -lattice.d)));
        for (int pass = 0; pass < passes_; ++pass) {
            const int first = pass * most, channels = std::min(most, channels_ - first), row = row_floats(channels);
            float* v = values_.data();
            clear_[pass].all(team, lattice.M * row, 1 << 16, [&](size_t a, size_t b) { std::memset(v + a, 0, (b - a) * sizeof(float)); });
            pipelines_[pass].run(
                team, [&](size_t n0, size_t n1, float* rows) { make(first, channels, n0, n1, rows, row); },
                [&](int group, size_t n0, size_t n1, const float* rows) {
                    auto [p0, p1] = classes(group, groups_, D);
                    k.splat(lattice.ids.data(), weights_in, D, p0, p1, n0, n1, rows, row, v, lattice.far(row));
                });
            for (int j = 0; j < D; ++j) {
                Phase& phase = blur_[pass * (max_dim + 1) + j];
                const int axis = reverse ? D - 1 - j : j;
                lattice.blur_axis(k, phase, axis, v, row);
                phase.wait(team, lattice.chains[axis].size());
            }
            cut_[pass].all(team, lattice.N, Pipeline::part, [&](size_t a, size_t b) {
                alignas(64) float rows[Pipeline::step * most];
                for (size_t n = a; n < b; n += Pipeline::step) {
                    const size_t end = std::min(b, n + Pipeline::step);
                    k.slice(lattice.ids.data(), weights_out, D, n, end, alpha, v, row, rows);
                    cut(first, channels, n, end, rows, row);
                }
            });
        }
    }
    bool finite() const { return finite_.load(); }  // were all the planes filtered so far?
    // in, out: planes `stride` apart, in another order of the points if given
    void planes(Team& team, const Lattice& lattice, const float* in, float* out, size_t stride, bool reverse, const float* weights_in, const float* weights_out, const int32_t* order = nullptr) {
        const Kernels& k = kernels();
        run(team, lattice, reverse, weights_in, weights_out,
            [&](int first, int channels, size_t n0, size_t n1, float* rows, int row) {
                if (!k.planes_to_rows(in + first * stride, stride, order, channels, n0, n1, rows, row)) finite_.store(false, std::memory_order_relaxed);
            },
            [&](int first, int channels, size_t n0, size_t n1, const float* rows, int row) { k.rows_to_planes(rows, row, order, channels, n0, n1, out + first * stride, stride); });
    }

  private:
    int channels_ = 0, groups_ = 1, passes_ = 0;
    Buffer<float> values_;
    std::vector<Pipeline> pipelines_;
    std::vector<Phase> clear_, cut_, blur_;
    std::atomic<bool> finite_{true};
};

// The features of an image in planes of floats: (x, y) / sigma_xy, (c0, c1, c2) / sigma_rgb, row by row.
class ImageFeatures {
  public:
    ImageFeatures(const float* image, size_t height, size_t width, float sigma_rgb, float sigma_xy) : image_(image), height_(height), width_(width), sigma_rgb_(sigma_rgb) {
        x_.reset(width + 8);
        y_.reset(height);
        for (size_t i = 0; i < width; ++i) x_[i] = float(i) / sigma_xy;
        for (size_t j = 0; j < height; ++j) y_[j] = float(j) / sigma_xy;
        ranges[0] = {0, x_[width - 1]}, ranges[1] = {0, y_[height - 1]};
        for (int c = 0; c < 3; ++c) {
            float low = image[c * height * width], high = low;
            if (!kernels().finite(image + c * height * width, height * width, &low, &high)) throw std::invalid_argument("images: not all values are finite");
            ranges[2 + c] = {low / sigma_rgb, high / sigma_rgb};
        }
    }
    Range ranges[5];
    void operator()(size_t n0, size_t n1, float* f, size_t stride) const {
        size_t i = n0 % width_, j = n0 / width_;
        for (size_t n = n0; n < n1;) {
            const size_t run = std::min(n1 - n, width_ - i);
            for (size_t k = 0; k < run; ++k) f[n - n0 + k] = x_[i + k], f[stride + n - n0 + k] = y_[j];
            n += run, i = 0, ++j;
        }
        for (int c = 0; c < 3; ++c)
            for (size_t n = n0; n < n1; ++n) f[(2 + c) * stride + n - n0] = image_[c * height_ * width_ + n] / sigma_rgb_;
    }

  private:
    const float* image_;
    size_t height_, width_;
    float sigma_rgb_;
    Buffer<float> x_, y_;
};

// Whole images go to threads as long as there is one for each, the rest is shared inside: one(image, threads inside).
template <class One> void over_images(size_t batch, int threads, One&& one) {
    const size_t whole = threads > 1 ? batch / threads * threads : batch;
    Phase next;
    if (whole) Team::run(int(std::min<size_t>(threads, whole)), [&](Team&) { next.take(whole, 1, [&](size_t b, size_t) { one(b, 1); }); });
    for (size_t b = whole; b < batch; ++b) one(b, threads);
}

// One lattice per image, all its channels together.
inline void bilateral_filter(const float* images, const float* values, float* out, size_t batch, size_t channels, size_t height, size_t width,
                             float sigma_rgb, float sigma_xy, int pad_to, int threads) {
    const size_t N = height * width;
    over_images(batch, threads, [&](size_t b, int inside) {
        ImageFeatures features(images + b * 3 * N, height, width, sigma_rgb, sigma_xy);
        Lattice lattice;
        Filter filter;
        Phase ready, built;
        Team::run(inside, [&](Team& team) {
            ready.once(team, [&] { lattice.prepare(5, N, features.ranges, pad_to, team.size()); });
            lattice.build(team, std::cref(features));
            built.once(team, [&] { filter.prepare(lattice, int(channels), team.size()); });
            filter.planes(team, lattice, values + b * channels * N, out + b * channels * N, N, false, lattice.weights.data(), lattice.weights.data());
        });
        if (!filter.finite()) throw std::invalid_argument("values: not all values are finite");
    });
}

}  // namespace lattice
