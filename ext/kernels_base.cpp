#define LATTICE_KERNELS lattice::kernels_base
#define LATTICE_NAME "plain"
#include "kernels.inc"

const lattice::Kernels& lattice::kernels() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (avx2) return kernels_avx2();
#endif
    return kernels_base();
}
