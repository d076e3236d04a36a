/* What the blocks of a file mean, a function a format, and two things made of it: the values of a weight, and a
   few rows times a weight that stays packed, y[t][r] = sum_k x[t][k] w[r][k], float32 throughout.

   Values have the bits of block_formats.py: a scale of 11 bits times integers of a few is exact in float32, so
   that one rounding is left, whatever a compiler joins. Products: each row of a weight is summed in sixteen
   strands, always in the same order, so that neither the number of threads nor the number of rows that are asked
   for at a time changes a bit. Layouts: ggml-common.h, as block_formats.py tells them. */

#include <stdint.h>
#include <string.h>

#define LANES 16
#define MOST 4 /* tokens at a time */
#define AHEAD 4096 /* bytes asked for before their turn: a processor's own foresight ends with a page */
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(64)));
typedef int32_t ints __attribute__((vector_size(64)));
typedef int8_t bytes __attribute__((vector_size(16)));
typedef uint16_t words __attribute__((vector_size(32)));

INLINE floats wide(bytes q) { return __builtin_convertvector(__builtin_convertvector(q, ints), floats); }

INLINE bytes load(const uint8_t *p) {
    bytes b;
    memcpy(&b, p, 16);
#if defined(__x86_64__)
    __asm__("" : "+x"(b)); /* in one register: gcc 12 else widens what it reads byte by byte */
#endif
    return b;
}

INLINE floats load_floats(const float *p) {
    floats f;
    memcpy(&f, p, 64);
    return f;
}

INLINE void put(float *w, floats f) { memcpy(w, &f, 64); }

INLINE bytes low(bytes b) { return b & 15; }
INLINE bytes high(bytes b) { return (b >> 4) & 15; }

INLINE float half(const uint8_t *p) {
    _Float16 h;
    memcpy(&h, p, 2);
    return (float)h;
}

/* Sixteen bits as 16 where one is set, in order. */
INLINE bytes fifth_bits(const uint8_t *p) {
    const bytes bit = {1, 2, 4, 8, 16, 32, 64, -128, 1, 2, 4, 8, 16, 32, 64, -128};
    uint64_t spread[2] = {p[0] * 0x0101010101010101u, p[1] * 0x0101010101010101u};
    bytes b;
    memcpy(&b, spread, 16);
    return ((b & bit) != 0) & 16;
}

INLINE bytes iq4(bytes q) {
    const bytes values = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
#if defined(__GNUC__) && !defined(__clang__)
    return __builtin_shuffle(values, q);
#else
    for (int i = 0; i < LANES; i++) q[i] = values[q[i]];
    return q;
#endif
}

/* Each writes the values of one block. */

INLINE void f16(const uint8_t *b, float *w) {
    for (int part = 0; part < 2; part++) {
        words h;
        memcpy(&h, b + 32 * part, 32);
        ints bits = __builtin_convertvector(h, ints), size = bits & 0x7fff, denormal = size < 0x400;
        ints whole = (size << 13) + 0x38000000 + ((size >= 0x7c00) & 0x38000000), few; /* the exponent's other bias */
        floats small = __builtin_convertvector(size, floats) * 0x1p-24f;
        memcpy(&few, &small, 64);
        whole = (whole & ~denormal) | (few & denormal) | (bits & 0x8000) << 16;
        memcpy(w + LANES * part, &whole, 64);
    }
}

INLINE void bf16(const uint8_t *b, float *w) {
    for (int part = 0; part < 2; part++) {
        words h;
        memcpy(&h, b + 32 * part, 32);
        ints bits = __builtin_convertvector(h, ints) << 16;
        memcpy(w + LANES * part, &bits, 64);
    }
}

INLINE void q8_0(const uint8_t *b, float *w) {
    float d = half(b);
    put(w, wide(load(b + 2)) * d);
    put(w + 16, wide(load(b + 18)) * d);
}

INLINE void q4_0(const uint8_t *b, float *w) {
    float d = half(b);
    bytes q = load(b + 2);
    put(w, wide(low(q) - 8) * d);
    put(w + 16, wide(high(q) - 8) * d);
}

INLINE void q4_1(const uint8_t *b, float *w) {
    float d = half(b), m = half(b + 2);
    bytes q = load(b + 4);
    put(w, wide(low(q)) * d + m);
    put(w + 16, wide(high(q)) * d + m);
}

INLINE void q5_0(const uint8_t *b, float *w) {
    float d = half(b);
    bytes q = load(b + 6);
    put(w, wide((low(q) | fifth_bits(b + 2)) - 16) * d);
    put(w + 16, wide((high(q) | fifth_bits(b + 4)) - 16) * d);
}

INLINE void q5_1(const uint8_t *b, float *w) {
    float d = half(b), m = half(b + 2);
    bytes q = load(b + 8);
    put(w, wide(low(q) | fifth_bits(b + 4)) * d + m);
    put(w + 16, wide(high(q) | fifth_bits(b + 6)) * d + m);
}

INLINE void iq4_nl(const uint8_t *b, float *w) {
    float d = half(b);
    bytes q = load(b + 2);
    put(w, wide(iq4(low(q))) * d);
    put(w + 16, wide(iq4(high(q))) * d);
}

INLINE void iq4_xs(const uint8_t *b, float *w) {
    float d = half(b);
    for (int g = 0; g < 8; g++) { /* 32 elements each */
        int scale = ((b[4 + g / 2] >> 4 * (g % 2)) & 15) | ((b[2 + g / 4] >> 2 * (g % 4)) & 3) << 4;
        float s = d * (float)(scale - 32);
        bytes q = load(b + 8 + 16 * g);
        put(w + 32 * g, wide(iq4(low(q))) * s);
        put(w + 32 * g + 16, wide(iq4(high(q))) * s);
    }
}

/* Two bits of sixteen elements, a group: halves of 128 elements, quarters of 32, two groups each. */
INLINE bytes two_bits(const uint8_t *q, int g) { return (load(q + 32 * (g / 8) + 16 * (g % 2)) >> g / 2 % 4 * 2) & 3; }

INLINE void q2_k(const uint8_t *b, float *w) {
    float d = half(b + 80), least = half(b + 82);
    for (int g = 0; g < 16; g++)
        put(w + 16 * g, wide(two_bits(b + 16, g)) * (d * (float)(b[g] & 15)) - least * (float)(b[g] >> 4));
}

INLINE void q3_k(const uint8_t *b, float *w) {
    float d = half(b + 108);
    for (int g = 0; g < 16; g++) {
        int scale = ((b[96 + g % 8] >> 4 * (g / 8)) & 15) | ((b[104 + g % 4] >> 2 * (g / 4)) & 3) << 4;
        bytes third = (load(b + 16 * (g % 2)) >> g / 2) & 1;
        put(w + 16 * g, wide(two_bits(b + 32, g) + third * 4 - 4) * (d * (float)(scale - 32)));
    }
}

INLINE void scale_and_min(const uint8_t *s, int g, int *scale, int *least) {
    if (g < 4) {
        *scale = s[g] & 63;
        *least = s[g + 4] & 63;
    } else {
        *scale = (s[g + 4] & 15) | ((s[g - 4] >> 6) << 4);
        *least = (s[g + 4] >> 4) | ((s[g] >> 6) << 4);
    }
}

/* Q4_K and Q5_K, which has fifth bits of all groups in 32 bytes of their own. */
INLINE void groups_of_32(const uint8_t *b, const uint8_t *fifth, const uint8_t *q, float *w) {
    float d = half(b), dmin = half(b + 2);
    for (int g = 0; g < 8; g++) {
        int scale, least;
        scale_and_min(b + 4, g, &scale, &least);
        for (int part = 0; part < 32; part += 16) {
            bytes both = load(q + 32 * (g / 2) + part), four = g % 2 ? high(both) : low(both);
            if (fifth) four |= ((load(fifth + part) >> g) & 1) << 4;
            put(w + 32 * g + part, wide(four) * (d * (float)scale) - dmin * (float)least);
        }
    }
}

INLINE void q4_k(const uint8_t *b, float *w) { groups_of_32(b, 0, b + 16, w); }
INLINE void q5_k(const uint8_t *b, float *w) { groups_of_32(b, b + 16, b + 48, w); }

INLINE void q6_k(const uint8_t *b, float *w) {
    float d = half(b + 208);
    for (int g = 0; g < 16; g++) { /* groups as those of two_bits; a nibble beside the two bits */
        bytes both = load(b + 64 * (g / 8) + 32 * (g / 2 % 2) + 16 * (g % 2));
        bytes four = g / 2 % 4 < 2 ? low(both) : high(both);
        put(w + 16 * g, wide((four | two_bits(b + 128, g) << 4) - 32) * (d * (float)(int8_t)b[192 + g]));
    }
}

INLINE float total(floats v) {
    float sum[LANES];
    memcpy(sum, &v, 64);
    for (int step = LANES / 2; step; step /= 2)
        for (int i = 0; i < step; i++) sum[i] += sum[i + step];
    return sum[0];
}

/* NAME_values: n blocks. NAME_rows: rows `first` to `last` of a weight of `width` columns times n tokens. */
#define FORMAT(name, block, block_bytes)                                                                     \
    void name##_values(const uint8_t *b, int64_t n, float *w) {                                              \
        for (; n--; b += block_bytes, w += block) name(b, w);                                                \
    }                                                                                                        \
    INLINE void name##_n(const uint8_t *w, int64_t first, int64_t last, int64_t width, const float *x,       \
                         int n, float *y, int64_t out) {                                                     \
        int64_t row_bytes = width / block * block_bytes;                                                     \
        for (int64_t r = first; r < last; r++) {                                                             \
            floats acc[MOST] = {{0}};                                                                        \
            const uint8_t *b = w + r * row_bytes;                                                            \
            _Pragma("GCC unroll 4") for (const float *at = x; at < x + width; at += block, b += block_bytes) { \
                float v[block];                                                                              \
                for (int i = 0; i < block_bytes; i += 64) __builtin_prefetch(b + AHEAD + i);                 \
                name(b, v);                                                                                  \
                for (int i = 0; i < block; i += 32)                                                          \
                    for (int t = 0; t < n; t++)                                                              \
                        acc[t] += load_floats(v + i) * load_floats(at + t * width + i) +                     \
                                  load_floats(v + i + 16) * load_floats(at + t * width + i + 16);            \
            }                                                                                                \
            for (int t = 0; t < n; t++) y[t * out + r] = total(acc[t]);                                      \
        }                                                                                                    \
    }                                                                                                        \
    void name##_rows(const uint8_t *w, int64_t first, int64_t last, int64_t width, const float *x,           \
                     int64_t n, float *y, int64_t out) {                                                     \
        for (; n >= MOST; n -= MOST, x += MOST * width, y += MOST * out)                                     \
            name##_n(w, first, last, width, x, MOST, y, out);                                                \
        if (n == 3) name##_n(w, first, last, width, x, 3, y, out);                                           \
        if (n == 2) name##_n(w, first, last, width, x, 2, y, out);                                           \
        if (n == 1) name##_n(w, first, last, width, x, 1, y, out);                                           \
    }

FORMAT(f16, 32, 64)
FORMAT(bf16, 32, 64)
FORMAT(q8_0, 32, 34)
FORMAT(q4_0, 32, 18)
FORMAT(q4_1, 32, 20)
FORMAT(q5_0, 32, 22)
FORMAT(q5_1, 32, 24)
FORMAT(iq4_nl, 32, 18)
FORMAT(iq4_xs, 256, 136)
FORMAT(q2_k, 256, 84)
FORMAT(q3_k, 256, 110)
FORMAT(q4_k, 256, 144)
FORMAT(q5_k, 256, 176)
FORMAT(q6_k, 256, 210)
