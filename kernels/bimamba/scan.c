/* The CPU kernels of bimamba, forward and backward: conv + SiLU, the projections x_proj and dt_proj, the selective scan,
 * the gate.
 *
 * Plain C without any runtime: raw float32 pointers in one struct, called through ctypes. Everything is channels-last;
 * one vector holds VW neighbouring channels, the reversed direction walks the same memory by index. What is cheap is
 * computed again wherever it is needed (the conv, delta): a tile of tokens by a set of channel blocks stays in the cache,
 * and of all intermediates only `low` ever goes to memory, in the backward also the gradient of u. Work items are taken
 * from an atomic counter, each writes memory of its own, so results do not depend on how many threads take part.
 * States are handled sixteen at a time (padded with zeros); shapes: B batch, L tokens, E channels, K taps, R rank of delta.
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
/* q of exp2_of: a least-maximum fit of (2^f - 1) / f in relative error */
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
    int64_t B, L, E, K, R, N, states;          /* N: states of the model; states: N, a multiple of 16 */
    int64_t row;                               /* floats of a row of low: B (states) | C (states) | delta (R, padded) */
    int64_t groups, parts;                     /* of channel blocks, of batch rows: what the backward's sums are cut into */
    int64_t threads;                           /* how many take part */
    const float *xz;                           /* (B, L, 2E): u | z */
    const float *conv_w[2], *conv_b[2];        /* (K, E), (E) */
    const float *x_proj[2];                    /* (R + 2N, E), rows delta | B | C */
    const float *dt_proj[2], *bias[2];         /* (E, R), (E) */
    const float *A[2], *D[2];                  /* (E, N), negative; (E) */
    float *packed[2];                          /* (blocks * VW, row): x_proj transposed, its columns in the order of low */
    float *low[2];                             /* (B, L, row) */
    float *y, *ys;                             /* (B, L, E); ys: before the gate, may be NULL in the forward */
    float *ends[2];                            /* what checkpoint() says; may be NULL in the forward */
    const float *gy;                           /* (B, L, E) */
    float *dxz;                                /* (B, L, 2E) */
    float *du[2];                              /* (B, L, E), without what comes through x_proj */
    float *dlow[2];                            /* (groups, B, L, row); the conv's backward wants their sum in the first */
    float *dx_proj[2];                         /* (parts, row, E), rows in the order of low */
    float *ddt_proj[2];                        /* (parts, R, E) */
    float *dA[2];                              /* (parts, states, E) */
    float *dD[2], *dbias[2];                   /* (parts, E) */
    float *dconv_w[2], *dconv_b[2];            /* (parts, K, E), (parts, E) */
    int64_t next;                              /* the work counter */
    int64_t failed;                            /* set where a thread had no memory for its scratch space */
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

/* 2^x for x < 127. 2^f = 1 + f q(f) on [-1/2, 1/2], relative error 9e-8; exact at f = 0, so a slow decay stays slow. */
INLINE vf exp2_of(vf x) {
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

/* 1 / (1 + 2^(-x log2(e))): 2^126 is as good as infinity here, and 1 + 2^-126 is 1. */
INLINE vf sigmoid(vf x) {
    vf t = x * splat(-LOG2E);
#if VW == 16
    t = (vf)_mm512_min_ps(_mm512_set1_ps(126.f), (__m512)t); /* this order of operands keeps NaN */
#elif VW == 8
    t = (vf)_mm256_min_ps(_mm256_set1_ps(126.f), (__m256)t);
#else
    t = pick(t > splat(126.f), splat(126.f), t);
#endif
    return splat(1.f) / (splat(1.f) + exp2_of(t));
}
/* softplus(x) = max(x, 0) + log1p(exp(-|x|)), log1p(e) = 2 artanh(e / (2 + e)): relative accuracy also for small
 * results (ln(1 + e) on the rounded sum loses them, and dt starts at 1e-3). Also gives its derivative, sigmoid(x). */
INLINE vf softplus(vf x, vf *slope) {
    vf e = exp2_of(absolute(x) * splat(-LOG2E));
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
INLINE void fail(job_t *j) { __atomic_store_n(&j->failed, 1, __ATOMIC_RELAXED); }
INLINE int64_t take(job_t *j) { return __atomic_fetch_add(&j->next, 1, __ATOMIC_RELAXED); }
INLINE int64_t blocks(const job_t *j) { return (j->E + VW - 1) / VW; }
INLINE int width_of(const job_t *j, int64_t e) { return j->E - e < VW ? (int)(j->E - e) : VW; }

/* The sequence is walked in tiles of TILE tokens by a set of up to SIDE neighbouring channel blocks. Arrays of a tile and a
 * set are rows of tokens, SIDE vectors each. */
#define TILE 64
#define SIDE 4
int64_t bimamba_tile(void) { return TILE; }
int64_t bimamba_lanes(void) { return VW; }

/* Rows of the large tensors are pages apart, which no hardware prefetcher follows: while one block of a tile is handled,
 * what the next one needs is fetched. Addresses beyond the tensors do no harm. */
#define PREFETCH(p) __builtin_prefetch(p)

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t tiles(const job_t *j) { return (j->L + TILE - 1) / TILE; }
INLINE int tile_count(const job_t *j, int64_t t0) { return (int)least(TILE, j->L - t0); }
/* Tokens are numbered in the order in which a direction sees them. */
INLINE int64_t token(const job_t *j, int rev, int64_t t) { return rev ? j->L - 1 - t : t; }

typedef struct {
    int64_t k0; /* the first channel block */
    int n;      /* blocks, at most SIDE */
} set_t;
/* `blocks` from `first` on in sets of one size, or one less. */
INLINE int64_t sets_of(int64_t count, int64_t side) { return (count + side - 1) / side; }
INLINE set_t set_at(int64_t first, int64_t count, int64_t sets, int64_t i) {
    int64_t k0 = i * count / sets, k1 = (i + 1) * count / sets;
    return (set_t){first + k0, (int)(k1 - k0)};
}
/* Sets of a batch row where each is a work item: wide ones share loads, narrow ones keep every thread busy to the end. No
 * result depends on it. */
INLINE int64_t sets_for(const job_t *j, int64_t rows) {
    int64_t best = 0, least_time = 0;
    for (int64_t side = SIDE; side > 0; side--) {
        const int64_t sets = sets_of(blocks(j), side), time = (rows * sets + j->threads - 1) / j->threads * (10 * side + 3);
        if (best && time >= least_time) continue;
        best = sets;
        least_time = time;
    }
    return best;
}

/* ---- products of a tile: c (+)= a b in registers, MR rows by NV vectors at a time ---- */

typedef struct {
    int M, K, V; /* rows, depth, vectors of a row of b and c */
    const float *a, *b;
    float *c;
    int64_t am, ak, bk, cm; /* floats from one row or step in depth to the next */
    int add;
} product_t;
INLINE void product_block(const product_t *p, int m0, int v0, int MR, int NV) {
    const int K = p->K;
    const int64_t ak = p->ak, bk = p->bk;
    const float *a[8], *b = p->b + v0 * VW;
    vf acc[8][5];
    /* rows past the last are computed from it, and not stored */
#pragma GCC unroll 8
    for (int m = 0; m < MR; m++) {
        a[m] = p->a + least(m0 + m, p->M - 1) * p->am;
#pragma GCC unroll 5
        for (int v = 0; v < NV; v++) acc[m][v] = (vf){0};
    }
    for (int64_t k = 0, at = 0; k < K; k++, at += ak, b += bk) {
        vf w[5];
#pragma GCC unroll 5
        for (int v = 0; v < NV; v++) w[v] = load(b + v * VW, VW);
#pragma GCC unroll 8
        for (int m = 0; m < MR; m++) {
            vf x = splat(a[m][at]);
#pragma GCC unroll 5
            for (int v = 0; v < NV; v++) acc[m][v] += x * w[v];
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < MR; m++) {
        if (m0 + m >= p->M) return;
        float *c = p->c + (m0 + m) * p->cm + v0 * VW;
#pragma GCC unroll 5
        for (int v = 0; v < NV; v++) store(c + v * VW, p->add ? load(c + v * VW, VW) + acc[m][v] : acc[m][v], VW);
    }
}
#define PRODUCT(MR, NV)                                                           \
    NOINLINE void product_##NV(const product_t *p, int v0) {                      \
        for (int m0 = 0; m0 < p->M; m0 += MR) product_block(p, m0, v0, MR, NV);   \
    }
#if VW == 16 /* of 32 registers; the others have to do with 16 */
#define WIDEST 5
PRODUCT(8, 1)
PRODUCT(8, 2)
PRODUCT(8, 3)
PRODUCT(6, 4)
PRODUCT(5, 5)
#else
#define WIDEST 2
PRODUCT(6, 1)
PRODUCT(4, 2)
#endif
static void product(product_t p) {
    for (int v = 0; v < p.V;) {
        const int left = p.V - v, n = left < WIDEST ? left : WIDEST;
        if (n == 1) product_1(&p, v);
        if (n == 2) product_2(&p, v);
#if VW == 16
        if (n == 3) product_3(&p, v);
        if (n == 4) product_4(&p, v);
        if (n == 5) product_5(&p, v);
#endif
        v += n;
    }
}

/* ---- conv + SiLU ---- */

/* `back` is the distance in floats to the token seen one step earlier. Before SiLU, token t: tap K-1 is the token itself,
 * tap 0 the one seen K-1 steps earlier. */
INLINE vf conv_at(const float *x, int64_t back, const vf *w, vf bias, int K, int64_t t, int n) {
    const int k0 = t >= K - 1 ? 0 : K - 1 - (int)t;
    vf acc = bias;
#pragma GCC unroll 4
    for (int k = 0; k < K; k++)
        if (k >= k0) acc += w[k] * load(x + (K - 1 - k) * back, n);
    return acc;
}
INLINE void conv_block(const job_t *j, int64_t b, int64_t e, int n, int K, int rev, int64_t t0, int count,
                       int64_t next, vf *w, vf *u, vf *slope) {
    const int64_t E = j->E, back = rev ? 2 * E : -2 * E;
    const float *x = j->xz + (b * j->L + token(j, rev, t0)) * 2 * E + e;
    vf bias = load(j->conv_b[rev] + e, n);
    for (int k = 0; k < K; k++) w[k] = load(j->conv_w[rev] + k * E + e, n);
    for (int t = 0; t < count; t++) {
        PREFETCH(x + next);
        vf a = conv_at(x, back, w, bias, K, t0 + t, n), s = sigmoid(a);
        u[t * SIDE] = a * s;
        if (slope) slope[t * SIDE] = s * (splat(1.f) + a * (splat(1.f) - s));
        x -= back;
    }
}
NOINLINE void conv_block4(const job_t *j, int64_t b, int64_t e, int rev, int64_t t0, int count, int64_t next, vf *u,
                          vf *slope) {
    vf w[4];
    if (slope) conv_block(j, b, e, VW, 4, rev, t0, count, next, w, u, slope);
    else conv_block(j, b, e, VW, 4, rev, t0, count, next, w, u, NULL);
}
/* u of a tile and a set, and where wanted the derivative of the SiLU; channels past the last are 0. turn: tokens from this
 * tile to the one that will be wanted next; taps: K vectors. */
static void conv_tile(const job_t *j, int64_t b, set_t s, int rev, int64_t t0, int count, int64_t turn, vf *taps, vf *u,
                      vf *slope) {
    const int64_t next_tile = (rev ? -turn : turn) * 2 * j->E - (s.n - 1) * VW;
    for (int k = 0; k < s.n; k++) {
        const int64_t e = (s.k0 + k) * VW;
        const int n = width_of(j, e);
        const int64_t next = turn && k + 1 == s.n ? next_tile : VW;
        vf *to = slope ? slope + k : NULL;
        if (n == VW && j->K == 4) conv_block4(j, b, e, rev, t0, count, next, u + k, to);
        else conv_block(j, b, e, n, (int)j->K, rev, t0, count, next, taps, u + k, to);
    }
}

/* ---- the projections ---- */

/* The row of x_proj behind column c of low, -1 behind the padding. */
INLINE int64_t source(const job_t *j, int64_t c) {
    if (c < j->states) return c < j->N ? j->R + c : -1;
    c -= j->states;
    if (c < j->states) return c < j->N ? j->R + j->N + c : -1;
    c -= j->states;
    return c < j->R ? c : -1;
}
/* Work items: directions by channel blocks. */
void bimamba_pack(job_t *j) {
    int64_t i, *from = malloc((size_t)j->row * sizeof *from);
    if (!from) return fail(j);
    for (int64_t c = 0; c < j->row; c++) from[c] = source(j, c);
    while ((i = take(j)) < 2 * blocks(j)) {
        const int64_t rev = i / blocks(j), e = i % blocks(j) * VW;
        const float *x = j->x_proj[rev] + e;
        float *to = j->packed[rev] + e * j->row;
        for (int v = 0; v < VW; v++)
            for (int64_t c = 0; c < j->row; c++) *to++ = from[c] >= 0 && e + v < j->E ? x[from[c] * j->E + v] : 0;
    }
    free(from);
}
/* low = x_proj u. Work items: directions by batch rows by tiles. */
void bimamba_project(job_t *j) {
    const int64_t nb = blocks(j), sets = sets_of(nb, SIDE), row = j->row;
    int64_t i;
    vf *taps = scratch(j->K + TILE * SIDE), *u = taps + j->K;
    if (!taps) return fail(j);
    unsigned old = flush_subnormals();
    while ((i = take(j)) < 2 * j->B * tiles(j)) {
        const int64_t t0 = i % tiles(j) * TILE, b = i / tiles(j) % j->B;
        const int rev = (int)(i / tiles(j) / j->B), count = tile_count(j, t0);
        for (int64_t q = 0; q < sets; q++) {
            const set_t s = set_at(0, nb, sets, q);
            conv_tile(j, b, s, rev, t0, count, 0, taps, u, NULL);
            product((product_t){.M = count, .K = s.n * VW, .V = (int)(row / VW), .add = q > 0,
                                .a = (float *)u, .am = SIDE * VW, .ak = 1,
                                .b = j->packed[rev] + s.k0 * VW * row, .bk = row,
                                .c = j->low[rev] + (b * j->L + token(j, rev, t0)) * row, .cm = rev ? -row : row});
        }
    }
    restore_subnormals(old);
    free(taps);
}
/* What delta needs of a set: dt_proj transposed, R rows of SIDE vectors. */
static void pack_dt(const job_t *j, set_t s, int rev, vf *to) {
    for (int64_t r = 0; r < j->R; r++)
        for (int k = 0; k < s.n; k++) {
            const int64_t e = (s.k0 + k) * VW;
            vf v = {0};
            for (int i = 0; i < width_of(j, e); i++) v[i] = j->dt_proj[rev][(e + i) * j->R + r];
            to[r * SIDE + k] = v;
        }
}
/* delta of a tile and a set before bias and softplus. */
static void delta_tile(const job_t *j, int64_t b, set_t s, int rev, int64_t t0, int count, const vf *weight, vf *delta) {
    product((product_t){.M = count, .K = (int)j->R, .V = s.n,
                        .a = j->low[rev] + (b * j->L + token(j, rev, t0)) * j->row + 2 * j->states,
                        .am = rev ? -j->row : j->row, .ak = 1, .b = (float *)weight, .bk = SIDE * VW,
                        .c = (float *)delta, .cm = SIDE * VW});
}

/* ---- the scan ---- */

/* The states at the end of tile c of one direction and channel block. */
INLINE float *checkpoint(const job_t *j, int rev, int64_t b, int64_t k, int64_t c) {
    return j->ends[rev] + ((b * blocks(j) + k) * (tiles(j) - 1) + c) * j->states * VW;
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
            h[i] = exp2_of(dt * A[i]) * h[i] + in * splat(Bm[i]);
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

INLINE void forward_begin(const job_t *j, int64_t b, int64_t e, int n, int rev, int64_t t0, int count, const vf *u,
                          const vf *delta, forward_t *m) {
    vf bias = load(j->bias[rev] + e, n), D = load(j->D[rev] + e, n);
    for (int t = 0; t < count; t++) {
        const int64_t row = b * j->L + token(j, rev, t0 + t);
        PREFETCH(j->y + row * j->E + e);
        if (rev) PREFETCH(j->xz + (2 * row + 1) * j->E + e);
        vf x = u[t * SIDE], d = softplus(delta[t * SIDE] + bias, NULL);
        m->d[t] = d;
        m->dx[t] = d * x;
        m->y[t] = D * x;
    }
}
INLINE void forward_end(const job_t *j, int64_t b, int64_t e, int n, int rev, int64_t t0, int count, const forward_t *m) {
    for (int t = 0; t < count; t++) {
        int64_t row = b * j->L + token(j, rev, t0 + t), at = row * j->E + e;
        if (!rev) {
            store(j->y + at, m->y[t], n);
            continue;
        }
        vf y = m->y[t] + load(j->y + at, n), z = load(j->xz + row * 2 * j->E + j->E + e, n);
        if (j->ys) store(j->ys + at, y, n);
        store(j->y + at, y * z * sigmoid(z), n);
    }
}
/* A of a set for exp2: SIDE rows of states, -inf (A_log beyond 88) as a number whose exp2 is 0 instead of NaN. */
static void rates(const job_t *j, set_t s, int rev, vf *A) {
    for (int k = 0; k < s.n; k++)
        for (int64_t i = 0; i < j->states; i++) {
            const int64_t e = (s.k0 + k) * VW;
            vf v = {0};
            for (int c = 0; c < width_of(j, e) && i < j->N; c++) v[c] = j->A[rev][(e + c) * j->N + i] * LOG2E;
            A[k * j->states + i] = pick(v < splat(-1e30f), splat(-1e30f), v);
        }
}
/* Work items: batch rows by sets; each walks both directions, the second adds to what the first wrote. */
void bimamba_scan_forward(job_t *j) {
    const int64_t N = j->states, sets = sets_for(j, j->B);
    int64_t i;
    vf *h = scratch(2 * SIDE * N + j->R * SIDE + j->K + 2 * TILE * SIDE), *A = h + SIDE * N, *weight = A + SIDE * N;
    vf *taps = weight + j->R * SIDE, *u = taps + j->K, *delta = u + TILE * SIDE;
    if (!h) return fail(j);
    unsigned old = flush_subnormals();
    forward_t m[SIDE];
    while ((i = take(j)) < j->B * sets) {
        const int64_t b = i / sets;
        const set_t s = set_at(0, blocks(j), sets, i % sets);
        for (int rev = 0; rev < 2; rev++) {
            rates(j, s, rev, A);
            pack_dt(j, s, rev, weight);
            for (int64_t v = 0; v < SIDE * N; v++) h[v] = (vf){0};
            for (int64_t c = 0; c < tiles(j); c++) {
                const int64_t t0 = c * TILE;
                const int count = tile_count(j, t0);
                const float *low = j->low[rev] + (b * j->L + token(j, rev, t0)) * j->row;
                conv_tile(j, b, s, rev, t0, count, TILE, taps, u, NULL);
                delta_tile(j, b, s, rev, t0, count, weight, delta);
                for (int k = 0; k < s.n; k++) {
                    const int64_t e = (s.k0 + k) * VW;
                    forward_begin(j, b, e, width_of(j, e), rev, t0, count, u + k, delta + k, m + k);
                    for (int64_t r = 0; r < N; r += NS)
                        forward_tile(count, m[k].d, m[k].dx, m[k].y, h + k * N + r, A + k * N + r, low + r, low + N + r,
                                     rev ? -j->row : j->row);
                    if (j->ends[rev] && c + 1 < tiles(j))
                        memcpy(checkpoint(j, rev, b, s.k0 + k, c), h + k * N, (size_t)N * sizeof(vf));
                }
                for (int k = 0; k < s.n; k++) {
                    const int64_t e = (s.k0 + k) * VW;
                    if (width_of(j, e) == VW) forward_end(j, b, e, VW, rev, t0, count, m + k);
                    else forward_end(j, b, e, width_of(j, e), rev, t0, count, m + k);
                }
            }
        }
    }
    restore_subnormals(old);
    free(h);
}

/* ---- backward ---- */

typedef struct {
    vf x[TILE], d[TILE], slope[TILE], dx[TILE], gs[TILE]; /* gs: the gradient past the gate */
    vf from_b[TILE], from_a[TILE];                        /* sums over states */
} backward_t;

/* rows, channels: from an element to the one that the next block to be handled wants in its place. */
INLINE void backward_begin(const job_t *j, int64_t b, int64_t e, int n, int rev, int64_t t0, int count, int64_t rows,
                           int64_t channels, const vf *u, const vf *delta, backward_t *m) {
    vf bias = load(j->bias[rev] + e, n);
    for (int t = 0; t < count; t++) {
        int64_t row = b * j->L + token(j, rev, t0 + t), at = row * j->E + e, half = row * 2 * j->E + j->E + e;
        const int64_t next = (row + rows) * j->E + e + channels;
        PREFETCH(j->gy + next);
        PREFETCH(j->xz + next + (row + rows + 1) * j->E);
        if (!rev) PREFETCH(j->ys + next);
        if (!rev) PREFETCH(j->dxz + next + (row + rows + 1) * j->E);
        PREFETCH(j->du[rev] + next);
        vf x = u[t * SIDE], d = softplus(delta[t * SIDE] + bias, m->slope + t);
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
            vf a = exp2_of(dt * A[i]);
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
                            const float *Bm, const float *Cm, int64_t step, float *out, int64_t N, int add) {
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
        out -= step;
    }
    for (int i = 0; i < NS; i++) state[i] = g[i];
}
/* ddelta: the gradient of delta before softplus and bias. */
INLINE void backward_end(const job_t *j, int64_t b, int64_t e, int n, int rev, int64_t t0, int count, backward_t *m,
                         vf *ddelta, vf *sums) {
    vf D = load(j->D[rev] + e, n), dbias = sums[0], dD = sums[1];
    for (int t = 0; t < count; t++) {
        int64_t at = (b * j->L + token(j, rev, t0 + t)) * j->E + e;
        /* A holds a factor log2(e) for exp2 */
        vf dd = (m->from_b[t] * m->x[t] + m->from_a[t] * splat(0.693147180559945f)) * m->slope[t];
        dbias += dd;
        dD += m->gs[t] * m->x[t];
        ddelta[t * SIDE] = dd;
        store(j->du[rev] + at, m->from_b[t] * m->d[t] + m->gs[t] * D, n);
    }
    sums[0] = dbias;
    sums[1] = dD;
}
INLINE void store_set(const job_t *j, set_t s, float *to, const vf *from, int64_t stride) {
    for (int k = 0; k < s.n; k++) {
        const int64_t e = (s.k0 + k) * VW;
        store(to + e, from[k * stride], width_of(j, e));
    }
}
/* The memory of one thread of the scan's backward. */
typedef struct {
    vf *A, *g, *dA;             /* SIDE by states */
    vf *ka, *kh;                /* TILE and TILE + 1 rows of NS */
    vf *taps;                   /* K */
    vf *weight, *ddt_proj;      /* R by SIDE: dt_proj transposed, and its gradient */
    vf *across;                 /* SIDE * VW by the vectors of R: dt_proj, for the gradient of low */
    vf *u, *delta;              /* TILE by SIDE */
    vf sums[2 * SIDE];          /* of dbias and dD, by block */
    backward_t m[SIDE];
} scan_backward_t;

/* One batch row, one set, one direction: ys, low and the states of the forward are there. dlow: of this group. */
static void scan_backward_set(const job_t *j, int64_t b, set_t s, int rev, float *dlow, int add, scan_backward_t *w) {
    const int64_t N = j->states, step = rev ? -j->row : j->row;
    backward_t *m = w->m;
    for (int64_t v = 0; v < SIDE * N; v++) w->g[v] = (vf){0};
    for (int64_t c = tiles(j) - 1; c >= 0; c--) {
        const int64_t t0 = c * TILE;
        const int count = tile_count(j, t0);
        const int64_t first = b * j->L + token(j, rev, t0), last = b * j->L + token(j, rev, t0 + count - 1);
        const float *low = j->low[rev] + first * j->row, *low_last = j->low[rev] + last * j->row;
        for (int64_t v = 0; c && v < s.n * N; v++)
            PREFETCH(checkpoint(j, rev, b, s.k0 + v / N, c - 1) + v % N * VW);
        conv_tile(j, b, s, rev, t0, count, -TILE, w->taps, w->u, NULL);
        delta_tile(j, b, s, rev, t0, count, w->weight, w->delta);
        for (int k = 0; k < s.n; k++) {
            const int64_t e = (s.k0 + k) * VW;
            const int n = width_of(j, e);
            const int64_t rows = k + 1 < s.n ? 0 : rev ? TILE : -TILE, channels = k + 1 < s.n ? VW : (1 - s.n) * VW;
            if (n == VW) backward_begin(j, b, e, VW, rev, t0, count, rows, channels, w->u + k, w->delta + k, m + k);
            else backward_begin(j, b, e, n, rev, t0, count, rows, channels, w->u + k, w->delta + k, m + k);
            for (int64_t r = 0; r < N; r += NS) {
                const int64_t at = k * N + r;
                states_tile(count, m[k].d, m[k].dx, c ? checkpoint(j, rev, b, s.k0 + k, c - 1) + r * VW : NULL,
                            w->A + at, low + r, step, w->ka, w->kh);
                backward_tile(count, m + k, w->ka, w->kh, w->g + at, w->dA + at, w->A + at, low_last + r,
                              low_last + N + r, step, dlow + last * j->row + r, N, add || k);
            }
            if (n == VW) backward_end(j, b, e, VW, rev, t0, count, m + k, w->delta + k, w->sums + 2 * k);
            else backward_end(j, b, e, n, rev, t0, count, m + k, w->delta + k, w->sums + 2 * k);
        }
        const int64_t wide = sets_of(j->R, VW);
        product((product_t){.M = count, .K = s.n * VW, .V = (int)wide, .add = add,
                            .a = (float *)w->delta, .am = SIDE * VW, .ak = 1, .b = (float *)w->across, .bk = wide * VW,
                            .c = dlow + first * j->row + 2 * N, .cm = step});
        product((product_t){.M = (int)j->R, .K = count, .V = s.n, .add = 1,
                            .a = low + 2 * N, .am = 1, .ak = step, .b = (float *)w->delta, .bk = SIDE * VW,
                            .c = (float *)w->ddt_proj, .cm = SIDE * VW});
    }
}
/* Work items: parts of the batch by groups of channel blocks by directions. The sums over channels (gradient of low) run in a fixed order
 * inside a group, those over tokens inside a part; the caller adds groups and parts in order. */
void bimamba_scan_backward(job_t *j) {
    const int64_t nb = blocks(j), G = j->groups, P = j->parts, N = j->states, wide = sets_of(j->R, VW);
    int64_t i;
    scan_backward_t *w = malloc(sizeof *w + 64);
    vf *mem = scratch(3 * SIDE * N + (2 * TILE + 1) * NS + j->K + 2 * j->R * SIDE + SIDE * VW * wide + 2 * TILE * SIDE);
    if (!w || !mem) {
        free(w);
        free(mem);
        return fail(j);
    }
    void *unaligned = w;
    w = (scan_backward_t *)(((uintptr_t)w + 63) / 64 * 64);
    w->A = mem;
    w->g = w->A + SIDE * N;
    w->dA = w->g + SIDE * N;
    w->ka = w->dA + SIDE * N;
    w->kh = w->ka + TILE * NS;
    w->taps = w->kh + (TILE + 1) * NS;
    w->weight = w->taps + j->K;
    w->ddt_proj = w->weight + j->R * SIDE;
    w->across = w->ddt_proj + j->R * SIDE;
    w->u = w->across + SIDE * VW * wide;
    w->delta = w->u + TILE * SIDE;
    unsigned old = flush_subnormals();
    while ((i = take(j)) < 2 * P * G) {
        const int rev = (int)(i & 1);
        const int64_t p = i / 2 / G, group = i / 2 % G, k0 = group * nb / G, count = (group + 1) * nb / G - k0;
        const int64_t sets = sets_of(count, SIDE);
        float *dlow = j->dlow[rev] + group * j->B * j->L * j->row;
        for (int64_t q = 0; q < sets; q++) {
            const set_t s = set_at(k0, count, sets, q);
            rates(j, s, rev, w->A);
            pack_dt(j, s, rev, w->weight);
            for (int64_t v = 0; v < SIDE * N; v++) w->dA[v] = (vf){0};
            for (int64_t v = 0; v < SIDE * j->R; v++) w->ddt_proj[v] = (vf){0};
            memset(w->sums, 0, sizeof w->sums);
            memset(w->across, 0, (size_t)(SIDE * VW * wide) * sizeof(vf));
            for (int64_t v = 0; v < s.n * VW && s.k0 * VW + v < j->E; v++)
                memcpy(w->across + v * wide, j->dt_proj[rev] + (s.k0 * VW + v) * j->R, (size_t)j->R * 4);
            for (int64_t b = p * j->B / P; b < (p + 1) * j->B / P; b++) scan_backward_set(j, b, s, rev, dlow, q > 0, w);
            for (int64_t v = 0; v < N; v++) store_set(j, s, j->dA[rev] + (p * N + v) * j->E, w->dA + v, N);
            for (int64_t r = 0; r < j->R; r++)
                store_set(j, s, j->ddt_proj[rev] + (p * j->R + r) * j->E, w->ddt_proj + r * SIDE, 1);
            store_set(j, s, j->dbias[rev] + p * j->E, w->sums, 2);
            store_set(j, s, j->dD[rev] + p * j->E, w->sums + 1, 2);
        }
    }
    restore_subnormals(old);
    free(mem);
    free(unaligned);
}

/* Conv and SiLU of a block, from the end of the tile. later: the gradients before SiLU of the K-1 tokens seen after it, the
 * nearest first; du: what comes through x_proj. */
INLINE void conv_backward_block(const job_t *j, int64_t b, int64_t e, int n, int K, int rev, int64_t t0, int count, vf *w,
                                vf *dw, vf *later, vf *dbias, const vf *du, const vf *slope) {
    const int64_t E = j->E, at = b * j->L + token(j, rev, t0 + count - 1), back = rev ? 2 * E : -2 * E;
    const float *x = j->xz + at * 2 * E + e, *direct = j->du[rev] + at * E + e;
    float *dx = j->dxz + at * 2 * E + e;
    vf db = *dbias;
    for (int k = 0; k < K; k++) w[k] = load(j->conv_w[rev] + k * E + e, n);
    for (int64_t t = t0 + count - 1; t >= t0; t--) {
        const int k0 = t >= K - 1 ? 0 : K - 1 - (int)t;
        /* sixteen tokens ahead, within the block: x was fetched with the tile, these are not */
        PREFETCH(dx + 16 * back);
        PREFETCH(direct + 16 * back / 2);
        vf d = (load(direct, n) + du[(t - t0) * SIDE]) * slope[(t - t0) * SIDE], acc = d * w[K - 1];
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
        direct += back / 2;
    }
    *dbias = db;
}
/* The same with everything in registers, for the usual four taps. */
NOINLINE void conv_backward_block4(const job_t *j, int64_t b, int64_t e, int rev, int64_t t0, int count, vf *mem,
                                   const vf *du, const vf *slope) {
    vf w[4], dw[4], later[3], dbias = mem[7];
    for (int k = 0; k < 4; k++) dw[k] = mem[k];
    for (int k = 0; k < 3; k++) later[k] = mem[4 + k];
    conv_backward_block(j, b, e, VW, 4, rev, t0, count, w, dw, later, &dbias, du, slope);
    for (int k = 0; k < 4; k++) mem[k] = dw[k];
    for (int k = 0; k < 3; k++) mem[4 + k] = later[k];
    mem[7] = dbias;
}
/* Work items: parts of the batch by sets. */
void bimamba_conv_backward(job_t *j) {
    const int64_t nb = blocks(j), sets = sets_for(j, j->parts), P = j->parts, row = j->row, depth = 2 * j->states + j->R;
    const int K = (int)j->K;
    int64_t i;
    /* per block: K of dw, K - 1 of later, dbias */
    vf *mem = scratch((2 * SIDE + 1) * K + 3 * TILE * SIDE + 2 * depth * SIDE), *taps = mem + 2 * SIDE * K, *u = taps + K;
    vf *slope = u + TILE * SIDE, *du = slope + TILE * SIDE, *weight = du + TILE * SIDE, *dweight = weight + depth * SIDE;
    if (!mem) return fail(j);
    unsigned old = flush_subnormals();
    while ((i = take(j)) < P * sets) {
        const int64_t p = i / sets;
        const set_t s = set_at(0, nb, sets, i % sets);
        for (int rev = 0; rev < 2; rev++) {
            for (int64_t c = 0; c < depth; c++)
                for (int k = 0; k < s.n; k++) {
                    const int64_t e = (s.k0 + k) * VW, r = source(j, c);
                    weight[c * SIDE + k] = r < 0 ? (vf){0} : load(j->x_proj[rev] + r * j->E + e, width_of(j, e));
                }
            for (int64_t v = 0; v < depth * SIDE; v++) dweight[v] = (vf){0};
            for (int64_t v = 0; v < 2 * SIDE * K; v++) mem[v] = (vf){0};
            for (int64_t b = p * j->B / P; b < (p + 1) * j->B / P; b++) {
                for (int k = 0; k < s.n; k++)
                    for (int v = 0; v < K - 1; v++) mem[k * 2 * K + K + v] = (vf){0};
                for (int64_t t0 = (j->L - 1) / TILE * TILE; t0 >= 0; t0 -= TILE) {
                    const int count = tile_count(j, t0);
                    const float *dlow = j->dlow[rev] + (b * j->L + token(j, rev, t0)) * row;
                    const int64_t step = rev ? -row : row;
                    conv_tile(j, b, s, rev, t0, count, -TILE, taps, u, slope);
                    product((product_t){.M = count, .K = (int)depth, .V = s.n, .a = dlow, .am = step, .ak = 1,
                                        .b = (float *)weight, .bk = SIDE * VW, .c = (float *)du, .cm = SIDE * VW});
                    product((product_t){.M = (int)depth, .K = count, .V = s.n, .a = dlow, .am = 1, .ak = step,
                                        .b = (float *)u, .bk = SIDE * VW, .c = (float *)dweight, .cm = SIDE * VW,
                                        .add = 1});
                    for (int k = 0; k < s.n; k++) {
                        const int64_t e = (s.k0 + k) * VW;
                        const int n = width_of(j, e);
                        vf *m = mem + k * 2 * K;
                        if (n == VW && K == 4) conv_backward_block4(j, b, e, rev, t0, count, m, du + k, slope + k);
                        else
                            conv_backward_block(j, b, e, n, K, rev, t0, count, taps, m, m + K, m + 2 * K - 1, du + k,
                                                slope + k);
                    }
                }
            }
            for (int64_t c = 0; c < depth; c++)
                store_set(j, s, j->dx_proj[rev] + (p * row + c) * j->E, dweight + c * SIDE, 1);
            for (int64_t c = 0; c < K; c++) store_set(j, s, j->dconv_w[rev] + (p * K + c) * j->E, mem + c, 2 * K);
            store_set(j, s, j->dconv_b[rev] + p * j->E, mem + 2 * K - 1, 2 * K);
        }
    }
    restore_subnormals(old);
    free(mem);
}
