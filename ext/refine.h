// Pixel-adaptive refinement: every pixel asks its neighbours of like colour, near and far, what they are.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "threads.h"

namespace lattice {

// Planes (count,height,width) whose rows are continued at both sides by their last value, as far as the farthest neighbour and the last whole block reach.
// Rows above and below are not stored: who asks for one is sent to the nearest.
struct PaddedPlanes {
    size_t height, width, reach, blocks, stride, plane;
    Buffer<float> values;

    PaddedPlanes(size_t count, size_t height, size_t width, size_t reach) : height(height), width(width), reach(reach), blocks((width + refine_block - 1) / refine_block) {
        const size_t lines = (blocks * refine_block + 2 * reach + 15) / 16;
        stride = (lines | 1) * 16;  // an odd number of cache lines: rows a power of two apart would fight for the same places in the cache
        plane = height * stride;
        values.reset(count * plane);
    }
    float* row(size_t c, size_t y) const { return values.data() + c * plane + y * stride; }
    size_t first(size_t y) const { return y * stride + reach; }
    void continue_row(float* to) const {
        std::fill(to, to + reach, to[reach]);
        std::fill(to + reach + width, to + stride, to[reach + width - 1]);
    }
    void fill_row(size_t c, size_t y, const float* from) const {
        std::memcpy(row(c, y) + reach, from, width * sizeof(float));
        continue_row(row(c, y));
    }
};

// Eight neighbours at each distance, row by row, and where they lie for the pixels of a row.
class Neighbourhood {
  public:
    Neighbourhood(const std::vector<int>& distances, const PaddedPlanes& planes) : planes_(planes) {
        for (int d : distances)
            for (int y = -1; y <= 1; ++y)
                for (int x = -1; x <= 1; ++x)
                    if (y || x) steps_.push_back({ptrdiff_t(d) * y, x * std::min(ptrdiff_t(d), ptrdiff_t(planes.reach))});
    }
    int count() const { return int(steps_.size()); }
    // at: the neighbours of the first pixel of row y, in a plane; below: the same, but the last row, which does not change downwards, for those that do not either
    void look(size_t y, size_t* at, size_t* below) const {
        const ptrdiff_t last = ptrdiff_t(planes_.height) - 1;
        for (size_t n = 0; n < steps_.size(); ++n) {
            const ptrdiff_t to = ptrdiff_t(y) + steps_[n].y, row = std::clamp(to, ptrdiff_t(0), last);
            at[n] = size_t(ptrdiff_t(planes_.first(size_t(row))) + steps_[n].x);
            const bool changes = to >= 0 && to < last && ptrdiff_t(y) < last;
            below[n] = size_t(ptrdiff_t(planes_.first(size_t(changes ? row : last))) + steps_[n].x);
        }
    }

  private:
    struct Step { ptrdiff_t y, x; };
    std::vector<Step> steps_;
    const PaddedPlanes& planes_;
};

struct Refinement {
    std::vector<int> distances;
    int rounds;
    float sharpness;
    std::vector<float> closeness;  // one per neighbour
    float variation;
};

// images (B,3,H,W), masks and out (B,C,H,W). Image by image, all threads on the rows of one: its weights, the large part, are needed once and stay in the cache.
inline void refine(const float* images, const float* masks, float* out, size_t batch, size_t channels, size_t height, size_t width, const Refinement& how, int threads) {
    constexpr size_t colours = 3, rows = 4;
    const Kernels& k = kernels();
    const size_t N = height * width, reach = std::min(width, size_t(*std::max_element(how.distances.begin(), how.distances.end())));
    const PaddedPlanes guide(colours, height, width, reach), change(how.variation != 0 ? 2 : 0, height, width, reach);
    const PaddedPlanes one(channels, height, width, reach), two(how.rounds > 1 ? channels : 0, height, width, reach);
    const Neighbourhood around(how.distances, guide);
    const size_t count = size_t(around.count()), blocks = guide.blocks, wide = blocks * refine_block;
    const Buffer<float> weights(height * wide * count);
    std::vector<float> inner(wide, 1.f);
    inner[width - 1] = 0;
    std::vector<Phase> phases(batch * (size_t(how.rounds) + 3));
    Team::run(int(std::min(size_t(threads), (height + rows - 1) / rows)), [&](Team& team) {
        const Buffer<float> work(count * 8), last(channels * wide);
        std::vector<size_t> at(count), below(count);
        Phase* phase = phases.data();
        auto each_row = [&](auto&& f) {
            phase++->all(team, height, rows, [&](size_t a, size_t z) { for (size_t y = a; y < z; ++y) f(y); });
        };
        for (size_t b = 0; b < batch; ++b) {
            each_row([&](size_t y) {
                for (size_t c = 0; c < colours; ++c) guide.fill_row(c, y, images + (b * colours + c) * N + y * width);
                for (size_t c = 0; c < channels; ++c) one.fill_row(c, y, masks + (b * channels + c) * N + y * width);
            });
            if (how.variation != 0)
                each_row([&](size_t y) {
                    const size_t next = std::min(y + 1, height - 1);
                    float *down = change.row(0, y), *right = change.row(1, y);
                    for (size_t x = 0; x < guide.stride; ++x) {
                        float d = 0, r = 0;
                        for (size_t c = 0; c < colours; ++c) {
                            const float *me = guide.row(c, y) + x, to_below = guide.row(c, next)[x] - *me, to_right = x + 1 < guide.stride ? me[1] - *me : 0;
                            d += to_below * to_below, r += to_right * to_right;
                        }
                        down[x] = d / float(colours), right[x] = r / float(colours);
                    }
                });
            each_row([&](size_t y) {
                around.look(y, at.data(), below.data());
                const GuideRow row{guide.values.data(), guide.plane, guide.first(y), at.data(), int(count), how.sharpness, how.closeness.data(), how.variation,
                                   change.values.data(), how.variation != 0 ? change.row(1, 0) : nullptr, below.data(), inner.data()};
                k.neighbour_weights(row, blocks, weights.data() + y * wide * count, work.data());
            });
            for (int i = 0; i < how.rounds; ++i) {
                const PaddedPlanes &from = i % 2 ? two : one, &to = i % 2 ? one : two;
                const bool ends = i + 1 == how.rounds;
                each_row([&](size_t y) {
                    around.look(y, at.data(), below.data());
                    k.weighted_sums(weights.data() + y * wide * count, at.data(), int(count), from.values.data(), from.plane, int(channels), blocks,
                                    ends ? last.data() : to.row(0, y) + to.reach, ends ? wide : to.plane);
                    for (size_t c = 0; c < channels; ++c) {
                        if (ends) std::memcpy(out + (b * channels + c) * N + y * width, last.data() + c * wide, width * sizeof(float));
                        else to.continue_row(to.row(c, y));
                    }
                });
            }
        }
    });
    if (how.rounds == 0) std::memcpy(out, masks, batch * channels * N * sizeof(float));
}

}  // namespace lattice
