// The inner loops, compiled once for any processor and once for AVX2+FMA; `kernels()` picks at run time.
//
// Points are handled in blocks of 8. `ids` and `weights` are laid out [block][vertex p][point in block]; "rows" hold all channels of a
// point or vertex: 4 floats for up to 4 channels, otherwise a multiple of 8. Padding lanes are exact zeros: anything else
// (the exponential of a large negative number, say) becomes denormal in the blur and costs half as much again.
#pragma once
#include <cstddef>
#include <cstdint>

namespace lattice {

constexpr int max_dim = 8;
constexpr int chain_margin = 64;  // entries behind the end of a chain array, and a block behind the ids: what is asked for in advance must be valid
inline int row_floats(int channels) { return channels <= 4 ? 4 : (channels + 7) / 8 * 8; }

// One pairwise term as mean field sees it. The weights hold the normalisation, the factors alpha and compatibility.
struct TermView {
    const int32_t* ids;
    const float* weights;
    const float* values;   // rows of the vertices, blurred
    const float* factors;  // one row: what the filtered row is multiplied with, lane by lane; null if there is a matrix
    const float* matrix;   // channels rows
    int D;
    bool far;              // the rows do not fit the cache
};

// One row of an image whose pixels are refined by their neighbours (refine.h). Pixels come in blocks of `refine_block`; planes are padded at the sides.
constexpr int refine_block = 16;
struct GuideRow {
    const float* guide;     // planes of three colours
    size_t plane;           // floats from one to the next
    size_t here;            // the row's first pixel in a plane
    const size_t* at;       // its neighbours, `count` of them
    int count;
    float sharpness;
    const float* closeness; // what each neighbour gets besides
    float variation;        // what is taken from those around which the image changes most; 0: what follows is not looked at
    const float *down, *right;  // planes: how much it changes downwards and to the right
    const size_t* below;    // where to look for changes downwards
    const float* inner;     // 1, and 0 in the last column, which does not change to the right
};

struct Kernels {
    // features [d][stride] -> coordinates of the nearest remainder-0 vertex, divided by d+1, z [block][d][8], the order of the remainders as 4-bit fields (field r-1:
    // the coordinate with rank r), barycentric weights [block][d+1][8]. One function per d.
    void (*embed[max_dim + 1])(const float* features, size_t stride, size_t blocks, const float* scale, float inverse, int32_t* z, uint32_t* order, float* weights);
    // planes [channel][stride] at the points order[n0..n1) (order null: n0..n1) -> rows; false if a value is not finite
    bool (*planes_to_rows)(const float* planes, size_t stride, const int32_t* order, int channels, size_t n0, size_t n1, float* rows, int row);
    void (*rows_to_planes)(const float* rows, int row, const int32_t* order, int channels, size_t n0, size_t n1, float* planes, size_t stride);
    // values[ids] += weights * rows, for the vertices p0..p1 of points n0..n1; n0 a multiple of 8. `rows` starts at point n0.
    void (*splat)(const int32_t* ids, const float* weights, int D, int p0, int p1, size_t n0, size_t n1, const float* rows, int row, float* values, bool far);
    // rows = sum over p of (weights * alpha) * values[ids], p ascending
    void (*slice)(const int32_t* ids, const float* weights, int D, size_t n0, size_t n1, float alpha, const float* values, int row, float* rows);
    // one axis, in place: the chains that begin in [i0,i1); the last vertex of a chain is stored as its complement
    void (*blur)(const int32_t* chain, size_t i0, size_t i1, size_t n, float* values, int row);
    // the same for a single channel of ones and rows of one float
    void (*splat_ones)(const int32_t* ids, const float* weights, int D, int p0, int p1, size_t n0, size_t n1, float* values);
    void (*slice_one)(const int32_t* ids, const float* weights, int D, size_t n0, size_t n1, float alpha, const float* values, float* out);
    // rows = softmax of unary + the terms; `work` has room for 9 rows. `copies`: how many classes each
    // channel stands for, 0 for padding. With labels instead: the first of the largest, no softmax.
    void (*mean_field)(const TermView* terms, int count, const float* unary, int channels, int row, size_t n0, size_t n1, const float* copies, float* rows, int32_t* labels,
                       float* work);
    void (*scale_unary)(float* rows, size_t count, int channels, int row);  // negated, padding far below all others
    void (*scale_weights)(const float* weights, const float* by, int D, size_t n0, size_t n1, float* out);
    // by: one factor per row
    void (*scale_rows)(float* rows, int row, const float* by, size_t count);
    double (*dot_rows)(const float* a, const float* b, int row, size_t count);
    // max(0, roi - largest of the planes), 1 where unlabelled; arrays begin at point n0
    void (*gate)(const float* planes, size_t stride, int channels, const float* roi, const uint8_t* unlabelled, size_t count, float* gate);
    // One pair of image rows: softmax over the planes `stride` apart, then the mean of 2x2. `work`: channels * 256 floats. False: not all finite.
    // Backward the gradient is multiplied with `scale` and, if given, the row `roi`.
    bool (*halve_softmax)(const float* logits, size_t stride, int channels, size_t width, float* out, size_t out_stride, float* work);
    bool (*halve_softmax_backward)(const float* logits, size_t stride, int channels, size_t width, const float* grad, size_t grad_stride, const float* roi, float scale,
                                   float* out, float* work);
    // weights [block][neighbour][refine_block] of a row; `work`: 8 floats a neighbour
    void (*neighbour_weights)(const GuideRow& row, size_t blocks, float* weights, float* work);
    // one row of each plane: the sum over neighbours, in their order, of weight times value
    void (*weighted_sums)(const float* weights, const size_t* at, int count, const float* planes, size_t plane, int channels, size_t blocks, float* out, size_t out_plane);
    // Images (n,3) of bytes: towards a level or the pixel's own grey (level below 0); hue turned by 0..255 of 256; the sum of the greys. See colours.inc.
    void (*fade)(const uint8_t* in, size_t n, float level, float factor, uint8_t* out);
    void (*turn_hue)(const uint8_t* in, size_t n, int turn, uint8_t* out);
    uint64_t (*grey_sum)(const uint8_t* rgb, size_t n);
    bool (*finite)(const float* x, size_t n, float* lowest, float* highest);
    const char* name;
};

const Kernels& kernels_base();
#if defined(__x86_64__) || defined(_M_X64)
const Kernels& kernels_avx2();
#endif
const Kernels& kernels();

}  // namespace lattice
