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
    int64_t B, L, E, N, K, row, groups, chunk; /* N: states, a multiple of 16; row: floats between tokens in Bm, Cm */
    const float *xz;                           /* (B, L, 2E): u | z */
    const float *conv_w[2], *conv_b[2];        /* (K, E), (E) */
    float *u[2];                               /* (B, L, E) after conv and SiLU */
    const float *dt[2];                        /* (B, L, E) before bias and softplus */
    const float *Bm[2], *Cm[2];                /* first element of the first token's row */
    const float *A[2];                         /* (N, E), negative */
    const float *D[2], *bias[2];               /* (E) */
    float *y;                                  /* (B, L, E) */
    const float *gy;                           /* (B, L, E) */
    float *dxz;                                /* (B, L, 2E) */
    float *du[2], *ddt[2];                     /* (B, L, E) */
    float *dbc[2];                             /* (groups, B, L, 2, N) */
    float *dA[2];                              /* (B, N, E) */
    float *dD[2], *dbias[2];                   /* (B, E) */
    float *dconv_w[2], *dconv_b[2];            /* (B, K, E), (B, E) */
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

/* Row sums of VW vectors of VW lanes as one vector: log2(VW) rounds, each folds two vectors into one. */
#define IDX_LO(h, j) (((j) % (2 * (h))) < (h) ? (j) : VW + (j) - (h))
#define IDX_HI(h, j) (((j) % (2 * (h))) < (h) ? (j) + (h) : VW + (j))
#define L4(F, h, o) F(h, o), F(h, o + 1), F(h, o + 2), F(h, o + 3)
#if VW == 16
#define LANES(F, h) L4(F, h, 0), L4(F, h, 4), L4(F, h, 8), L4(F, h, 12)
#elif VW == 8
#define LANES(F, h) L4(F, h, 0), L4(F, h, 4)
#else
#define LANES(F, h) L4(F, h, 0)
#endif
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, F, h) __builtin_shufflevector(a, b, LANES(F, h))
#else
#define SHUFFLE(a, b, F, h) __builtin_shuffle(a, b, (vi){LANES(F, h)})
#endif
#define FOLD(h)                                                     \
    for (int i = 0; i < (h); i++) {                                 \
        vf a = v[i], b = v[i + (h)];                                \
        v[i] = SHUFFLE(a, b, IDX_LO, h) + SHUFFLE(a, b, IDX_HI, h); \
    }
INLINE vf row_sums(vf *v) {
#if VW == 16
    FOLD(8)
#endif
#if VW >= 8
    FOLD(4)
#endif
    FOLD(2)
    FOLD(1)
    return v[0];
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

/* ---- conv + SiLU ---- */

/* Before SiLU, token l of direction rev: tap K-1 is the token itself, tap 0 the one K-1 steps earlier in its order. */
INLINE vf conv_at(const float *x, int64_t xs, const float *w, int64_t E, vf bias, int64_t K, int64_t L, int64_t l,
                  int rev, int n) {
    int64_t seen = rev ? L - 1 - l : l, k0 = seen >= K - 1 ? 0 : K - 1 - seen;
    vf acc = bias;
    for (int64_t k = k0; k < K; k++) {
        int64_t at = rev ? l + (K - 1 - k) : l - (K - 1 - k);
        acc += load(w + k * E, n) * load(x + at * xs, n);
    }
    return acc;
}
INLINE void conv_forward_block(job_t *j, int64_t b, int64_t e, int n) {
    const float *x = j->xz + b * j->L * 2 * j->E + e;
    for (int rev = 0; rev < 2; rev++) {
        vf bias = load(j->conv_b[rev] + e, n);
        float *out = j->u[rev] + b * j->L * j->E + e;
        for (int64_t l = 0; l < j->L; l++) {
            vf a;
            if (j->K == 4) a = conv_at(x, 2 * j->E, j->conv_w[rev] + e, j->E, bias, 4, j->L, l, rev, n);
            else a = conv_at(x, 2 * j->E, j->conv_w[rev] + e, j->E, bias, j->K, j->L, l, rev, n);
            store(out + l * j->E, a * sigmoid(a), n);
        }
    }
}
int bimamba_conv_forward(job_t *j) {
    int64_t nb = blocks(j), i;
    unsigned old = flush_subnormals();
    while ((i = take(j)) < j->B * nb) {
        int64_t e = i % nb * VW;
        int n = width_of(j, e);
        if (n == VW) conv_forward_block(j, i / nb, e, VW);
        else conv_forward_block(j, i / nb, e, n);
    }
    restore_subnormals(old);
    return 0;
}
INLINE void conv_backward_block(job_t *j, int64_t b, int64_t e, int n, vf *g, vf *dw) {
    const int64_t L = j->L, E = j->E, K = j->K;
    const float *x = j->xz + b * L * 2 * E + e;
    float *dx = j->dxz + b * L * 2 * E + e;
    for (int rev = 0; rev < 2; rev++) {
        const float *w = j->conv_w[rev] + e, *du = j->du[rev] + b * L * E + e;
        vf bias = load(j->conv_b[rev] + e, n), db = {0};
        for (int64_t k = 0; k < K; k++) dw[k] = (vf){0};
        for (int64_t l = 0; l < L; l++) {
            vf a = conv_at(x, 2 * E, w, E, bias, K, L, l, rev, n), s = sigmoid(a);
            vf d = load(du + l * E, n) * s * (splat(1.f) + a * (splat(1.f) - s));
            g[l] = d;
            db += d;
            int64_t seen = rev ? L - 1 - l : l, k0 = seen >= K - 1 ? 0 : K - 1 - seen;
            for (int64_t k = k0; k < K; k++) dw[k] += d * load(x + (rev ? l + (K - 1 - k) : l - (K - 1 - k)) * 2 * E, n);
        }
        for (int64_t l = 0; l < L; l++) { /* token l was read by tap k of the token K-1-k steps later */
            int64_t left = rev ? l : L - 1 - l, k0 = left >= K - 1 ? 0 : K - 1 - left;
            vf acc = {0};
            if (rev) acc = load(dx + l * 2 * E, n);
            for (int64_t k = k0; k < K; k++) acc += load(w + k * E, n) * g[rev ? l - (K - 1 - k) : l + (K - 1 - k)];
            store(dx + l * 2 * E, acc, n);
        }
        for (int64_t k = 0; k < K; k++) store(j->dconv_w[rev] + (b * K + k) * E + e, dw[k], n);
        store(j->dconv_b[rev] + b * E + e, db, n);
    }
}
int bimamba_conv_backward(job_t *j) {
    int64_t nb = blocks(j), i;
    vf *mem = scratch(j->L + j->K);
    if (!mem) return 1;
    unsigned old = flush_subnormals();
    while ((i = take(j)) < j->B * nb) {
        int64_t e = i % nb * VW;
        int n = width_of(j, e);
        if (n == VW) conv_backward_block(j, i / nb, e, VW, mem, mem + j->L);
        else conv_backward_block(j, i / nb, e, n, mem, mem + j->L);
    }
    restore_subnormals(old);
    free(mem);
    return 0;
}

/* ---- the scan ---- */

/* One direction, sixteen states: the first pass writes y, later ones add to it, the last one applies the gate. */
INLINE void scan_forward_pass(job_t *j, int64_t b, int64_t e, int64_t s, int n, int rev, int first, int last) {
    const int64_t L = j->L, E = j->E;
    const float *u = j->u[rev] + b * L * E + e, *dt = j->dt[rev] + b * L * E + e;
    const float *Bm = j->Bm[rev] + b * L * j->row + s, *Cm = j->Cm[rev] + b * L * j->row + s;
    const float *z = j->xz + b * L * 2 * E + E + e;
    float *y = j->y + b * L * E + e;
    vf h[NS], A[NS], D = {0}, bias = load(j->bias[rev] + e, n);
    if (s == 0) D = load(j->D[rev] + e, n);
    for (int i = 0; i < NS; i++) {
        h[i] = (vf){0};
        A[i] = rate(j->A[rev] + (s + i) * E + e, n);
    }
    for (int64_t t = 0; t < L; t++) {
        const int64_t l = rev ? L - 1 - t : t;
        vf x = load(u + l * E, n), d = softplus(load(dt + l * E, n) + bias, NULL), dx = d * x;
        vf y0 = D * x, y1 = {0};
        const float *bl = Bm + l * j->row, *cl = Cm + l * j->row;
#pragma GCC unroll 16
        for (int i = 0; i < NS; i++) {
            h[i] = exp2_neg(d * A[i]) * h[i] + dx * splat(bl[i]);
            if (i & 1) y1 += h[i] * splat(cl[i]);
            else y0 += h[i] * splat(cl[i]);
        }
        y0 += y1;
        if (!first) y0 += load(y + l * E, n);
        if (last) {
            vf g = load(z + l * 2 * E, n);
            y0 *= g * sigmoid(g);
        }
        store(y + l * E, y0, n);
    }
}
INLINE void scan_forward_block(job_t *j, int64_t b, int64_t e, int n) {
    for (int64_t s = 0; s < j->N; s += NS) scan_forward_pass(j, b, e, s, n, 0, s == 0, 0);
    for (int64_t s = 0; s < j->N; s += NS) scan_forward_pass(j, b, e, s, n, 1, 0, s + NS >= j->N);
}
NOINLINE void scan_forward_full(job_t *j, int64_t b, int64_t e) { scan_forward_block(j, b, e, VW); }
NOINLINE void scan_forward_tail(job_t *j, int64_t b, int64_t e, int n) { scan_forward_block(j, b, e, n); }

int bimamba_scan_forward(job_t *j) {
    int64_t nb = blocks(j), i;
    unsigned old = flush_subnormals();
    while ((i = take(j)) < j->B * nb) {
        int64_t e = i % nb * VW;
        int n = width_of(j, e);
        if (n == VW) scan_forward_full(j, i / nb, e);
        else scan_forward_tail(j, i / nb, e, n);
    }
    restore_subnormals(old);
    return 0;
}

typedef struct {
    vf *gs, *ys;       /* L: the gradient past the gate; the output before the gate */
    vf *start;         /* chunks x 16: the state at the start of each chunk */
    vf *a, *h;         /* chunk x 16: decay; state before the step */
    vf *delta, *slope; /* chunk */
} tile_t;

/* One direction, sixteen states. The states are computed again from the start of each chunk, never inverted. */
INLINE void scan_backward_pass(job_t *j, int64_t b, int64_t e, int64_t s, int n, int rev, int64_t group, int add,
                               tile_t m) {
    const int64_t L = j->L, E = j->E, T = j->chunk, chunks = (L + T - 1) / T;
    const float *u = j->u[rev] + b * L * E + e, *dt = j->dt[rev] + b * L * E + e;
    const float *Bm = j->Bm[rev] + b * L * j->row + s, *Cm = j->Cm[rev] + b * L * j->row + s;
    float *du = j->du[rev] + b * L * E + e, *ddt = j->ddt[rev] + b * L * E + e;
    float *dbc = j->dbc[rev] + (group * j->B + b) * L * 2 * j->N + s;
    vf h[NS], g[NS], A[NS], dA[NS], D = {0}, dD = {0}, dbias = {0}, bias = load(j->bias[rev] + e, n);
    if (s == 0) D = load(j->D[rev] + e, n);
    for (int i = 0; i < NS; i++) {
        h[i] = dA[i] = (vf){0};
        g[i] = (vf){0}; /* gradient of the state, already decayed by the step after it */
        A[i] = rate(j->A[rev] + (s + i) * E + e, n);
        m.start[i] = (vf){0};
    }
    for (int64_t c = 0; c + 1 < chunks; c++) {
        for (int64_t t = c * T; t < (c + 1) * T; t++) {
            const int64_t l = rev ? L - 1 - t : t;
            vf x = load(u + l * E, n), d = softplus(load(dt + l * E, n) + bias, NULL), dx = d * x;
            const float *bl = Bm + l * j->row;
#pragma GCC unroll 16
            for (int i = 0; i < NS; i++) h[i] = exp2_neg(d * A[i]) * h[i] + dx * splat(bl[i]);
        }
        for (int i = 0; i < NS; i++) m.start[(c + 1) * NS + i] = h[i];
    }
    for (int64_t c = chunks - 1; c >= 0; c--) {
        const int64_t t0 = c * T, t1 = t0 + T < L ? t0 + T : L;
        for (int i = 0; i < NS; i++) h[i] = m.start[c * NS + i];
        for (int64_t t = t0; t < t1; t++) {
            const int64_t l = rev ? L - 1 - t : t;
            vf x = load(u + l * E, n), d = softplus(load(dt + l * E, n) + bias, m.slope + (t - t0)), dx = d * x;
            vf y0 = D * x, y1 = {0};
            const float *bl = Bm + l * j->row, *cl = Cm + l * j->row;
            vf *ka = m.a + (t - t0) * NS, *kh = m.h + (t - t0) * NS;
            m.delta[t - t0] = d;
#pragma GCC unroll 16
            for (int i = 0; i < NS; i++) {
                vf a = exp2_neg(d * A[i]);
                ka[i] = a;
                kh[i] = h[i];
                h[i] = a * h[i] + dx * splat(bl[i]);
                if (i & 1) y1 += h[i] * splat(cl[i]);
                else y0 += h[i] * splat(cl[i]);
            }
            m.ys[l] += y0 + y1;
        }
        for (int i = 0; i < NS; i++) m.h[(t1 - t0) * NS + i] = h[i];
        for (int64_t t = t1 - 1; t >= t0; t--) {
            const int64_t l = rev ? L - 1 - t : t;
            vf x = load(u + l * E, n), d = m.delta[t - t0], dy = m.gs[l], dx = d * x;
            vf from_b = {0}, from_a = {0}, vb[NS], vc[NS];
            const float *bl = Bm + l * j->row, *cl = Cm + l * j->row;
            const vf *ka = m.a + (t - t0) * NS, *kh = m.h + (t - t0) * NS;
#pragma GCC unroll 16
            for (int i = 0; i < NS; i++) {
                vf dh = g[i] + dy * splat(cl[i]);
                vc[i] = dy * kh[NS + i];
                vb[i] = dx * dh;
                from_b += dh * splat(bl[i]);
                g[i] = dh * ka[i];
                vf w = g[i] * kh[i]; /* d/d(delta A) */
                from_a += w * A[i];
                dA[i] += w * d;
            }
            float *out = dbc + l * 2 * j->N;
#pragma GCC unroll 4
            for (int r = 0; r < NS; r += VW) {
                vf sb = row_sums(vb + r), sc = row_sums(vc + r);
                if (add) {
                    sb += load(out + r, VW);
                    sc += load(out + j->N + r, VW);
                }
                store(out + r, sb, VW);
                store(out + j->N + r, sc, VW);
            }
            /* A holds a factor log2(e) for exp2 */
            vf dd = (from_b * x + from_a * splat(0.693147180559945f)) * m.slope[t - t0];
            vf dxu = from_b * d + dy * D;
            dbias += dd;
            dD += dy * x;
            if (s) {
                dd += load(ddt + l * E, n);
                dxu += load(du + l * E, n);
            }
            store(ddt + l * E, dd, n);
            store(du + l * E, dxu, n);
        }
    }
    for (int i = 0; i < NS; i++) store(j->dA[rev] + (b * j->N + s + i) * E + e, dA[i], n);
    if (s == 0) store(j->dD[rev] + b * E + e, dD, n);
    else dbias += load(j->dbias[rev] + b * E + e, n);
    store(j->dbias[rev] + b * E + e, dbias, n);
}
INLINE void scan_backward_block(job_t *j, int64_t b, int64_t e, int n, int64_t group, int add, tile_t m) {
    const int64_t L = j->L, E = j->E;
    const float *z = j->xz + b * L * 2 * E + E + e, *gy = j->gy + b * L * E + e;
    float *dz = j->dxz + b * L * 2 * E + E + e;
    for (int64_t l = 0; l < L; l++) {
        vf v = load(z + l * 2 * E, n);
        m.gs[l] = load(gy + l * E, n) * v * sigmoid(v);
        m.ys[l] = (vf){0};
    }
    for (int64_t s = 0; s < j->N; s += NS) scan_backward_pass(j, b, e, s, n, 0, group, add, m);
    for (int64_t s = 0; s < j->N; s += NS) scan_backward_pass(j, b, e, s, n, 1, group, add, m);
    for (int64_t l = 0; l < L; l++) {
        vf v = load(z + l * 2 * E, n), q = sigmoid(v);
        store(dz + l * 2 * E, load(gy + l * E, n) * m.ys[l] * q * (splat(1.f) + v * (splat(1.f) - q)), n);
    }
}
NOINLINE void scan_backward_full(job_t *j, int64_t b, int64_t e, int64_t group, int add, tile_t m) {
    scan_backward_block(j, b, e, VW, group, add, m);
}
NOINLINE void scan_backward_tail(job_t *j, int64_t b, int64_t e, int n, int64_t group, int add, tile_t m) {
    scan_backward_block(j, b, e, n, group, add, m);
}
/* A work item is a batch row and a group of channel blocks: the sums over channels (dB, dC) run in a fixed order inside
 * the group, and the caller adds the groups in order. */
int bimamba_scan_backward(job_t *j) {
    const int64_t nb = blocks(j), G = j->groups, T = j->chunk, chunks = (j->L + T - 1) / T;
    vf *mem = scratch(2 * j->L + chunks * NS + (2 * T + 1) * NS + 2 * T);
    int64_t i;
    if (!mem) return 1;
    tile_t m;
    m.gs = mem;
    m.ys = m.gs + j->L;
    m.start = m.ys + j->L;
    m.a = m.start + chunks * NS;
    m.h = m.a + T * NS;
    m.delta = m.h + (T + 1) * NS;
    m.slope = m.delta + T;
    unsigned old = flush_subnormals();
    while ((i = take(j)) < j->B * G) {
        const int64_t b = i / G, group = i % G, k0 = group * nb / G, k1 = (group + 1) * nb / G;
        for (int64_t k = k0; k < k1; k++) {
            int n = width_of(j, k * VW);
            if (n == VW) scan_backward_full(j, b, k * VW, group, k > k0, m);
            else scan_backward_tail(j, b, k * VW, n, group, k > k0, m);
        }
    }
    restore_subnormals(old);
    free(mem);
    return 0;
}
