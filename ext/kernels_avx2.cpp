// Compiled with -mavx2 -mfma on x86-64 (setup.py); empty elsewhere, and on compilers that were not given the options.
#if defined(__x86_64__) || defined(_M_X64)
#define LATTICE_KERNELS lattice::kernels_avx2
#define LATTICE_NAME "avx2"
#include "kernels.inc"
#endif
