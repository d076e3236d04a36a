/* Sixteen floats and sixteen bytes, in what registers a processor has: packed_rows.c computes with nothing else. */

#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__SSSE3__)
#include <immintrin.h> /* compilers take a widening of bytes apart where they are not told the instruction */
#endif

#define INLINE static inline __attribute__((always_inline))

typedef int8_t bytes __attribute__((vector_size(16)));
typedef uint64_t two __attribute__((vector_size(16)));
typedef float eight __attribute__((vector_size(32)));
typedef float four __attribute__((vector_size(16)));

/* Sixteen floats: one register where a processor has such, else two; what a compiler is left to make of vectors
   that no register holds takes twenty times as long. */
#if defined(__AVX512F__)
#define LOOKUP 1 /* a lane may say which of sixteen floats it wants, or of 32 */
typedef float floats __attribute__((vector_size(64)));
INLINE floats plus(floats a, floats b) { return a + b; }
INLINE floats times(floats a, floats b) { return a * b; }
INLINE floats scaled(floats a, float by) { return a * by; }
INLINE floats moved(floats a, float by) { return a + by; }
INLINE floats wide(bytes q) { return (floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)q)); }
#else
#define LOOKUP 0
typedef struct {
    eight a, b;
} floats;
INLINE floats plus(floats x, floats y) { return (floats){x.a + y.a, x.b + y.b}; }
INLINE floats times(floats x, floats y) { return (floats){x.a * y.a, x.b * y.b}; }
INLINE floats scaled(floats x, float by) { return (floats){x.a * by, x.b * by}; }
INLINE floats moved(floats x, float by) { return (floats){x.a + by, x.b + by}; }
INLINE floats wide(bytes q) {
#if defined(__AVX2__)
    __m128i all = (__m128i)q;
    return (floats){(eight)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(all)),
                    (eight)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(all, all)))};
#else
    int8_t each[16];
    float made[16];
    floats f;
    memcpy(each, &q, 16);
    for (int i = 0; i < 16; i++) made[i] = each[i];
    memcpy(&f, made, 64);
    return f;
#endif
}
#endif

INLINE bytes load(const uint8_t *p) {
    bytes b;
    memcpy(&b, p, 16);
    return b;
}

#if defined(__AVX512F__)
INLINE floats load_floats(const float *p) {
    floats f;
    memcpy(&f, p, 64);
    return f;
}
INLINE void put(float *w, floats f) { memcpy(w, &f, 64); }
INLINE eight folded(floats f) {
    eight e[2];
    memcpy(e, &f, 64);
    return e[0] + e[1];
}
#else
INLINE floats load_floats(const float *p) {
    floats f;
    memcpy(&f.a, p, 32);
    memcpy(&f.b, p + 8, 32);
    return f;
}
INLINE void put(float *w, floats f) {
    memcpy(w, &f.a, 32);
    memcpy(w + 8, &f.b, 32);
}
INLINE eight folded(floats f) { return f.a + f.b; }
#endif
