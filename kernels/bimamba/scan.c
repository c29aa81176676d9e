/* The CPU kernels of bimamba: conv + SiLU and the selective scan, both directions, forward and backward.
 *
 * Plain C without any runtime: raw float32 pointers in one struct, called through ctypes. Everything is channels-last;
 * one vector holds VW neighbouring channels, one call of a block walks the whole sequence of one batch row. The
 * reversed direction walks the same memory by index. Work items are taken from an atomic counter, each writes memory
 * of its own, so results do not depend on how many threads take part.
 * States are handled sixteen at a time (the caller pads with zeros); shapes: B batch, L tokens, E channels, K taps.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#define X86 1
#endif

#if defined(__AVX512F__)
#define VW 16
#elif defined(__AVX2__)
#define VW 8
#else
#define VW 4
#endif
#define NS 16 /* states per pass */
#define LOG2E 1.44269504088896f
/* q of exp2_neg: a least-maximum fit of (2^f - 1) / f in relative error */
#define P1 6.9314697760e-01f
#define P2 2.4022242083e-01f
#define P3 5.5507337448e-02f
#define P4 9.6715128125e-03f
#define P5 1.3264727214e-03f

typedef float vf __attribute__((vector_size(VW * 4)));
typedef int32_t vi __attribute__((vector_size(VW * 4)));
#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))

typedef struct {
    int64_t B, L, E, N, K, row, groups;        /* N: states, a multiple of 16; row: floats between tokens in Bm, Cm */
    const float *xz;                           /* (B, L, 2E): u | z */
    const float *conv_w[2], *conv_b[2];        /* (K, E), (E) */
    float *u[2];                               /* (B, L, E) after conv and SiLU */
    const float *dt[2];                        /* (B, L, E) before bias and softplus */
    const float *Bm[2], *Cm[2];                /* first element of the first token's row */
    const float *A[2];                         /* (N, E), negative */
    const float *D[2], *bias[2];               /* (E) */
    float *y, *ys;                             /* (B, L, E); ys: before the gate, may be NULL in the forward */
    float *states[2];                          /* what checkpoint() says; may be NULL in the forward */
    const float *gy;                           /* (B, L, E) */
    float *dxz;                                /* (B, L, 2E) */
    float *du[2], *ddt[2];                     /* (B, L, E) */
    float *dbc[2];                             /* (groups, B, L, 2, N) */
    float *dA[2];                              /* (B, N, E) */
    float *dD[2], *dbias[2];                   /* (B, E) */
    float *dconv_w[2], *dconv_b[2];            /* (B, K, E), (B, E) */
    int64_t first, last;                       /* directions first .. last - 1, of conv forward and scan forward */
    int64_t next;                              /* the work counter */
} job_t;

int64_t bimamba_job_size(void) { return (int64_t)sizeof(job_t); }

INLINE vf splat(float x) { return x - (vf){0}; }
INLINE vf load(const float *p, int w) {
    vf v = {0};
    if (w == VW) memcpy(&v, p, sizeof v);
    else memcpy(&v, p, (size_t)w * 4);
    return v;
}
INLINE void store(float *p, vf v, int w) {
    if (w == VW) memcpy(p, &v, sizeof v);
    else memcpy(p, &v, (size_t)w * 4);
}
INLINE vf pick(vi m, vf a, vf b) { return (vf)((m & (vi)a) | (~m & (vi)b)); }
INLINE vf absolute(vf x) { return (vf)((vi)x & 0x7fffffff); }

/* 2^x for x <= 0. 2^f = 1 + f q(f) on [-1/2, 1/2], relative error 9e-8; exact at f = 0, so a slow decay stays slow. */
INLINE vf exp2_neg(vf x) {
#if VW == 16
    vf r = (vf)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    vf f = x - r;
#else
    /* Below 2^-126 the exponent trick would wrap. The order of the operands keeps NaN. */
#if VW == 8
    x = (vf)_mm256_max_ps(_mm256_set1_ps(-126.f), (__m256)x);
#else
    x = pick(x < splat(-126.f), splat(-126.f), x);
#endif
    const vf magic = splat(12582912.f); /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    vf r = x + magic;
    vf f = x - (r - magic);
#endif
    vf p = splat(P5);
    p = p * f + splat(P4);
    p = p * f + splat(P3);
    p = p * f + splat(P2);
    p = p * f + splat(P1);
    p = p * f + splat(1.f);
#if VW == 16
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)r);
#else
    return (vf)((vi)p + ((vi)r << 23));
#endif
}

/* sigmoid(x) without overflow on either side. */
INLINE vf sigmoid(vf x) {
    vf e = exp2_neg(absolute(x) * splat(-LOG2E));
    vf q = splat(1.f) / (splat(1.f) + e);
    return pick(x < splat(0.f), e * q, q);
}
/* softplus(x) = max(x, 0) + log1p(exp(-|x|)), log1p(e) = 2 artanh(e / (2 + e)): relative accuracy also for small
 * results (ln(1 + e) on the rounded sum loses them, and dt starts at 1e-3). Also gives its derivative, sigmoid(x). */
INLINE vf softplus(vf x, vf *slope) {
    vf e = exp2_neg(absolute(x) * splat(-LOG2E));
    vf s = e / (splat(2.f) + e), t = s * s;
    vf p = splat(1.f / 13);
    p = p * t + splat(1.f / 11);
    p = p * t + splat(1.f / 9);
    p = p * t + splat(1.f / 7);
    p = p * t + splat(1.f / 5);
    p = p * t + splat(1.f / 3);
    p = p * t + splat(1.f);
    vi below = x < splat(0.f);
    if (slope) {
        vf q = splat(1.f) / (splat(1.f) + e);
        *slope = pick(below, e * q, q);
    }
    return pick(below, splat(0.f), x) + splat(2.f) * s * p;
}

/* Sums over the lanes of VW vectors, as one vector whose lane i is the sum of vector i: a tree of log2(VW) levels, each
 * folds two vectors into one by two shuffles and an add. The vectors are handed over one by one, in the order for which
 * every shuffle is one cheap instruction, so few of them are alive at a time. */
#define BLOCK(j) ((j) / 4 * 4)
#define HALF_A(j) ((j) < VW / 2 ? (j) : VW / 2 + (j)) /* lower halves of a, b */
#define HALF_B(j) ((j) < VW / 2 ? 2 * BLOCK(j) + (j) % 4 : VW + 2 * BLOCK((j) - VW / 2) + (j) % 4) /* even blocks of 4 */
#define HALF_C(j) (BLOCK(j) + ((j) % 4 < 2 ? (j) % 4 : VW + (j) % 4 - 2)) /* lower pairs of each block */
#define HALF_D(j) (BLOCK(j) + ((j) % 4 < 2 ? 2 * ((j) % 4) : VW + 2 * ((j) % 4 - 2))) /* even lanes */
#define L4(F, d, o) F(o) + (d), F(o + 1) + (d), F(o + 2) + (d), F(o + 3) + (d)
#if VW == 16
#define LANES(F, d) L4(F, d, 0), L4(F, d, 4), L4(F, d, 8), L4(F, d, 12)
#elif VW == 8
#define LANES(F, d) L4(F, d, 0), L4(F, d, 4)
#else
#define LANES(F, d) L4(F, d, 0)
#endif
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, F, d) __builtin_shufflevector(a, b, LANES(F, d))
#else
#define SHUFFLE(a, b, F, d) __builtin_shuffle(a, b, (vi){LANES(F, d)})
#endif
#define FOLD(a, b, F, d) (SHUFFLE(a, b, F, 0) + SHUFFLE(a, b, F, d))

/* Which vector is the m-th to be handed over. */
INLINE int fold_order(int m) {
#if VW == 16
    return (m & 3) << 2 | m >> 2;
#elif VW == 8
    return (m & 1) << 2 | m >> 1;
#else
    return m;
#endif
}
/* Takes the m-th vector; the result is complete, and returned, at m = VW - 1. part: four vectors between the calls. */
INLINE vf fold_in(vf *part, int m, vf v) {
#if VW == 16
    if (!(m & 1)) return part[0] = v;
    v = FOLD(part[0], v, HALF_A, 8);
    m >>= 1;
#endif
#if VW >= 8
    if (!(m & 1)) return part[1] = v;
    v = FOLD(part[1], v, HALF_B, 4);
    m >>= 1;
#endif
    if (!(m & 1)) return part[2] = v;
    v = FOLD(part[2], v, HALF_C, 2);
    if (!(m & 2)) return part[3] = v;
    return FOLD(part[3], v, HALF_D, 1);
}

/* Decayed states would turn subnormal, which some CPUs handle a hundred times slower. */
INLINE unsigned flush_subnormals(void) {
#ifdef X86
    unsigned old = _mm_getcsr();
    _mm_setcsr(old | 0x8040);
    return old;
#else
    return 0;
#endif
}
INLINE void restore_subnormals(unsigned old) {
#ifdef X86
    _mm_setcsr(old);
#else
    (void)old;
#endif
}
static vf *scratch(int64_t vectors) {
    void *p = NULL;
    return posix_memalign(&p, 64, (size_t)vectors * sizeof(vf)) ? NULL : p;
}
INLINE int64_t take(job_t *j) { return __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED); }
INLINE int64_t blocks(const job_t *j) { return (j->E + VW - 1) / VW; }
INLINE int width_of(const job_t *j, int64_t e) { return j->E - e < VW ? (int)(j->E - e) : VW; }

/* A for exp2, with -inf (A_log beyond 88) as a number whose exp2 is 0 instead of NaN. */
INLINE vf rate(const float *A, int n) {
    vf v = load(A, n) * splat(LOG2E);
    return pick(v < splat(-1e30f), splat(-1e30f), v);
}

/* The sequence is walked in tiles of TILE tokens by up to SIDE neighbouring channel blocks: what is per token (softplus,
 * gate) is done for a whole tile first, which leaves the loops over states short of long dependences, and a row of the
 * tensors is touched as neighbouring cache lines. */
#define TILE 64
#define SIDE 4
int64_t bimamba_tile(void) { return TILE; }
int64_t bimamba_lanes(void) { return VW; }

INLINE int64_t tiles(const job_t *j) { return (j->L + TILE - 1) / TILE; }
/* Channel blocks of one work item: many are kinder to the TLB, few give every thread some. */
INLINE int64_t side_of(const job_t *j) {
    int64_t n = j->B * blocks(j);
    return n >= 64 ? SIDE : n >= 16 ? 2 : 1;
}
/* ---- conv + SiLU ---- */

/* Tokens are numbered in the order in which a direction sees them; from there, `back` is the distance in floats to the
 * token seen one step earlier. Before SiLU, token t: tap K-1 is the token itself, tap 0 the one seen K-1 steps earlier. */
INLINE vf conv_at(const float *x, int64_t back, const vf *w, vf bias, int K, int64_t t, int n) {
    const int k0 = t >= K - 1 ? 0 : K - 1 - (int)t;
    vf acc = bias;
#pragma GCC unroll 4
    for (int k = 0; k < K; k++)
        if (k >= k0) acc += w[k] * load(x + (K - 1 - k) * back, n);
    return acc;
}
INLINE void conv_forward_tile(const job_t *j, int64_t b, int64_t e, int n, int K, int rev, int64_t t0, int count, vf *w) {
    const int64_t E = j->E, l0 = rev ? j->L - 1 - t0 : t0, at = b * j->L + l0, back = rev ? 2 * E : -2 * E;
    const float *x = j->xz + at * 2 * E + e;
    float *out = j->u[rev] + at * E + e;
    vf bias = load(j->conv_b[rev] + e, n);
    for (int k = 0; k < K; k++) w[k] = load(j->conv_w[rev] + k * E + e, n);
    for (int t = 0; t < count; t++) {
        vf a = conv_at(x, back, w, bias, K, t0 + t, n);
        store(out, a * sigmoid(a), n);
        x -= back;
        out -= back / 2;
    }
}
int bimamba_conv_forward(job_t *j) {
    const int64_t nb = blocks(j), side = side_of(j), items = (nb + side - 1) / side;
    const int K = (int)j->K;
    int64_t i;
    vf w4[4], *w = K > 4 ? scratch(K) : w4;
    if (!w) return 1;
    unsigned old = flush_subnormals();
    while ((i = take(j)) < j->B * items) {
        const int64_t b = i / items, k0 = i % items * side, k1 = k0 + side < nb ? k0 + side : nb;
        for (int rev = (int)j->first; rev < j->last; rev++)
            for (int64_t t0 = 0; t0 < j->L; t0 += TILE)
                for (int64_t k = k0; k < k1; k++) {
                    const int n = width_of(j, k * VW), count = j->L - t0 < TILE ? (int)(j->L - t0) : TILE;
                    if (n == VW && K == 4) conv_forward_tile(j, b, k * VW, VW, 4, rev, t0, count, w);
                    else conv_forward_tile(j, b, k * VW, n, K, rev, t0, count, w);
                }
    }
    restore_subnormals(old);
    if (w != w4) free(w);
    return 0;
}
/* From the end of the tile: later holds the gradients before SiLU of the K-1 tokens seen after it, the nearest first. */
INLINE void conv_backward_tile(const job_t *j, int64_t b, int64_t e, int n, int K, int rev, int64_t t0, int count, vf *w,
                               vf *dw, vf *later, vf *dbias) {
    const int64_t E = j->E, L = j->L, l1 = rev ? L - t0 - count : t0 + count - 1, at = b * L + l1;
    const int64_t back = rev ? 2 * E : -2 * E;
    const float *x = j->xz + at * 2 * E + e, *du = j->du[rev] + at * E + e;
    float *dx = j->dxz + at * 2 * E + e;
    vf bias = load(j->conv_b[rev] + e, n), db = *dbias;
    for (int k = 0; k < K; k++) w[k] = load(j->conv_w[rev] + k * E + e, n);
    for (int64_t t = t0 + count - 1; t >= t0; t--) {
        const int k0 = t >= K - 1 ? 0 : K - 1 - (int)t;
        vf a = conv_at(x, back, w, bias, K, t, n), s = sigmoid(a);
        vf d = load(du, n) * s * (splat(1.f) + a * (splat(1.f) - s)), acc = d * w[K - 1];
        db += d;
#pragma GCC unroll 4
        for (int k = 0; k < K; k++)
            if (k >= k0) dw[k] += d * load(x + (K - 1 - k) * back, n);
#pragma GCC unroll 4
        for (int k = 0; k < K - 1; k++) acc += w[k] * later[K - 2 - k];
#pragma GCC unroll 4
        for (int k = K - 2; k > 0; k--) later[k] = later[k - 1];
        if (K > 1) later[0] = d;
        if (rev) acc += load(dx, n);
        store(dx, acc, n);
        x += back;
        dx += back;
        du += back / 2;
    }
    *dbias = db;
}
/* The same with everything in registers, for the usual four taps. */
NOINLINE void conv_backward_tile4(const job_t *j, int64_t b, int64_t e, int rev, int64_t t0, int count, vf *mem) {
    vf w[4], dw[4], later[3], dbias = mem[7];
    for (int k = 0; k < 4; k++) dw[k] = mem[k];
    for (int k = 0; k < 3; k++) later[k] = mem[4 + k];
    conv_backward_tile(j, b, e, VW, 4, rev, t0, count, w, dw, later, &dbias);
    for (int k = 0; k < 4; k++) mem[k] = dw[k];
    for (int k = 0; k < 3; k++) mem[4 + k] = later[k];
    mem[7] = dbias;
}
int bimamba_conv_backward(job_t *j) {
    const int64_t nb = blocks(j), side = side_of(j), items = (nb + side - 1) / side;
    const int K = (int)j->K;
    int64_t i;
    vf *mem = scratch((2 * SIDE + 1) * K), *w = mem + 2 * SIDE * K; /* per block: K of dw, K - 1 of later, dbias */
    if (!mem) return 1;
    unsigned old = flush_subnormals();
    while ((i = take(j)) < j->B * items) {
        const int64_t b = i / items, k0 = i % items * side, k1 = k0 + side < nb ? k0 + side : nb;
        for (int rev = 0; rev < 2; rev++) {
            for (int m = 0; m < 2 * SIDE * K; m++) mem[m] = (vf){0};
            for (int64_t t0 = (j->L - 1) / TILE * TILE; t0 >= 0; t0 -= TILE)
                for (int64_t k = k0; k < k1; k++) {
                    const int n = width_of(j, k * VW), count = j->L - t0 < TILE ? (int)(j->L - t0) : TILE;
                    vf *m = mem + (k - k0) * 2 * K;
                    if (n == VW && K == 4) conv_backward_tile4(j, b, k * VW, rev, t0, count, m);
                    else conv_backward_tile(j, b, k * VW, n, K, rev, t0, count, w, m, m + K, m + 2 * K - 1);
                }
            for (int64_t k = k0; k < k1; k++) {
                const int n = width_of(j, k * VW);
                const vf *m = mem + (k - k0) * 2 * K;
                for (int64_t c = 0; c < K; c++) store(j->dconv_w[rev] + (b * K + c) * j->E + k * VW, m[c], n);
                store(j->dconv_b[rev] + b * j->E + k * VW, m[2 * K - 1], n);
            }
        }
    }
    restore_subnormals(old);
    free(mem);
    return 0;
}

/* ---- the scan ---- */

/* The states at the end of tile c of one direction and channel block: N vectors. */
INLINE float *checkpoint(const job_t *j, int rev, int64_t b, int64_t k, int64_t c) {
    return j->states[rev] + ((b * blocks(j) + k) * (tiles(j) - 1) + c) * j->N * VW;
}

/* One tile, sixteen states: adds sum(C h) to y and leaves the last state in h. step: floats to the next token's row. */
NOINLINE void forward_tile(int count, const vf *d, const vf *dx, vf *y, vf *state, const vf *A, const float *Bm,
                           const float *Cm, int64_t step) {
    vf h[NS];
    for (int i = 0; i < NS; i++) h[i] = state[i];
    for (int t = 0; t < count; t++) {
        vf y0 = y[t], y1 = {0}, dt = d[t], in = dx[t];
#pragma GCC unroll 16
        for (int i = 0; i < NS; i++) {
            h[i] = exp2_neg(dt * A[i]) * h[i] + in * splat(Bm[i]);
            if (i & 1) y1 += h[i] * splat(Cm[i]);
            else y0 += h[i] * splat(Cm[i]);
        }
        y[t] = y0 + y1;
        Bm += step;
        Cm += step;
    }
    for (int i = 0; i < NS; i++) state[i] = h[i];
}

typedef struct {
    vf d[TILE], dx[TILE], y[TILE];
} forward_t;

INLINE void forward_begin(const job_t *j, int64_t b, int64_t e, int n, int rev, int64_t t0, int count, forward_t *m) {
    vf bias = load(j->bias[rev] + e, n), D = load(j->D[rev] + e, n);
    for (int t = 0; t < count; t++) {
        int64_t l = rev ? j->L - 1 - t0 - t : t0 + t, at = (b * j->L + l) * j->E + e;
        vf x = load(j->u[rev] + at, n), d = softplus(load(j->dt[rev] + at, n) + bias, NULL);
        m->d[t] = d;
        m->dx[t] = d * x;
        m->y[t] = D * x;
    }
}
INLINE void forward_end(const job_t *j, int64_t b, int64_t e, int n, int rev, int64_t t0, int count, forward_t *m) {
    for (int t = 0; t < count; t++) {
        int64_t l = rev ? j->L - 1 - t0 - t : t0 + t, row = b * j->L + l, at = row * j->E + e;
        if (!rev) {
            store(j->y + at, m->y[t], n);
            continue;
        }
        vf y = m->y[t] + load(j->y + at, n), z = load(j->xz + row * 2 * j->E + j->E + e, n);
        if (j->ys) store(j->ys + at, y, n);
        store(j->y + at, y * z * sigmoid(z), n);
    }
}
/* Forward over neighbouring channel blocks k0..k1 of one batch row. mem: SIDE * N states, SIDE * N rates. */
static void scan_forward_item(const job_t *j, int64_t b, int64_t k0, int64_t k1, vf *mem, forward_t *m) {
    const int64_t L = j->L, N = j->N;
    vf *h = mem, *A = mem + SIDE * N;
    for (int rev = (int)j->first; rev < j->last; rev++) {
        for (int64_t k = k0; k < k1; k++)
            for (int64_t i = 0; i < N; i++) {
                h[(k - k0) * N + i] = (vf){0};
                A[(k - k0) * N + i] = rate(j->A[rev] + i * j->E + k * VW, width_of(j, k * VW));
            }
        for (int64_t c = 0; c < tiles(j); c++) {
            const int64_t t0 = c * TILE, l0 = rev ? L - 1 - t0 : t0, at = (b * L + l0) * j->row;
            const int count = L - t0 < TILE ? (int)(L - t0) : TILE;
            for (int64_t k = k0; k < k1; k++) {
                int n = width_of(j, k * VW);
                if (n == VW) forward_begin(j, b, k * VW, VW, rev, t0, count, m + k - k0);
                else forward_begin(j, b, k * VW, n, rev, t0, count, m + k - k0);
            }
            for (int64_t s = 0; s < N; s += NS)
                for (int64_t k = k0; k < k1; k++)
                    forward_tile(count, m[k - k0].d, m[k - k0].dx, m[k - k0].y, h + (k - k0) * N + s,
                                 A + (k - k0) * N + s, j->Bm[rev] + at + s, j->Cm[rev] + at + s,
                                 rev ? -j->row : j->row);
            for (int64_t k = k0; k < k1; k++) {
                int n = width_of(j, k * VW);
                if (n == VW) forward_end(j, b, k * VW, VW, rev, t0, count, m + k - k0);
                else forward_end(j, b, k * VW, n, rev, t0, count, m + k - k0);
                if (j->states[rev] && c + 1 < tiles(j))
                    memcpy(checkpoint(j, rev, b, k, c), h + (k - k0) * N, (size_t)N * sizeof(vf));
            }
        }
    }
}
int bimamba_scan_forward(job_t *j) {
    const int64_t nb = blocks(j), side = side_of(j), items = (nb + side - 1) / side;
    int64_t i;
    vf *mem = scratch(2 * SIDE * j->N);
    if (!mem) return 1;
    unsigned old = flush_subnormals();
    forward_t m[SIDE];
    while ((i = take(j)) < j->B * items) {
        int64_t k0 = i % items * side;
        scan_forward_item(j, i / items, k0, k0 + side < nb ? k0 + side : nb, mem, m);
    }
    restore_subnormals(old);
    free(mem);
    return 0;
}

typedef struct {
    vf x[TILE], d[TILE], slope[TILE], dx[TILE], gs[TILE]; /* gs: the gradient past the gate */
    vf from_b[TILE], from_a[TILE];                        /* sums over states */
} backward_t;

INLINE void backward_begin(const job_t *j, int64_t b, int64_t e, int n, int rev, int64_t t0, int count, backward_t *m) {
    vf bias = load(j->bias[rev] + e, n);
    for (int t = 0; t < count; t++) {
        int64_t l = rev ? j->L - 1 - t0 - t : t0 + t, row = b * j->L + l, at = row * j->E + e, half = row * 2 * j->E + j->E + e;
        vf x = load(j->u[rev] + at, n), d = softplus(load(j->dt[rev] + at, n) + bias, m->slope + t);
        vf z = load(j->xz + half, n), q = sigmoid(z), gy = load(j->gy + at, n);
        m->x[t] = x;
        m->d[t] = d;
        m->dx[t] = d * x;
        m->gs[t] = gy * z * q;
        m->from_b[t] = m->from_a[t] = (vf){0};
        if (!rev) store(j->dxz + half, gy * load(j->ys + at, n) * q * (splat(1.f) + z * (splat(1.f) - q)), n);
    }
}
/* One tile, sixteen states, forward again from the state at its start: the decays, and the states before each step. */
NOINLINE void states_tile(int count, const vf *d, const vf *dx, const float *start, const vf *A, const float *Bm,
                          int64_t step, vf *ka, vf *kh) {
    vf h[NS];
    for (int i = 0; i < NS; i++) h[i] = start ? load(start + i * VW, VW) : (vf){0};
    for (int t = 0; t < count; t++) {
        vf dt = d[t], in = dx[t];
#pragma GCC unroll 16
        for (int i = 0; i < NS; i++) {
            vf a = exp2_neg(dt * A[i]);
            ka[i] = a;
            kh[i] = h[i];
            h[i] = a * h[i] + in * splat(Bm[i]);
        }
        Bm += step;
        ka += NS;
        kh += NS;
    }
    for (int i = 0; i < NS; i++) kh[i] = h[i];
}
/* The same tile from its end. state: gradient of the state, already decayed by the step after it; dA: sums. out: the
 * sums over channels of the last token's B gradient, those of C follow N floats later. */
NOINLINE void backward_tile(int count, backward_t *m, const vf *ka, const vf *kh, vf *state, vf *dA, const vf *A,
                            const float *Bm, const float *Cm, int64_t step, float *out, int64_t out_step, int64_t N,
                            int add) {
    vf g[NS];
    for (int i = 0; i < NS; i++) g[i] = state[i];
    for (int t = count - 1; t >= 0; t--) {
        vf d = m->d[t], dy = m->gs[t], dx = m->dx[t], from_b = m->from_b[t], from_a = m->from_a[t];
        const vf *a = ka + t * NS, *h = kh + t * NS;
#pragma GCC unroll 4
        for (int r = 0; r < NS; r += VW) {
            vf part_b[4], part_c[4], sb, sc;
#pragma GCC unroll 16
            for (int v = 0; v < VW; v++) {
                const int i = r + fold_order(v);
                vf dh = g[i] + dy * splat(Cm[i]);
                from_b += dh * splat(Bm[i]);
                sb = fold_in(part_b, v, dx * dh);
                sc = fold_in(part_c, v, dy * h[NS + i]);
                g[i] = dh * a[i];
                vf w = g[i] * h[i]; /* d/d(delta A) */
                from_a += w * A[i];
                dA[i] += w * d;
            }
            if (add) {
                sb += load(out + r, VW);
                sc += load(out + N + r, VW);
            }
            store(out + r, sb, VW);
            store(out + N + r, sc, VW);
        }
        m->from_b[t] = from_b;
        m->from_a[t] = from_a;
        Bm -= step;
        Cm -= step;
        out -= out_step;
    }
    for (int i = 0; i < NS; i++) state[i] = g[i];
}
INLINE void backward_end(const job_t *j, int64_t b, int64_t e, int n, int rev, int64_t t0, int count, backward_t *m,
                         vf *sums) {
    vf D = load(j->D[rev] + e, n), dbias = sums[0], dD = sums[1];
    for (int t = 0; t < count; t++) {
        int64_t l = rev ? j->L - 1 - t0 - t : t0 + t, at = (b * j->L + l) * j->E + e;
        /* A holds a factor log2(e) for exp2 */
        vf dd = (m->from_b[t] * m->x[t] + m->from_a[t] * splat(0.693147180559945f)) * m->slope[t];
        dbias += dd;
        dD += m->gs[t] * m->x[t];
        store(j->ddt[rev] + at, dd, n);
        store(j->du[rev] + at, m->from_b[t] * m->d[t] + m->gs[t] * D, n);
    }
    sums[0] = dbias;
    sums[1] = dD;
}
/* Backward over neighbouring channel blocks k0..k1 of one batch row: ys and the states of the forward are there. */
static void scan_backward_item(const job_t *j, int64_t b, int64_t k0, int64_t k1, int64_t group, int add, vf *mem,
                               backward_t *m) {
    const int64_t L = j->L, E = j->E, N = j->N;
    vf *A = mem, *g = A + SIDE * N, *dA = g + SIDE * N, *ka = dA + SIDE * N, *kh = ka + TILE * NS, sums[SIDE][2];
    for (int rev = 0; rev < 2; rev++) {
        const int64_t step = rev ? -j->row : j->row, out_step = rev ? -2 * N : 2 * N;
        for (int64_t k = 0; k < k1 - k0; k++) {
            sums[k][0] = sums[k][1] = (vf){0};
            for (int64_t i = 0; i < N; i++) {
                g[k * N + i] = dA[k * N + i] = (vf){0};
                A[k * N + i] = rate(j->A[rev] + i * E + (k0 + k) * VW, width_of(j, (k0 + k) * VW));
            }
        }
        for (int64_t c = tiles(j) - 1; c >= 0; c--) {
            const int64_t t0 = c * TILE;
            const int count = L - t0 < TILE ? (int)(L - t0) : TILE;
            const int64_t l0 = rev ? L - 1 - t0 : t0, l1 = rev ? l0 - count + 1 : l0 + count - 1;
            for (int64_t k = k0; k < k1; k++) {
                int n = width_of(j, k * VW);
                if (n == VW) backward_begin(j, b, k * VW, VW, rev, t0, count, m + k - k0);
                else backward_begin(j, b, k * VW, n, rev, t0, count, m + k - k0);
            }
            for (int64_t s = 0; s < N; s += NS)
                for (int64_t k = 0; k < k1 - k0; k++) {
                    const int64_t at = k * N + s;
                    states_tile(count, m[k].d, m[k].dx, c ? checkpoint(j, rev, b, k0 + k, c - 1) + s * VW : NULL, A + at,
                                j->Bm[rev] + (b * L + l0) * j->row + s, step, ka, kh);
                    backward_tile(count, m + k, ka, kh, g + at, dA + at, A + at,
                                  j->Bm[rev] + (b * L + l1) * j->row + s, j->Cm[rev] + (b * L + l1) * j->row + s, step,
                                  j->dbc[rev] + ((group * j->B + b) * L + l1) * 2 * N + s, out_step, N, add || k);
                }
            for (int64_t k = k0; k < k1; k++) {
                int n = width_of(j, k * VW);
                if (n == VW) backward_end(j, b, k * VW, VW, rev, t0, count, m + k - k0, sums[k - k0]);
                else backward_end(j, b, k * VW, n, rev, t0, count, m + k - k0, sums[k - k0]);
            }
        }
        for (int64_t k = 0; k < k1 - k0; k++) {
            int64_t e = (k0 + k) * VW;
            int n = width_of(j, e);
            for (int64_t i = 0; i < N; i++) store(j->dA[rev] + (b * N + i) * E + e, dA[k * N + i], n);
            store(j->dbias[rev] + b * E + e, sums[k][0], n);
            store(j->dD[rev] + b * E + e, sums[k][1], n);
        }
    }
}
/* A work item is a batch row and a group of channel blocks: the sums over channels (dB, dC) run in a fixed order inside
 * the group, and the caller adds the groups in order. */
int bimamba_scan_backward(job_t *j) {
    const int64_t nb = blocks(j), G = j->groups;
    int64_t i;
    vf *mem = scratch(3 * SIDE * j->N + (2 * TILE + 1) * NS);
    if (!mem) return 1;
    unsigned old = flush_subnormals();
    backward_t m[SIDE];
    while ((i = take(j)) < j->B * G) {
        const int64_t b = i / G, group = i % G, k0 = group * nb / G, k1 = (group + 1) * nb / G;
        for (int64_t k = k0; k < k1; k += SIDE)
            scan_backward_item(j, b, k, k + SIDE < k1 ? k + SIDE : k1, group, k > k0, mem, m);
    }
    restore_subnormals(old);
    free(mem);
    return 0;
}
