// The dense energy loss and what surrounds it in training: softmax with halving, and its backward pass.
#pragma once
#include "filter.h"

namespace lattice {

// On rescaled inputs: S = probs * roi, filtered; times the gate max(0, roi - largest prob), 1 where unlabelled (no gate without `unlabelled`).
// Gate and product are part of the passes over the pixels that splat and slice anyway. Returns -sum(S * gated) / batch.
inline double energy(const float* images, const float* probs, const float* rois, const uint8_t* unlabelled, float* gated, size_t batch, size_t channels,
                     size_t height, size_t width, float sigma_rgb, float sigma_xy, int pad_to, int threads) {
    const size_t N = height * width, parts = (N + Pipeline::step - 1) / Pipeline::step;
    const Kernels& k = kernels();
    Buffer<double> sums(batch * parts);  // summed in order at the end: the same bits for any number of threads
    std::fill(sums.data(), sums.data() + sums.size(), 0.);
    over_images(batch, threads, [&](size_t b, int inside) {
        const float *p = probs + b * channels * N, *roi = rois + b * N;
        const uint8_t* free = unlabelled ? unlabelled + b * N : nullptr;
        float *out = gated + b * channels * N, low = roi[0], high = roi[0];
        if (!k.finite(roi, N, &low, &high)) throw std::invalid_argument("rois: not all values are finite");
        ImageFeatures features(images + b * 3 * N, height, width, sigma_rgb, sigma_xy);
        Lattice lattice;
        Filter filter;
        Buffer<float> gate(free ? N : 1);
        std::atomic<bool> finite{true};
        Phase ready, built;
        Team::run(inside, [&](Team& team) {
            ready.once(team, [&] { lattice.prepare(5, N, features.ranges, pad_to, team.size()); });
            lattice.build(team, std::cref(features));
            built.once(team, [&] { filter.prepare(lattice, int(channels), team.size()); });
            filter.run(team, lattice, false, lattice.weights.data(), lattice.weights.data(),
                [&](int first, int count, size_t n0, size_t n1, float* rows, int row) {
                    if (free && first == 0) k.gate(p + n0, N, int(channels), roi + n0, free + n0, n1 - n0, gate.data() + n0);
                    if (!k.planes_to_rows(p + first * N, N, nullptr, count, n0, n1, rows, row)) finite.store(false, std::memory_order_relaxed);
                    k.scale_rows(rows, row, roi + n0, n1 - n0);
                },
                [&](int first, int count, size_t n0, size_t n1, float* rows, int row) {
                    alignas(64) float s[Pipeline::step * Filter::most];
                    if (free) k.scale_rows(rows, row, gate.data() + n0, n1 - n0);
                    k.rows_to_planes(rows, row, nullptr, count, n0, n1, out + first * N, N);
                    k.planes_to_rows(p + first * N, N, nullptr, count, n0, n1, s, row);
                    k.scale_rows(s, row, roi + n0, n1 - n0);
                    sums[b * parts + n0 / Pipeline::step] += k.dot_rows(s, rows, row, n1 - n0);
                });
        });
        if (!finite.load()) throw std::invalid_argument("probs: not all values are finite");
    });
    double sum = 0;
    for (size_t i = 0; i < sums.size(); ++i) sum += sums[i];
    return -sum / double(batch);
}

// Row pairs are independent. grad null: forward, out (B,K,H/2,W/2); otherwise backward of grad * rois (B,H/2,W/2; null: ones) * scale, out (B,K,H,W).
inline void halve_softmax(const float* logits, const float* grad, const float* rois, float scale, float* out, size_t batch, size_t channels, size_t height, size_t width, int threads) {
    const Kernels& k = kernels();
    const size_t half = height / 2, stride = height * width, small = half * (width / 2);
    std::atomic<bool> finite{true};
    Phase next;
    Team::run(threads, [&](Team&) {
        Buffer<float> work(channels * 256);
        next.take(batch * half, 2, [&](size_t a, size_t z) {
            for (size_t i = a; i < z; ++i) {
                const size_t b = i / half, y = i % half;
                const float* from = logits + b * channels * stride + 2 * y * width;
                const size_t at = b * channels * small + y * (width / 2);
                const bool ok = grad ? k.halve_softmax_backward(from, stride, int(channels), width, grad + at, small, rois ? rois + b * small + y * (width / 2) : nullptr, scale, out + b * channels * stride + 2 * y * width, work.data())
                                     : k.halve_softmax(from, stride, int(channels), width, out + at, small, work.data());
                if (!ok) finite.store(false, std::memory_order_relaxed);
            }
        });
    });
    if (!finite.load()) throw std::invalid_argument(grad ? "logits, grad: not all values are finite" : "logits: not all values are finite");
}

}  // namespace lattice
