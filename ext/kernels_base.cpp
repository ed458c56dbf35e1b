#define LATTICE_KERNELS lattice::kernels_base
#define LATTICE_NAME "plain"
#include "kernels.inc"

#include <cstdlib>

// WSSS_LATTICE=plain in the environment asks for the loops that run on any processor, so that they can be tested on one that has more.
const lattice::Kernels& lattice::kernels() {
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                             !(std::getenv("WSSS_LATTICE") && std::strcmp(std::getenv("WSSS_LATTICE"), "plain") == 0);
    if (avx2) return kernels_avx2();
#endif
    return kernels_base();
}
