/* What the blocks of a file mean, a function a format, and two things made of it: the values of a weight, and a
   few rows times a weight that stays packed, y[t][r] = sum_k x[t][k] w[r][k], float32 throughout.

   Values have the bits of block_formats.py: a scale of 11 bits times integers of a few is exact in float32, so
   that one rounding is left, whatever a compiler joins. Products: each row of a weight is summed in sixteen
   strands, always in the same order, so that neither the number of threads nor the number of rows that are asked
   for at a time changes a bit. Layouts: ggml-common.h, as block_formats.py tells them. */

#include "sixteen_floats.h"

#define MOST 4 /* tokens at a time */
#define AHEAD 4096 /* bytes asked for before their turn: a processor's own foresight ends with a page */

INLINE bytes low(bytes b) { return b & 15; }
INLINE bytes high(bytes b) { return (b >> 4) & 15; }

INLINE float half(const uint8_t *p) {
#if defined(__F16C__)
    uint16_t h;
    memcpy(&h, p, 2);
    return _cvtsh_ss(h);
#else
    _Float16 h;
    memcpy(&h, p, 2);
    return (float)h;
#endif
}

#if LOOKUP
#define COUNT {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}

/* The values that sixteen bytes stand for, of their low halves and of their high ones: only the last four bits of
   a lane choose one of sixteen, so that nothing has to be cut off, moved down to zero or made a float. */
INLINE void looked_up(const uint8_t *p, floats values, floats *q) {
    __m512i both = _mm512_cvtepi8_epi32((__m128i)load(p));
    q[0] = (floats)_mm512_permutexvar_ps(both, (__m512)values);
    q[1] = (floats)_mm512_permutexvar_ps(_mm512_srli_epi32(both, 4), (__m512)values);
}

INLINE __m512i with_bit_4(__m512i nibble, __m512i bit) {
    const __m512i few = _mm512_set1_epi32(15), sixteen = _mm512_set1_epi32(16);
    return _mm512_or_epi32(_mm512_and_epi32(nibble, few), _mm512_and_epi32(bit, sixteen));
}

INLINE void nibbles(const uint8_t *p, int less, floats *q) { looked_up(p, moved((floats)COUNT, -less), q); }

INLINE void with_fifth_bits(const uint8_t *p, const uint8_t *fifth, int less, floats *q) {
    typedef int32_t ints __attribute__((vector_size(64)));
    const ints lane = COUNT;
    __m512 values = (__m512)moved((floats)COUNT, -less), more = (__m512)moved((floats)COUNT, 16 - less);
    int32_t all;
    memcpy(&all, fifth, 4);
    __m512i both = _mm512_cvtepi8_epi32((__m128i)load(p));
    __m512i bit = _mm512_srlv_epi32(_mm512_set1_epi32(all), (__m512i)lane);
    __m512i first = with_bit_4(both, _mm512_slli_epi32(bit, 4));
    __m512i second = with_bit_4(_mm512_srli_epi32(both, 4), _mm512_srli_epi32(bit, 12));
    q[0] = (floats)_mm512_permutex2var_ps(values, first, more);
    q[1] = (floats)_mm512_permutex2var_ps(values, second, more);
}
#else
/* Low and high halves of sixteen bytes, less a number. */
INLINE void nibbles(const uint8_t *p, int less, floats *q) {
    bytes both = load(p);
    q[0] = wide(low(both) - (int8_t)less);
    q[1] = wide(high(both) - (int8_t)less);
}

/* Sixteen bits as 16 where one is set, in order. */
INLINE bytes fifth_bits(const uint8_t *p) {
    const bytes bit = {1, 2, 4, 8, 16, 32, 64, -128, 1, 2, 4, 8, 16, 32, 64, -128};
    bytes b = (bytes)(two){p[0] * 0x0101010101010101u, p[1] * 0x0101010101010101u};
    return (bytes)((b & bit) == bit) & 16;
}

/* The same with a fifth bit each, 32 of them at `fifth`. */
INLINE void with_fifth_bits(const uint8_t *p, const uint8_t *fifth, int less, floats *q) {
    bytes both = load(p);
    q[0] = wide((low(both) | fifth_bits(fifth)) - (int8_t)less);
    q[1] = wide((high(both) | fifth_bits(fifth + 2)) - (int8_t)less);
}
#endif

INLINE bytes iq4(bytes q) {
    const bytes values = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
#if defined(__SSSE3__)
    return (bytes)_mm_shuffle_epi8((__m128i)values, (__m128i)q);
#elif defined(__GNUC__) && !defined(__clang__)
    return __builtin_shuffle(values, q);
#else
    for (int i = 0; i < 16; i++) q[i] = values[q[i]];
    return q;
#endif
}

/* Formats of one scale: a block's integers. */

INLINE void q8_0_integers(const uint8_t *b, floats *q) {
    q[0] = wide(load(b + 2));
    q[1] = wide(load(b + 18));
}

INLINE void q4_0_integers(const uint8_t *b, floats *q) { nibbles(b + 2, 8, q); }
INLINE void q5_0_integers(const uint8_t *b, floats *q) { with_fifth_bits(b + 6, b + 2, 16, q); }

INLINE void iq4_nl_integers(const uint8_t *b, floats *q) {
#if LOOKUP
    const floats values = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    looked_up(b + 2, values, q);
#else
    bytes both = load(b + 2);
    q[0] = wide(iq4(low(both)));
    q[1] = wide(iq4(high(both)));
#endif
}

/* The others: each writes the values of one block. */

#if defined(__AVX2__) && defined(__F16C__)
/* Stored as wide as it is loaded again: a load of two stores waits for both to be in memory. */
#if defined(__AVX512F__)
#define TWO_BYTES(name, half_floats)                                                                \
    INLINE void name(const uint8_t *b, float *w) {                                                           \
        for (int i = 0; i < 2; i++)                                                                          \
            put(w + 16 * i, (floats)half_floats(_mm256_loadu_si256((const void *)(b + 32 * i))));            \
    }
INLINE __m512 upper_halves(__m256i h) { return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16); }
TWO_BYTES(f16, _mm512_cvtph_ps)
#else
#define TWO_BYTES(name, half_floats)                                                                \
    INLINE void name(const uint8_t *b, float *w) {                                                           \
        for (int i = 0; i < 4; i++)                                                                          \
            _mm256_storeu_ps(w + 8 * i, half_floats(_mm_loadu_si128((const void *)(b + 16 * i))));           \
    }
INLINE __m256 upper_halves(__m128i h) { return (__m256)_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16); }
TWO_BYTES(f16, _mm256_cvtph_ps)
#endif
TWO_BYTES(bf16, upper_halves)
#else
INLINE void f16(const uint8_t *b, float *w) {
    uint16_t h[32];
    uint32_t bits[32];
    memcpy(h, b, 64);
    for (int i = 0; i < 32; i++) {
        uint32_t size = h[i] & 0x7fffu, few, whole = (size << 13) + 0x38000000u; /* the exponent's other bias */
        float small = (float)size * 0x1p-24f;
        memcpy(&few, &small, 4);
        whole += size >= 0x7c00 ? 0x38000000u : 0;
        bits[i] = (size < 0x400 ? few : whole) | (uint32_t)(h[i] & 0x8000u) << 16;
    }
    memcpy(w, bits, 128);
}

INLINE void bf16(const uint8_t *b, float *w) {
    uint16_t h[32];
    uint32_t bits[32];
    memcpy(h, b, 64);
    for (int i = 0; i < 32; i++) bits[i] = (uint32_t)h[i] << 16;
    memcpy(w, bits, 128);
}
#endif

INLINE void q4_1(const uint8_t *b, float *w) {
    float d = half(b), m = half(b + 2);
    floats q[2];
    nibbles(b + 4, 0, q);
    put(w, moved(scaled(q[0], d), m));
    put(w + 16, moved(scaled(q[1], d), m));
}

INLINE void q5_1(const uint8_t *b, float *w) {
    float d = half(b), m = half(b + 2);
    floats q[2];
    with_fifth_bits(b + 8, b + 4, 0, q);
    put(w, moved(scaled(q[0], d), m));
    put(w + 16, moved(scaled(q[1], d), m));
}

INLINE void iq4_xs(const uint8_t *b, float *w) {
    float d = half(b);
    for (int g = 0; g < 8; g++) { /* 32 elements each */
        int scale = ((b[4 + g / 2] >> 4 * (g % 2)) & 15) | ((b[2 + g / 4] >> 2 * (g % 4)) & 3) << 4;
        float s = d * (float)(scale - 32);
        bytes q = load(b + 8 + 16 * g);
        put(w + 32 * g, scaled(wide(iq4(low(q))), s));
        put(w + 32 * g + 16, scaled(wide(iq4(high(q))), s));
    }
}

/* Two bits of sixteen elements, a group: halves of 128 elements, quarters of 32, two groups each. */
INLINE bytes two_bits(const uint8_t *q, int g) {
    return (load(q + 32 * (g / 8) + 16 * (g % 2)) >> g / 2 % 4 * 2) & 3;
}

INLINE void q2_k(const uint8_t *b, float *w) {
    float d = half(b + 80), least = half(b + 82);
    for (int g = 0; g < 16; g++)
        put(w + 16 * g, moved(scaled(wide(two_bits(b + 16, g)), d * (float)(b[g] & 15)),
                              -least * (float)(b[g] >> 4)));
}

INLINE void q3_k(const uint8_t *b, float *w) {
    float d = half(b + 108);
    for (int g = 0; g < 16; g++) {
        int scale = ((b[96 + g % 8] >> 4 * (g / 8)) & 15) | ((b[104 + g % 4] >> 2 * (g / 4)) & 3) << 4;
        bytes third = (load(b + 16 * (g % 2)) >> g / 2) & 1;
        put(w + 16 * g, scaled(wide(two_bits(b + 32, g) + third * 4 - 4), d * (float)(scale - 32)));
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
            bytes both = load(q + 32 * (g / 2) + part), bits = g % 2 ? high(both) : low(both);
            if (fifth) bits |= ((load(fifth + part) >> g) & 1) << 4;
            put(w + 32 * g + part, moved(scaled(wide(bits), d * (float)scale), -dmin * (float)least));
        }
    }
}

INLINE void q4_k(const uint8_t *b, float *w) { groups_of_32(b, 0, b + 16, w); }
INLINE void q5_k(const uint8_t *b, float *w) { groups_of_32(b, b + 16, b + 48, w); }

INLINE void q6_k(const uint8_t *b, float *w) {
    float d = half(b + 208);
    for (int g = 0; g < 16; g++) { /* groups as those of two_bits; a nibble beside the two bits */
        bytes both = load(b + 64 * (g / 8) + 32 * (g / 2 % 2) + 16 * (g % 2));
        bytes bits = g / 2 % 4 < 2 ? low(both) : high(both);
        put(w + 16 * g, scaled(wide((bits | two_bits(b + 128, g) << 4) - 32), d * (float)(int8_t)b[192 + g]));
    }
}

/* Products of 32 numbers, summed to sixteen. */
INLINE floats dot(const float *x, const float *y) {
    return plus(times(load_floats(x), load_floats(y)), times(load_floats(x + 16), load_floats(y + 16)));
}

INLINE float total(floats v) {
    eight e = folded(v);
    four f[2];
    memcpy(f, &e, 32);
    f[0] += f[1];
    return (f[0][0] + f[0][2]) + (f[0][1] + f[0][3]);
}

/* NAME_add: a block times n tokens. Of one scale it is multiplied with what the block adds up to. */
#define SCALED(name)                                                                                         \
    INLINE void name(const uint8_t *b, float *w) {                                                           \
        floats q[2];                                                                                         \
        float d = half(b);                                                                                   \
        name##_integers(b, q);                                                                               \
        put(w, scaled(q[0], d));                                                                             \
        put(w + 16, scaled(q[1], d));                                                                        \
    }                                                                                                        \
    INLINE void name##_add(const uint8_t *b, const float *at, int64_t width, int n, floats *acc) {           \
        floats q[2];                                                                                         \
        float d = half(b);                                                                                   \
        name##_integers(b, q);                                                                               \
        for (int t = 0; t < n; t++, at += width)                                                             \
            acc[t] = plus(scaled(plus(times(q[0], load_floats(at)), times(q[1], load_floats(at + 16))), d),  \
                          acc[t]);                                                                           \
    }

#define OTHER(name, block)                                                                                   \
    INLINE void name##_add(const uint8_t *b, const float *at, int64_t width, int n, floats *acc) {           \
        float v[block];                                                                                      \
        name(b, v);                                                                                          \
        for (int i = 0; i < block; i += 32)                                                                  \
            for (int t = 0; t < n; t++)                                                                      \
                acc[t] = plus(acc[t], dot(v + i, at + t * width + i));                                       \
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
            floats acc[MOST];                                                                                \
            memset(acc, 0, sizeof acc);                                                                        \
            const uint8_t *b = w + r * row_bytes;                                                            \
            _Pragma("GCC unroll 4") for (const float *at = x; at < x + width; at += block, b += block_bytes) { \
                for (int i = 0; i < block_bytes; i += 64) __builtin_prefetch(b + AHEAD + i);                 \
                name##_add(b, at, width, n, acc);                                                            \
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

OTHER(f16, 32)
FORMAT(f16, 32, 64)
OTHER(bf16, 32)
FORMAT(bf16, 32, 64)
SCALED(q8_0)
FORMAT(q8_0, 32, 34)
SCALED(q4_0)
FORMAT(q4_0, 32, 18)
OTHER(q4_1, 32)
FORMAT(q4_1, 32, 20)
SCALED(q5_0)
FORMAT(q5_0, 32, 22)
OTHER(q5_1, 32)
FORMAT(q5_1, 32, 24)
SCALED(iq4_nl)
FORMAT(iq4_nl, 32, 18)
OTHER(iq4_xs, 256)
FORMAT(iq4_xs, 256, 136)
OTHER(q2_k, 256)
FORMAT(q2_k, 256, 84)
OTHER(q3_k, 256)
FORMAT(q3_k, 256, 110)
OTHER(q4_k, 256)
FORMAT(q4_k, 256, 144)
OTHER(q5_k, 256)
FORMAT(q5_k, 256, 176)
OTHER(q6_k, 256)
FORMAT(q6_k, 256, 210)
