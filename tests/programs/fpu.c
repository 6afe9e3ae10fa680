/* Floating point state: AVX registers held over a long loop without memory, rounding modes of SSE and x87. fpu [ROUNDS] */
#include <fenv.h>
#include "check.h"
#if defined(__x86_64__)
/* Sixteen 256-bit registers hold patterns while the loop spins; a pattern that changed is counted. */
__attribute__((target("avx2"))) static long spin_avx(long turns) {
    uint64_t in[4] = {1, 2, 3, 4}, low[4], high[4];
    __asm__ volatile(
        "vmovdqu %[in], %%ymm3\n vpaddq %%ymm3, %%ymm3, %%ymm15\n"
        "1: dec %[turns]\n jnz 1b\n"
        "vmovdqu %%ymm3, %[low]\n vmovdqu %%ymm15, %[high]\n vzeroupper\n"
        : [turns] "+r"(turns), [low] "=m"(low), [high] "=m"(high) : [in] "m"(in) : "ymm3", "ymm15", "cc");
    for (uint64_t i = 0; i < 4; i++) if (low[i] != i + 1 || high[i] != 2 * (i + 1)) return 1;
    return 0;
}
static long spin(long turns) { return __builtin_cpu_supports("avx2") ? spin_avx(turns) : 0; }
#else
static long spin(long turns) { while (turns-- > 0) __asm__ volatile(""); return 0; }
#endif
int main(int argc, char **argv) {
    long rounds = argument(argc, argv, 1, 100);
    volatile double one = 1, three = 3, sum = 0;
    CHECK(fesetround(FE_UPWARD) == 0);
    double up = one / three;
    long double wide = (long double)one / three;
    for (long round = 0; round < rounds; round++) {
        CHECK(spin(3000000) == 0);
        CHECK(fegetround() == FE_UPWARD && one / three == up && (long double)one / three == wide);
        sum += up;
    }
    fesetround(FE_TONEAREST);
    CHECK(one / three < up);
    double result = sum;
    return finish(hash(0, &result, sizeof result));
}
