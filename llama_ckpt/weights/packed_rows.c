/* A few rows times a weight as its file packs it: y[t][r] = sum_k x[t][k] w[r][k], float32 throughout.

   Each row of the weight is summed in sixteen strands, always in the same order, so that neither the number
   of threads nor the number of rows that are asked for at a time changes a bit. Layouts: ggml-common.h, as
   block_formats.py tells them. */

#include <stdint.h>
#include <string.h>

#define LANES 16
#define MOST 4 /* tokens at a time */
#define INLINE static inline __attribute__((always_inline))

typedef float floats __attribute__((vector_size(64)));
typedef int8_t bytes __attribute__((vector_size(16)));
typedef int32_t ints __attribute__((vector_size(64)));

INLINE floats wide(bytes q) { return __builtin_convertvector(__builtin_convertvector(q, ints), floats); }

INLINE bytes load(const uint8_t *p) {
    bytes b;
    memcpy(&b, p, 16);
#if defined(__x86_64__)
    __asm__("" : "+x"(b)); /* in one register: gcc 12 else widens what it reads byte by byte */
#endif
    return b;
}

INLINE floats load_x(const float *p) {
    floats f;
    memcpy(&f, p, 64);
    return f;
}

INLINE bytes low(bytes b) { return b & 15; }
INLINE bytes high(bytes b) { return (b >> 4) & 15; }

INLINE float half(const uint8_t *p) {
    _Float16 h;
    memcpy(&h, p, 2);
    return (float)h;
}

INLINE float total(floats v) {
    float sum[LANES];
    memcpy(sum, &v, 64);
    for (int step = LANES / 2; step; step /= 2)
        for (int i = 0; i < step; i++) sum[i] += sum[i + step];
    return sum[0];
}

/* Each adds one block's part to acc[t] for n tokens, whose rows are `width` floats apart. */

INLINE void add_q8_0(const uint8_t *b, const float *x, int64_t width, int n, floats *acc) {
    float d = half(b);
    floats q0 = wide(load(b + 2)) * d, q1 = wide(load(b + 18)) * d;
    for (int t = 0; t < n; t++, x += width) acc[t] += q0 * load_x(x) + q1 * load_x(x + 16);
}

INLINE void add_q4_0(const uint8_t *b, const float *x, int64_t width, int n, floats *acc) {
    float d = half(b);
    bytes packed = load(b + 2);
    floats q0 = wide(low(packed) - 8), q1 = wide(high(packed) - 8);
    for (int t = 0; t < n; t++, x += width) acc[t] += (q0 * load_x(x) + q1 * load_x(x + 16)) * d;
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

INLINE void add_q4_k(const uint8_t *b, const float *x, int64_t width, int n, floats *acc) {
    float d = half(b), dmin = half(b + 2);
    for (int g = 0; g < 8; g++) {
        int scale, least;
        scale_and_min(b + 4, g, &scale, &least);
        bytes p0 = load(b + 16 + g / 2 * 32), p1 = load(b + 32 + g / 2 * 32);
        float ds = d * (float)scale, dm = dmin * (float)least;
        floats q0 = wide(g & 1 ? high(p0) : low(p0)) * ds - dm, q1 = wide(g & 1 ? high(p1) : low(p1)) * ds - dm;
        const float *at = x + 32 * g;
        for (int t = 0; t < n; t++, at += width) acc[t] += q0 * load_x(at) + q1 * load_x(at + 16);
    }
}

INLINE void add_q6_k(const uint8_t *b, const float *x, int64_t width, int n, floats *acc) {
    float d = half(b + 208);
    for (int g = 0; g < 16; g++) { /* sixteen elements each: halves of 128, quarters of 32 */
        int at_half = g / 8, quarter = g / 2 % 4, part = g % 2 * 16;
        bytes l = load(b + 64 * at_half + 32 * (quarter % 2) + part);
        bytes h = load(b + 128 + 32 * at_half + part);
        bytes q = (quarter < 2 ? low(l) : high(l)) | (((h >> (2 * quarter)) & 3) << 4);
        floats w = wide(q - 32) * (d * (float)(int8_t)b[192 + g]);
        const float *at = x + 16 * g;
        for (int t = 0; t < n; t++, at += width) acc[t] += w * load_x(at);
    }
}

#define ROWS(name, add, block, block_bytes)                                                                  \
    INLINE void name##_n(const uint8_t *w, int64_t first, int64_t last, int64_t width, const float *x,       \
                         int n, float *y, int64_t out) {                                                     \
        int64_t blocks = width / block;                                                                      \
        for (int64_t r = first; r < last; r++) {                                                             \
            floats acc[MOST] = {{0}};                                                                        \
            const uint8_t *b = w + r * blocks * block_bytes;                                                 \
            _Pragma("GCC unroll 4") for (int64_t i = 0; i < blocks; i++) add(b + i * block_bytes, x + i * block, width, n, acc);     \
            for (int t = 0; t < n; t++) y[t * out + r] = total(acc[t]);                                      \
        }                                                                                                    \
    }                                                                                                        \
    void name(const uint8_t *w, int64_t first, int64_t last, int64_t width, const float *x, int64_t n,       \
              float *y, int64_t out) {                                                                       \
        for (; n >= MOST; n -= MOST, x += MOST * width, y += MOST * out)                                     \
            name##_n(w, first, last, width, x, MOST, y, out);                                                \
        if (n == 3) name##_n(w, first, last, width, x, 3, y, out);                                           \
        if (n == 2) name##_n(w, first, last, width, x, 2, y, out);                                           \
        if (n == 1) name##_n(w, first, last, width, x, 1, y, out);                                           \
    }

ROWS(q8_0, add_q8_0, 32, 34)
ROWS(q4_0, add_q4_0, 32, 18)
ROWS(q4_k, add_q4_k, 256, 144)
ROWS(q6_k, add_q6_k, 256, 210)
