// Eight floats or ints at a time: AVX2 where the translation unit is compiled for it, otherwise plain loops that any compiler takes.
// No multiply-add is contracted behind our back (-ffp-contract=off): `madd` is fused where the hardware can, `add(mul())` never is.
#pragma once
#include <cstdint>
#include <cstring>
#include <math.h>
#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#define LATTICE_AVX2 1
#endif
#if defined(_MSC_VER)
#define LATTICE_INLINE static __forceinline
#else
#define LATTICE_INLINE static inline __attribute__((always_inline))
#endif
#if defined(__GNUC__) && !defined(__clang__)
#define LATTICE_UNROLL _Pragma("GCC unroll 8")
#elif defined(__clang__)
#define LATTICE_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LATTICE_UNROLL
#endif
#if defined(__GNUC__)
#define LATTICE_PREFETCH(p) __builtin_prefetch(p)
#else
#define LATTICE_PREFETCH(p) ((void)(p))
#endif

namespace {  // each translation unit has its own, or the linker would mix instruction sets

constexpr int W = 8;

#if LATTICE_AVX2
typedef __m256 F;
typedef __m256i I;
typedef __m128 F4;
LATTICE_INLINE F load(const float* p) { return _mm256_loadu_ps(p); }
LATTICE_INLINE void store(float* p, F x) { _mm256_storeu_ps(p, x); }
LATTICE_INLINE void store(int32_t* p, I x) { _mm256_storeu_si256((__m256i*)p, x); }
LATTICE_INLINE F all(float x) { return _mm256_set1_ps(x); }
LATTICE_INLINE I alli(int x) { return _mm256_set1_epi32(x); }
LATTICE_INLINE F zero() { return _mm256_setzero_ps(); }
LATTICE_INLINE F add(F a, F b) { return _mm256_add_ps(a, b); }
LATTICE_INLINE F sub(F a, F b) { return _mm256_sub_ps(a, b); }
LATTICE_INLINE F mul(F a, F b) { return _mm256_mul_ps(a, b); }
LATTICE_INLINE F div(F a, F b) { return _mm256_div_ps(a, b); }
LATTICE_INLINE F madd(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
LATTICE_INLINE F root(F a) { return _mm256_sqrt_ps(a); }
LATTICE_INLINE F vmax(F a, F b) { return _mm256_max_ps(a, b); }
LATTICE_INLINE F vmin(F a, F b) { return _mm256_min_ps(a, b); }
LATTICE_INLINE F vand(F a, F b) { return _mm256_and_ps(a, b); }
LATTICE_INLINE F round_even(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
LATTICE_INLINE F whole(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC); }
LATTICE_INLINE I less(F a, F b) { return _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
LATTICE_INLINE I addi(I a, I b) { return _mm256_add_epi32(a, b); }
LATTICE_INLINE I subi(I a, I b) { return _mm256_sub_epi32(a, b); }
LATTICE_INLINE I andi(I a, I b) { return _mm256_and_si256(a, b); }
LATTICE_INLINE I ori(I a, I b) { return _mm256_or_si256(a, b); }
LATTICE_INLINE I greater(I a, I b) { return _mm256_cmpgt_epi32(a, b); }
LATTICE_INLINE I equal(I a, I b) { return _mm256_cmpeq_epi32(a, b); }
LATTICE_INLINE I shift_left(I a, I n) { return _mm256_sllv_epi32(a, n); }  // 0 for n outside 0..31
LATTICE_INLINE F masked(I m, F a) { return _mm256_and_ps(_mm256_castsi256_ps(m), a); }
LATTICE_INLINE F choose(I m, F yes, F no) { return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(m)); }
LATTICE_INLINE I to_int(F a) { return _mm256_cvtps_epi32(a); }
LATTICE_INLINE F times_pow2(F a, F n) { return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23))); }
LATTICE_INLINE F4 load4(const float* p) { return _mm_loadu_ps(p); }
// Past the cache, for results too large to stay in it; end with `flush`.
LATTICE_INLINE void copy_past_cache(float* to, const float* from, size_t n) {
    if (uintptr_t(to) % 32 || n % W) { std::memcpy(to, from, n * sizeof(float)); return; }
    for (size_t i = 0; i < n; i += W) _mm256_stream_ps(to + i, load(from + i));
}
LATTICE_INLINE void flush() { _mm_sfence(); }
LATTICE_INLINE void store4(float* p, F4 x) { _mm_storeu_ps(p, x); }
LATTICE_INLINE F4 all4(float x) { return _mm_set1_ps(x); }
LATTICE_INLINE F4 add4(F4 a, F4 b) { return _mm_add_ps(a, b); }
LATTICE_INLINE F4 mul4(F4 a, F4 b) { return _mm_mul_ps(a, b); }
LATTICE_INLINE F4 madd4(F4 a, F4 b, F4 c) { return _mm_fmadd_ps(a, b, c); }
LATTICE_INLINE void transpose8(F r[8]) {
    F t[8];
    for (int i = 0; i < 4; ++i) t[2*i] = _mm256_unpacklo_ps(r[2*i], r[2*i+1]), t[2*i+1] = _mm256_unpackhi_ps(r[2*i], r[2*i+1]);
    F s[8] = {_mm256_shuffle_ps(t[0], t[2], 0x44), _mm256_shuffle_ps(t[0], t[2], 0xEE), _mm256_shuffle_ps(t[1], t[3], 0x44), _mm256_shuffle_ps(t[1], t[3], 0xEE),
              _mm256_shuffle_ps(t[4], t[6], 0x44), _mm256_shuffle_ps(t[4], t[6], 0xEE), _mm256_shuffle_ps(t[5], t[7], 0x44), _mm256_shuffle_ps(t[5], t[7], 0xEE)};
    for (int i = 0; i < 4; ++i) r[i] = _mm256_permute2f128_ps(s[i], s[i+4], 0x20), r[i+4] = _mm256_permute2f128_ps(s[i], s[i+4], 0x31);
}
// Lane i of the answer is the reduction of r[i].
LATTICE_INLINE F reduce8(const F r[8], F (*op)(F, F)) {
    F a[4], b[2];
    for (int i = 0; i < 4; ++i) a[i] = op(_mm256_unpacklo_ps(r[2*i], r[2*i+1]), _mm256_unpackhi_ps(r[2*i], r[2*i+1]));
    for (int i = 0; i < 2; ++i) b[i] = op(_mm256_shuffle_ps(a[2*i], a[2*i+1], 0x44), _mm256_shuffle_ps(a[2*i], a[2*i+1], 0xEE));
    return op(_mm256_permute2f128_ps(b[0], b[1], 0x20), _mm256_permute2f128_ps(b[0], b[1], 0x31));
}
// 8 rows of 4 <-> 4 columns of 8.
LATTICE_INLINE void transpose4(F a[4]) {
    const F t0 = _mm256_unpacklo_ps(a[0], a[1]), t1 = _mm256_unpackhi_ps(a[0], a[1]), t2 = _mm256_unpacklo_ps(a[2], a[3]), t3 = _mm256_unpackhi_ps(a[2], a[3]);
    a[0] = _mm256_shuffle_ps(t0, t2, 0x44), a[1] = _mm256_shuffle_ps(t0, t2, 0xEE), a[2] = _mm256_shuffle_ps(t1, t3, 0x44), a[3] = _mm256_shuffle_ps(t1, t3, 0xEE);
}
LATTICE_INLINE void load_columns(const float* rows, F x[4]) {
    for (int i = 0; i < 4; ++i) x[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(load4(rows + 4 * i)), load4(rows + 4 * i + 16), 1);
    transpose4(x);
}
LATTICE_INLINE void store_columns(float* rows, F x[4]) {
    transpose4(x);
    for (int i = 0; i < 4; ++i) store4(rows + 4 * i, _mm256_castps256_ps128(x[i])), store4(rows + 4 * i + 16, _mm256_extractf128_ps(x[i], 1));
}
// Sums of neighbours of 16 numbers, and each of 8 numbers twice.
LATTICE_INLINE F pair_sums(F lo, F hi) { return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(_mm256_hadd_ps(lo, hi)), 0xD8)); }
LATTICE_INLINE void twice(F x, F& lo, F& hi) {
    F a = _mm256_unpacklo_ps(x, x), b = _mm256_unpackhi_ps(x, x);
    lo = _mm256_permute2f128_ps(a, b, 0x20), hi = _mm256_permute2f128_ps(a, b, 0x31);
}
#else
LATTICE_INLINE void copy_past_cache(float* to, const float* from, size_t n) { std::memcpy(to, from, n * sizeof(float)); }
LATTICE_INLINE void flush() {}
struct F { float v[8]; };
struct I { int32_t v[8]; };
struct F4 { float v[4]; };
#define LATTICE_EACH(T, n, expr) T r; for (int i = 0; i < n; ++i) r.v[i] = expr; return r
LATTICE_INLINE F load(const float* p) { F r; std::memcpy(r.v, p, sizeof r.v); return r; }
LATTICE_INLINE void store(float* p, F x) { std::memcpy(p, x.v, sizeof x.v); }
LATTICE_INLINE void store(int32_t* p, I x) { std::memcpy(p, x.v, sizeof x.v); }
LATTICE_INLINE F all(float x) { LATTICE_EACH(F, 8, x); }
LATTICE_INLINE I alli(int x) { LATTICE_EACH(I, 8, x); }
LATTICE_INLINE F zero() { return all(0); }
LATTICE_INLINE F add(F a, F b) { LATTICE_EACH(F, 8, a.v[i] + b.v[i]); }
LATTICE_INLINE F sub(F a, F b) { LATTICE_EACH(F, 8, a.v[i] - b.v[i]); }
LATTICE_INLINE F mul(F a, F b) { LATTICE_EACH(F, 8, a.v[i] * b.v[i]); }
LATTICE_INLINE F div(F a, F b) { LATTICE_EACH(F, 8, a.v[i] / b.v[i]); }
LATTICE_INLINE F madd(F a, F b, F c) { LATTICE_EACH(F, 8, a.v[i] * b.v[i] + c.v[i]); }
LATTICE_INLINE F root(F a) { LATTICE_EACH(F, 8, sqrtf(a.v[i])); }
LATTICE_INLINE F vmax(F a, F b) { LATTICE_EACH(F, 8, a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
LATTICE_INLINE F vmin(F a, F b) { LATTICE_EACH(F, 8, a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
LATTICE_INLINE I bits(F a) { I r; std::memcpy(&r, &a, sizeof r); return r; }
LATTICE_INLINE F floats(I a) { F r; std::memcpy(&r, &a, sizeof r); return r; }
LATTICE_INLINE I andi(I a, I b) { LATTICE_EACH(I, 8, a.v[i] & b.v[i]); }
LATTICE_INLINE F vand(F a, F b) { return floats(andi(bits(a), bits(b))); }
LATTICE_INLINE F round_even(F a) { LATTICE_EACH(F, 8, (a.v[i] + 12582912.f) - 12582912.f); }  // exact for |a| < 2^22, the only case here
LATTICE_INLINE F whole(F a) { LATTICE_EACH(F, 8, float(int32_t(a.v[i]))); }  // the same
LATTICE_INLINE I less(F a, F b) { LATTICE_EACH(I, 8, -(a.v[i] < b.v[i])); }
LATTICE_INLINE I addi(I a, I b) { LATTICE_EACH(I, 8, a.v[i] + b.v[i]); }
LATTICE_INLINE I subi(I a, I b) { LATTICE_EACH(I, 8, a.v[i] - b.v[i]); }
LATTICE_INLINE I ori(I a, I b) { LATTICE_EACH(I, 8, a.v[i] | b.v[i]); }
LATTICE_INLINE I greater(I a, I b) { LATTICE_EACH(I, 8, -(a.v[i] > b.v[i])); }
LATTICE_INLINE I equal(I a, I b) { LATTICE_EACH(I, 8, -(a.v[i] == b.v[i])); }
LATTICE_INLINE I shift_left(I a, I n) { LATTICE_EACH(I, 8, n.v[i] < 0 || n.v[i] > 31 ? 0 : int32_t(uint32_t(a.v[i]) << n.v[i])); }
LATTICE_INLINE F masked(I m, F a) { return floats(andi(m, bits(a))); }
LATTICE_INLINE F choose(I m, F yes, F no) { LATTICE_EACH(F, 8, m.v[i] ? yes.v[i] : no.v[i]); }
LATTICE_INLINE I to_int(F a) { LATTICE_EACH(I, 8, int32_t(a.v[i])); }  // only of whole numbers
LATTICE_INLINE F times_pow2(F a, F n) { I b = bits(a); for (int i = 0; i < 8; ++i) b.v[i] += int32_t(uint32_t(int32_t(n.v[i])) << 23); return floats(b); }
LATTICE_INLINE F4 load4(const float* p) { F4 r; std::memcpy(r.v, p, sizeof r.v); return r; }
LATTICE_INLINE void store4(float* p, F4 x) { std::memcpy(p, x.v, sizeof x.v); }
LATTICE_INLINE F4 all4(float x) { LATTICE_EACH(F4, 4, x); }
LATTICE_INLINE F4 add4(F4 a, F4 b) { LATTICE_EACH(F4, 4, a.v[i] + b.v[i]); }
LATTICE_INLINE F4 mul4(F4 a, F4 b) { LATTICE_EACH(F4, 4, a.v[i] * b.v[i]); }
LATTICE_INLINE F4 madd4(F4 a, F4 b, F4 c) { LATTICE_EACH(F4, 4, a.v[i] * b.v[i] + c.v[i]); }
LATTICE_INLINE void transpose8(F r[8]) {
    for (int i = 0; i < 8; ++i) for (int j = 0; j < i; ++j) { float t = r[i].v[j]; r[i].v[j] = r[j].v[i]; r[j].v[i] = t; }
}
LATTICE_INLINE void load_columns(const float* rows, F x[4]) { for (int k = 0; k < 4; ++k) for (int i = 0; i < 8; ++i) x[k].v[i] = rows[4 * i + k]; }
LATTICE_INLINE void store_columns(float* rows, F x[4]) { for (int k = 0; k < 4; ++k) for (int i = 0; i < 8; ++i) rows[4 * i + k] = x[k].v[i]; }
LATTICE_INLINE F pair_sums(F lo, F hi) { LATTICE_EACH(F, 8, i < 4 ? lo.v[2*i] + lo.v[2*i+1] : hi.v[2*i-8] + hi.v[2*i-7]); }
LATTICE_INLINE void twice(F x, F& lo, F& hi) { for (int i = 0; i < 8; ++i) lo.v[i] = x.v[i/2], hi.v[i] = x.v[4+i/2]; }
LATTICE_INLINE F reduce8(const F r[8], F (*op)(F, F)) {
    F t[8];
    for (int i = 0; i < 8; ++i) t[i] = r[i];
    transpose8(t);
    return op(op(op(t[0], t[1]), op(t[2], t[3])), op(op(t[4], t[5]), op(t[6], t[7])));
}
#undef LATTICE_EACH
#endif

// 2^x for x <= 127, relative error 2e-7; below -126 the smallest normal number, never a denormal.
LATTICE_INLINE F exp2v(F x) {
    x = vmax(x, all(-126.f));
    F n = round_even(x), f = sub(x, n);
    F p = all(1.32647273e-3f);
    p = madd(p, f, all(9.67151299e-3f));
    p = madd(p, f, all(5.55073358e-2f));
    p = madd(p, f, all(2.40222424e-1f));
    p = madd(p, f, all(6.93147004e-1f));
    p = madd(p, f, all(1.f));
    return times_pow2(p, n);
}

}  // namespace
