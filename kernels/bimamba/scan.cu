/* The CUDA kernels of bimamba: conv + SiLU and the selective scan, both directions, forward and backward.
 *
 * Compiled once per storage type and number of taps, -DTAPS=K. Tensors are channels-last, so a warp reads neighbouring
 * channels of one token whatever the length, and the reversed direction only walks the tokens from the end. States,
 * decays and sums are float32. The same text runs on the CPU through tests/kernels/cuda_shim.cpp (-DSHIM).
 * Shapes: B batch, L tokens, E channels, 16 states, K taps, R rank of delta. "Seen order" numbers the tokens in the order
 * in which a direction meets them.
 */
#include "common.cuh"

#define NS 16   /* states */
#define SEG 32  /* tokens between two states kept for the backward */

/* ---- scalar functions ---- */

DEVICE float sigmoid(float x) { return rcp(1.f + ex2(-LOG2E * x)); }
/* softplus with relative accuracy also where it is tiny (delta starts at 1e-3): never ln(1 + e) of a rounded sum. */
DEVICE float softplus(float x) {
    float e = ex2(-LOG2E * (x < 0.f ? -x : x)), top = x > 0.f ? x : 0.f;
#if STORAGE == 0
    /* log1p(e) = 2 artanh(e / (2 + e)) */
    float s = e / (2.f + e), t = s * s, p = 1.f / 13;
    p = p * t + 1.f / 11;
    p = p * t + 1.f / 9;
    p = p * t + 1.f / 7;
    p = p * t + 1.f / 5;
    p = p * t + 1.f / 3;
    p = p * t + 1.f;
    float l = 2.f * s * p;
#else
    float l = e < 0.03f ? e * (1.f - e * (0.5f - e * (1.f / 3 - e * 0.25f))) : LN2 * lg2(1.f + e);
#endif
    return top + l;
}
/* A of -exp(A_log), for exp2; finite also where A_log is beyond 88, so that delta = 0 gives 1 and not NaN. */
DEVICE float rate(float a_log) {
    float a = -LOG2E * ex2(LOG2E * a_log);
    return a < -1e30f ? -1e30f : a;
}

struct job_t {
    i64 B, L, E, R;             /* R: columns of low before those of B and C */
    i64 chunk, chunks;          /* tokens of a chunk of the sequence (a multiple of SEG), and how many there are */
    i64 direction;              /* the first of this launch; the grid says how many */
    i64 flags;                  /* of the kernel */
    i64 run;                    /* tokens of one thread of the convolution */
    const store_t *xz;          /* (B, L, 2E): u | z */
    store_t *u;                 /* (2, B, L, E) after conv and SiLU */
    const store_t *dt;          /* (2, B, L, E) before bias and softplus */
    const store_t *low;         /* (2, B, L, R + 32): delta | B | C */
    const float *conv_w[2], *conv_b[2], *bias[2], *A_log[2], *D[2]; /* (E, K), (E), (E), (E, 16), (E) */
    store_t *y, *ys;            /* (B, L, E): the output; before the gate */
    float *states;              /* (2, B, segments - 1, 16, E): the state at the end of each segment of SEG tokens */
    float *edges, *sums;        /* (2, B, chunks, 16, E) states between chunks; (2, B, chunks, E) sums of delta */
    const store_t *gy;          /* (B, L, E) */
    store_t *du, *ddt, *dxz;    /* (2, B, L, E), (2, B, L, E), which may be dt, (B, L, 2E) */
    float *part_bc;             /* (blocks of 64 channels, 2, B, L, 32): sums of dB | dC over 64 channels */
    store_t *dlow;              /* (2, B, L, R + 32) */
    float *dA;                  /* (2, B * chunks, 16, E), of the decay's rate */
    float *dD, *dbias;          /* (2, B * chunks, E) */
    float *dconv;               /* (2, B * runs, K + 1, E): weights, then bias */
    float *out_conv_w[2], *out_conv_b[2], *out_bias[2], *out_A_log[2], *out_D[2]; /* (E, K), (E), (E), (E, 16), (E) */
};
enum { KEEP = 1, ADJOINT = 2 }; /* flags: states and ys are kept for the backward; scan_edges walks from the end */

/* ---- conv + SiLU: both directions in one pass, since x[p .. p+K-1] is what the forward direction needs for token p+K-1
 * and the reversed one for token p. grid: x = batch rows x runs, y = channels / 64 V ---- */

template <int V> DEVICE void conv_forward(const job_t &j) {
    const i64 e = ((i64)blockIdx.y * 64 + threadIdx.x) * V;
    const i64 runs = (j.L + j.run - 1) / j.run, b = blockIdx.x / runs, l0 = blockIdx.x % runs * j.run;
    const i64 l1 = l0 + j.run < j.L ? l0 + j.run : j.L;
    if (e >= j.E) return;
    float w[2][TAPS][V], bias[2][V], x[TAPS][V];
#pragma unroll
    for (int d = 0; d < 2; d++)
#pragma unroll
        for (int i = 0; i < V; i++) {
            bias[d][i] = j.conv_b[d][e + i];
#pragma unroll
            for (int k = 0; k < TAPS; k++) w[d][k][i] = j.conv_w[d][(e + i) * TAPS + k];
        }
    const store_t *xp = j.xz + b * j.L * 2 * j.E + e;
    store_t *uf = j.u + b * j.L * j.E + e, *ur = uf + j.B * j.L * j.E;
#pragma unroll
    for (int k = 0; k < TAPS - 1; k++) {
        i64 l = l0 - (TAPS - 1) + k;
        get_v<V>(xp + l * 2 * j.E, l >= 0 && l < j.L, x[k + 1]);
    }
    /* p: the token of the reversed direction; q: the one of the forward direction */
    for (i64 p = l0 - (TAPS - 1); p < l1; p++) {
        const i64 q = p + TAPS - 1;
#pragma unroll
        for (int k = 0; k < TAPS - 1; k++)
#pragma unroll
            for (int i = 0; i < V; i++) x[k][i] = x[k + 1][i];
        get_v<V>(xp + q * 2 * j.E, q < j.L, x[TAPS - 1]);
        float a[V];
        if (q < l1) {
#pragma unroll
            for (int i = 0; i < V; i++) {
                a[i] = bias[0][i];
#pragma unroll
                for (int k = 0; k < TAPS; k++) a[i] += w[0][k][i] * x[k][i];
                a[i] *= sigmoid(a[i]);
            }
            put_v<V>(uf + q * j.E, a);
        }
        if (p >= l0) {
#pragma unroll
            for (int i = 0; i < V; i++) {
                a[i] = bias[1][i];
#pragma unroll
                for (int k = 0; k < TAPS; k++) a[i] += w[1][k][i] * x[TAPS - 1 - k][i];
                a[i] *= sigmoid(a[i]);
            }
            put_v<V>(ur + p * j.E, a);
        }
    }
}
KERNEL(64, 1) conv_forward_4(job_t j) { conv_forward<4>(j); }
KERNEL(64, 1) conv_forward_1(job_t j) { conv_forward<1>(j); }

template <int V> DEVICE void conv_backward(const job_t &j) {
    const i64 e = ((i64)blockIdx.y * 64 + threadIdx.x) * V;
    const i64 runs = (j.L + j.run - 1) / j.run, b = blockIdx.x / runs, l0 = blockIdx.x % runs * j.run;
    const i64 l1 = l0 + j.run < j.L ? l0 + j.run : j.L;
    if (e >= j.E) return;
    float w[2][TAPS][V], bias[2][V], x[TAPS][V], dw[2][TAPS][V], db[2][V];
    float gf[TAPS][V], gr[TAPS][V]; /* gradients before SiLU: forward direction of p .. p+K-1, reversed of p-K+1 .. p */
#pragma unroll
    for (int d = 0; d < 2; d++)
#pragma unroll
        for (int i = 0; i < V; i++) {
            bias[d][i] = j.conv_b[d][e + i];
            db[d][i] = 0.f;
#pragma unroll
            for (int k = 0; k < TAPS; k++) {
                w[d][k][i] = j.conv_w[d][(e + i) * TAPS + k];
                dw[d][k][i] = 0.f;
                gf[k][i] = gr[k][i] = x[k][i] = 0.f;
            }
        }
    const store_t *xp = j.xz + b * j.L * 2 * j.E + e;
    const store_t *uf = j.du + b * j.L * j.E + e, *ur = uf + j.B * j.L * j.E;
    store_t *out = j.dxz + b * j.L * 2 * j.E + e;
#pragma unroll
    for (int k = 0; k < TAPS - 1; k++) {
        i64 l = l0 - (TAPS - 1) + k;
        get_v<V>(xp + l * 2 * j.E, l >= 0 && l < j.L, x[k + 1]);
    }
    for (i64 p = l0 - (TAPS - 1); p < l1; p++) {
        const i64 q = p + TAPS - 1;
        float du[2][V];
#pragma unroll
        for (int k = 0; k < TAPS - 1; k++)
#pragma unroll
            for (int i = 0; i < V; i++) {
                x[k][i] = x[k + 1][i];
                gf[k][i] = gf[k + 1][i];
                gr[k][i] = gr[k + 1][i];
            }
        get_v<V>(xp + q * 2 * j.E, q < j.L, x[TAPS - 1]);
        get_v<V>(uf + q * j.E, q < j.L, du[0]);
        get_v<V>(ur + p * j.E, p >= 0, du[1]);
#pragma unroll
        for (int i = 0; i < V; i++) {
            float a = bias[0][i], c = bias[1][i];
#pragma unroll
            for (int k = 0; k < TAPS; k++) {
                a += w[0][k][i] * x[k][i];
                c += w[1][k][i] * x[TAPS - 1 - k][i];
            }
            float s = sigmoid(a), t = sigmoid(c);
            s = du[0][i] * s * (1.f + a * (1.f - s));
            t = du[1][i] * t * (1.f + c * (1.f - t));
            gf[TAPS - 1][i] = s;
            gr[TAPS - 1][i] = t;
            /* the tokens beside this run are another thread's to count */
            s = q < l1 ? s : 0.f;
            t = p >= l0 ? t : 0.f;
            db[0][i] += s;
            db[1][i] += t;
#pragma unroll
            for (int k = 0; k < TAPS; k++) {
                dw[0][k][i] += s * x[k][i];
                dw[1][k][i] += t * x[TAPS - 1 - k][i];
            }
        }
        if (p >= l0) {
            float dx[V];
#pragma unroll
            for (int i = 0; i < V; i++) {
                dx[i] = 0.f;
#pragma unroll
                for (int k = 0; k < TAPS; k++) dx[i] += w[0][k][i] * gf[TAPS - 1 - k][i] + w[1][k][i] * gr[k][i];
            }
            put_v<V>(out + p * 2 * j.E, dx);
        }
    }
#pragma unroll
    for (int d = 0; d < 2; d++) {
        float *part = j.dconv + (((i64)d * j.B * runs + blockIdx.x) * (TAPS + 1)) * j.E + e;
#pragma unroll
        for (int i = 0; i < V; i++) {
#pragma unroll
            for (int k = 0; k < TAPS; k++) part[k * j.E + i] = dw[d][k][i];
            part[TAPS * j.E + i] = db[d][i];
        }
    }
}
KERNEL(64, 1) conv_backward_4(job_t j) { conv_backward<4>(j); }
KERNEL(64, 1) conv_backward_1(job_t j) { conv_backward<1>(j); }

/* ---- the scan, forward ---- */

#define SCAN_THREADS 64
#define TILE 4 /* tokens that are loaded ahead */

/* Where a block is: batch row, direction, chunk, first channel. grid: x = batch rows x channel blocks, y = directions x
 * chunks. */
struct place_t {
    i64 b, e0, c, blk;
    int dir;
};
DEVICE place_t place(const job_t &j, int channels) {
    const i64 nb = (j.E + channels - 1) / channels;
    place_t s;
    s.b = blockIdx.x / nb;
    s.blk = blockIdx.x % nb;
    s.e0 = s.blk * channels;
    s.dir = (int)(j.direction + blockIdx.y / j.chunks);
    s.c = blockIdx.y % j.chunks;
    return s;
}

/* Of twice N values in two lanes `mask` apart, each lane keeps N: its own and the other's, added. */
template <int N> DEVICE void fold(float *v, bool upper, int mask) {
#pragma unroll
    for (int k = 0; k < N; k++) {
        const float send = upper ? v[k] : v[k + N], keep = upper ? v[k + N] : v[k];
        v[k] = keep + lane_xor(send, mask);
    }
}

enum { PLAIN, GATED, ENDS, ENDS_ADJOINT };
/* SPLIT lanes share a channel: each holds 16 / SPLIT of its states, and of every TILE tokens it loads, activates and writes
 * TILE / SPLIT. PLAIN writes the part of its direction, ys for the forward one and y for the other; GATED adds ys, gates
 * and writes y. ENDS has no output: only the state at the end of the chunk, from zero at its start, and the sum of delta;
 * ENDS_ADJOINT likewise for the gradient's recurrence, from the chunk's end. Offsets within a tile are 32-bit, those of
 * its first token 64-bit. */
template <int SPLIT, int KIND> DEVICE void scan_forward(const job_t &j) {
    constexpr bool ends = KIND >= ENDS, adjoint = KIND == ENDS_ADJOINT, gated = KIND == GATED;
    constexpr int MINE = NS / SPLIT, OWN = TILE / SPLIT, CHANNELS = SCAN_THREADS / SPLIT, WIDE = 2 * NS, ROWS = TILE * WIDE / SCAN_THREADS;
    SHARED __align__(16) float rows[2][TILE][WIDE]; /* B | C */
    const place_t s = place(j, CHANNELS);
    const int part = threadIdx.x % SPLIT, column = threadIdx.x % WIDE, row0 = threadIdx.x / WIDE;
    const i64 e = s.e0 + threadIdx.x / SPLIT, L = j.L, E = j.E;
    const bool live = e < E, keep = gated && (j.flags & KEEP), states = !ends && (j.flags & KEEP);
    const i64 ec = live ? e : E - 1, both = ((i64)s.dir * j.B + s.b) * L;
    const i64 first = s.c * j.chunk, last = least(first + j.chunk, L);
    const int count = (int)(last - first);
    const bool reversed = (s.dir != 0) != adjoint;
    const i64 seen0 = adjoint ? L - last : first, start = reversed ? L - 1 - seen0 : seen0; /* the walk's first token */
    const int step = (int)(reversed ? -E : E), row_step = (int)(reversed ? -(j.R + WIDE) : j.R + WIDE);
    float A[MINE], h[MINE];
#pragma unroll
    for (int i = 0; i < MINE; i++) {
        A[i] = rate(j.A_log[s.dir][ec * NS + part * MINE + i]);
        h[i] = 0.f;
        if (!ends && s.c) h[i] = j.edges[((((i64)s.dir * j.B + s.b) * j.chunks + s.c) * NS + part * MINE + i) * E + ec];
    }
    const float bias = j.bias[s.dir][ec], D = ends ? 0.f : j.D[s.dir][ec];
    float total = 0.f;
    /* of the tile that is fetched next, and of the one that is written next */
    const store_t *pd = j.dt + (both + start) * E + ec, *px = adjoint ? j.gy + (s.b * L + start) * E + ec : j.u + (both + start) * E + ec;
    const store_t *pz = j.xz + (s.b * L + start) * 2 * E + E + ec, *po = j.ys + (s.b * L + start) * E + ec;
    const store_t *pr = j.low + (both + start) * (j.R + WIDE) + j.R + column;
    store_t *out = (gated || s.dir ? j.y : j.ys) + (s.b * L + start) * E + ec, *kept = j.ys + (s.b * L + start) * E + ec;
    store_t nx[OWN], nd[OWN], nz[OWN], no[OWN];
    float nrow[ROWS];
    auto fetch = [&](int left) { /* `left`: the last token there, counted from the tile's first */
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            const int t = part * OWN + i, off = (t < left ? t : left) * step;
            nd[i] = pd[off];
            nx[i] = px[off];
            if (gated || adjoint) nz[i] = pz[2 * off];
            if (gated) no[i] = po[off];
        }
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            const int t = row0 + k * (SCAN_THREADS / WIDE);
            nrow[k] = get(pr + (t < left ? t : left) * row_step);
        }
        pd += TILE * step;
        px += TILE * step;
        pz += 2 * TILE * step;
        po += TILE * step;
        pr += TILE * row_step;
    };
    auto stage = [&](int buffer) {
#pragma unroll
        for (int k = 0; k < ROWS; k++) rows[buffer][row0 + k * (SCAN_THREADS / WIDE)][column] = nrow[k];
    };
    fetch(count - 1);
    stage(0);
    BARRIER();
    for (int t0 = 0; t0 < count; t0 += TILE) {
        const int buffer = t0 / TILE & 1, left = count - 1 - t0;
        float x[OWN], z[OWN], d[OWN], dx[OWN], y[TILE];
        store_t co[OWN];
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            /* past the end: delta 0 keeps the state, and nothing is written */
            const bool there = part * OWN + i <= left;
            x[i] = get(nx + i);
            d[i] = there ? softplus(get(nd + i) + bias) : 0.f;
            if (gated || adjoint) z[i] = get(nz + i);
            if (gated) co[i] = no[i];
            if (ends) total += d[i];
            dx[i] = adjoint ? (there ? x[i] * z[i] * sigmoid(z[i]) : 0.f) : d[i] * x[i]; /* ADJOINT: the gradient past the gate */
        }
        if (left >= TILE) fetch(left - TILE);
#pragma unroll
        for (int t = 0; t < TILE; t++) {
            const float dt = SPLIT == 1 ? d[t % OWN] : lane_from(d[t % OWN], t / OWN, SPLIT);
            const float in = SPLIT == 1 ? dx[t % OWN] : lane_from(dx[t % OWN], t / OWN, SPLIT);
            const float *row = rows[buffer][t] + part * MINE;
            y[t] = 0.f;
#pragma unroll
            for (int n = 0; n < MINE; n++) {
                if (adjoint)
                    h[n] = ex2(dt * A[n]) * (h[n] + in * row[NS + n]);
                else {
                    h[n] = ex2(dt * A[n]) * h[n] + in * row[n];
                    if (!ends) y[t] += h[n] * row[NS + n];
                }
            }
        }
        if (!ends) {
            /* sums over the lanes of a channel: each ends with the tokens it owns */
            if (SPLIT == 4) {
                fold<TILE / 2>(y, part & 2, 2);
                fold<TILE / 4>(y, part & 1, 1);
            } else if (SPLIT == 2)
                fold<TILE / 2>(y, part & 1, 1);
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                const int t = part * OWN + i;
                float v = y[i] + D * x[i];
                if (gated) v += get(co + i);
                if (t <= left && live) {
                    if (!gated)
                        put(out + t * step, v);
                    else {
                        if (keep) put(kept + t * step, v);
                        put(out + t * step, v * z[i] * sigmoid(z[i]));
                    }
                }
            }
        }
        out += TILE * step;
        kept += TILE * step;
        if (states && live) {
            const i64 seen = first + t0 + TILE;
            if (seen % SEG == 0 && seen < L) {
                float *at = j.states + ((((i64)s.dir * j.B + s.b) * ((L - 1) / SEG) + seen / SEG - 1) * NS + part * MINE) * E + e;
#pragma unroll
                for (int n = 0; n < MINE; n++) at[n * E] = h[n];
            }
        }
        if (left >= TILE) stage(buffer ^ 1);
        BARRIER();
    }
    if (ends && live) {
        const i64 at = ((i64)s.dir * j.B + s.b) * j.chunks + s.c;
#pragma unroll
        for (int n = 0; n < MINE; n++) j.edges[(at * NS + part * MINE + n) * E + e] = h[n];
    }
    if (ends) {
        if (SPLIT > 1) total += lane_xor(total, 1);
        if (SPLIT > 2) total += lane_xor(total, 2);
        if (part == 0 && live) j.sums[(((i64)s.dir * j.B + s.b) * j.chunks + s.c) * E + e] = total;
    }
}
KERNEL(SCAN_THREADS, 8) scan_plain_1(job_t j) { scan_forward<1, PLAIN>(j); }
KERNEL(SCAN_THREADS, 6) scan_gated_1(job_t j) { scan_forward<1, GATED>(j); }
KERNEL(SCAN_THREADS, 8) scan_plain_2(job_t j) { scan_forward<2, PLAIN>(j); }
KERNEL(SCAN_THREADS, 8) scan_plain_4(job_t j) { scan_forward<4, PLAIN>(j); }
KERNEL(SCAN_THREADS, 8) scan_ends_4(job_t j) { scan_forward<4, ENDS>(j); }
KERNEL(SCAN_THREADS, 8) scan_adjoint_4(job_t j) { scan_forward<4, ENDS_ADJOINT>(j); }

/* Turns the state that each chunk ends with when it starts from zero into the state it starts with; with ADJOINT the
 * gradient of the state at each chunk's end, coming from the chunks after it. grid: x = channels / 64, y = 2 B 16. */
KERNEL(64, 1) scan_edges(job_t j) {
    const i64 e = (i64)blockIdx.x * 64 + threadIdx.x, n = blockIdx.y % NS, db = blockIdx.y / NS;
    if (e >= j.E) return;
    const float A = rate(j.A_log[db / j.B][e * NS + n]);
    float h = 0.f;
    for (i64 k = 0; k < j.chunks; k++) {
        const i64 c = j.flags & ADJOINT ? j.chunks - 1 - k : k, at = db * j.chunks + c;
        float *edge = j.edges + (at * NS + n) * j.E + e, end = *edge;
        *edge = h;
        h = ex2(A * j.sums[at * j.E + e]) * h + end;
    }
}

/* y holds the reversed direction's part, ys the forward one's: adds, gates, and with KEEP leaves the sum in ys.
 * grid: x = all elements / 256. */
KERNEL(256, 1) gate_sum(job_t j) {
    const i64 at = (i64)blockIdx.x * 256 + threadIdx.x;
    if (at >= j.B * j.L * j.E) return;
    const float y = get(j.ys + at) + get(j.y + at), z = get(j.xz + at + (at / j.E + 1) * j.E);
    if (j.flags & KEEP) put(j.ys + at, y);
    put(j.y + at, y * z * sigmoid(z));
}

/* ---- the scan, backward ---- */

#define WARPS 4
#define BACK_THREADS (32 * WARPS)
#define BACK_CHANNELS (16 * WARPS)
#define HALF 16 /* tokens in shared memory at a time */
#define SUB 4   /* tokens whose states are in registers at a time */
#if STORAGE == 0
#define PARTS 3 /* a float32 is three bf16 for the tensor cores */
#else
#define PARTS 1
#endif

struct tile_t {
    float dt[HALF][BACK_CHANNELS], dx[HALF][BACK_CHANNELS], dy[HALF][BACK_CHANNELS]; /* dx: delta u; dy: past the gate */
    float rows[HALF][2 * NS];                                                         /* B | C */
    float sub[HALF / SUB][NS][BACK_CHANNELS];                                         /* the state before every SUB tokens */
    float gu[HALF][BACK_CHANNELS], gd[HALF][BACK_CHANNELS];                           /* sums over states: dh B, d(delta A) A */
    float bc[WARPS][HALF][2 * NS];                                                    /* each warp's sums over its channels */
};
/* v, and the rest that rounding to bf16 leaves of it */
DEVICE float rounded(float v) { return bits_f((u32)to_bf16(v) << 16); }

/* c += a b with `a` and `b` as the sum of PARTS bf16; products whose size is below a float32's rounding are left out.
 * Only the lanes of one column of b hold values (`mine`), the others zeros. */
DEVICE void mma_parts(float *c, const float (*a)[4], const float *b, bool mine) {
    float x[2][4], v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        x[0][i] = a[0][i];
        x[1][i] = a[1][i];
        v[i] = b[i];
    }
    u32 fa[PARTS][4], fb[PARTS][2];
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        fa[p][0] = pack(x[0][0], x[0][1]);
        fa[p][1] = pack(x[1][0], x[1][1]);
        fa[p][2] = pack(x[0][2], x[0][3]);
        fa[p][3] = pack(x[1][2], x[1][3]);
        fb[p][0] = mine ? pack(v[0], v[1]) : 0u;
        fb[p][1] = mine ? pack(v[2], v[3]) : 0u;
        if (p + 1 < PARTS) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                x[0][i] -= rounded(x[0][i]);
                x[1][i] -= rounded(x[1][i]);
                v[i] -= rounded(v[i]);
            }
        }
    }
#pragma unroll
    for (int p = PARTS - 1; p >= 0; p--)
#pragma unroll
        for (int q = 0; p + q < PARTS; q++) mma(c, fa[p], fb[q][0], fb[q][1]);
}

/* A warp holds 16 channels x 16 states as the A fragment of an mma: lane (g, t) the states g, g+8 of four channels. So
 * the sums over channels (dB, dC) are matrix products: of the states with a matrix whose column `token` is dx or dy.
 * One block: 64 channels of one batch row, direction and chunk. grid as in place(). */
KERNEL(BACK_THREADS, 3) scan_backward(job_t j) {
    SHARED tile_t m;
    const place_t s = place(j, BACK_CHANNELS);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
    const int ch[4] = {warp * 16 + 2 * t, warp * 16 + 2 * t + 1, warp * 16 + 2 * t + 8, warp * 16 + 2 * t + 9};
    const i64 L = j.L, E = j.E, both = ((i64)s.dir * j.B + s.b) * L;
    const i64 first = s.c * j.chunk, last = least(first + j.chunk, L);
    /* staging and results: one channel, every second token */
    constexpr int EVERY = BACK_THREADS / BACK_CHANNELS;
    const int mine = threadIdx.x % BACK_CHANNELS, row0 = threadIdx.x / BACK_CHANNELS;
    const i64 e = s.e0 + mine;
    const bool live = e < E;
    const i64 ec = live ? e : E - 1;
    const float bias = j.bias[s.dir][ec], D = j.D[s.dir][ec];
    float dD = 0.f, dbias = 0.f;
    /* offsets within a tile are 32-bit, from the tile's first token in seen order */
    const int way = s.dir ? -1 : 1, wide = (int)j.R + 2 * NS, step_e = way * (int)E, step_w = way * wide;
#define TOKEN(i) (s.dir ? L - 1 - (i) : (i))
    float A[2][4], dA[2][4], G[2][4]; /* G: gradient of the state, already decayed by the token after it */
#pragma unroll
    for (int k = 0; k < 2; k++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const i64 ce = s.e0 + ch[c];
            const bool in = ce < E;
            A[k][c] = in ? rate(j.A_log[s.dir][ce * NS + g + 8 * k]) : 0.f;
            dA[k][c] = 0.f;
            G[k][c] = in && j.chunks > 1 ? j.edges[((((i64)s.dir * j.B + s.b) * j.chunks + s.c) * NS + g + 8 * k) * E + ce] : 0.f;
        }
    /* B | C: a warp reads one token's 32 columns */
    const int column = threadIdx.x % (2 * NS);
    auto stage = [&](i64 i0, bool all) {
        const i64 l0 = TOKEN(i0), at = (both + l0) * E + ec, one = (s.b * L + l0) * E + ec;
        const int there = (int)least(HALF, last - i0);
        const store_t *pd = j.dt + at, *pu = j.u + at, *pg = j.gy + one, *pz = j.xz + 2 * one - ec + E;
        const store_t *pr = j.low + (both + l0) * wide + j.R + column;
#pragma unroll
        for (int k = 0; k < HALF / EVERY; k++) {
            const int r = row0 + k * EVERY, off = r * step_e;
            float d = 0.f, dx = 0.f, dy = 0.f;
            if (r < there && live) {
                d = softplus(get(pd + off) + bias);
                dx = d * get(pu + off);
                if (all) {
                    const float z = get(pz + 2 * off);
                    dy = get(pg + off) * z * sigmoid(z);
                }
            }
            m.dt[r][mine] = d;
            m.dx[r][mine] = dx;
            if (all) m.dy[r][mine] = dy;
        }
#pragma unroll
        for (int k = 0; k < HALF / WARPS; k++) {
            const int r = warp + k * WARPS;
            m.rows[r][column] = r < there ? get(pr + r * step_w) : 0.f;
        }
    };
    auto step = [&](int r, float (*h)[4], float (*decay)[4]) {
        const float d[4] = {m.dt[r][ch[0]], m.dt[r][ch[1]], m.dt[r][ch[2]], m.dt[r][ch[3]]};
        const float x[4] = {m.dx[r][ch[0]], m.dx[r][ch[1]], m.dx[r][ch[2]], m.dx[r][ch[3]]};
#pragma unroll
        for (int k = 0; k < 2; k++) {
            const float b = m.rows[r][g + 8 * k];
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const float a = ex2(d[c] * A[k][c]);
                if (decay) decay[k][c] = a;
                h[k][c] = a * h[k][c] + x[c] * b;
            }
        }
    };
    for (i64 i0 = (last - 1) / HALF * HALF; i0 >= first; i0 -= HALF) {
        /* the state before token i0: kept by the forward at every SEG tokens, from there computed again */
        float h[2][4];
        const i64 seg = i0 / SEG;
#pragma unroll
        for (int k = 0; k < 2; k++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const i64 ce = s.e0 + ch[c];
                h[k][c] = seg && ce < E ? j.states[((((i64)s.dir * j.B + s.b) * ((L - 1) / SEG) + seg - 1) * NS + g + 8 * k) * E + ce] : 0.f;
            }
        for (i64 before = seg * SEG; before < i0; before += HALF) {
            BARRIER();
            stage(before, false);
            BARRIER();
            for (int r = 0; r < HALF; r++) step(r, h, (float (*)[4])0);
        }
        BARRIER();
        stage(i0, true);
        BARRIER();
#pragma unroll 1
        for (int q = 0; q < HALF / SUB; q++) {
#pragma unroll
            for (int k = 0; k < 2; k++)
#pragma unroll
                for (int c = 0; c < 4; c++) m.sub[q][g + 8 * k][ch[c]] = h[k][c];
            if (q + 1 < HALF / SUB) {
#pragma unroll
                for (int r = 0; r < SUB; r++) step(q * SUB + r, h, (float (*)[4])0);
            }
        }
        /* from the end: eight tokens fill the columns of one product */
#pragma unroll 1
        for (int q2 = HALF / 8 - 1; q2 >= 0; q2--) {
            float to_b[4] = {0.f, 0.f, 0.f, 0.f}, to_c[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
            for (int part = 8 / SUB - 1; part >= 0; part--) {
                const int q = q2 * (8 / SUB) + part;
                float hs[SUB + 1][2][4], decay[SUB][2][4], sums[16];
#pragma unroll
                for (int k = 0; k < 2; k++)
#pragma unroll
                    for (int c = 0; c < 4; c++) hs[0][k][c] = m.sub[q][g + 8 * k][ch[c]];
#pragma unroll
                for (int r = 0; r < SUB; r++) {
#pragma unroll
                    for (int k = 0; k < 2; k++)
#pragma unroll
                        for (int c = 0; c < 4; c++) hs[r + 1][k][c] = hs[r][k][c];
                    step(q * SUB + r, hs[r + 1], decay[r]);
                }
#pragma unroll
                for (int r = SUB - 1; r >= 0; r--) {
                    const int i = q * SUB + r;
                    const bool column = g == part * SUB + r;
                    const float d[4] = {m.dt[i][ch[0]], m.dt[i][ch[1]], m.dt[i][ch[2]], m.dt[i][ch[3]]};
                    const float x[4] = {m.dx[i][ch[0]], m.dx[i][ch[1]], m.dx[i][ch[2]], m.dx[i][ch[3]]};
                    const float dy[4] = {m.dy[i][ch[0]], m.dy[i][ch[1]], m.dy[i][ch[2]], m.dy[i][ch[3]]};
                    float gu[4] = {0.f, 0.f, 0.f, 0.f}, gd[4] = {0.f, 0.f, 0.f, 0.f};
                    mma_parts(to_c, hs[r + 1], dy, column);
#pragma unroll
                    for (int k = 0; k < 2; k++) {
                        const float b = m.rows[i][g + 8 * k], cc = m.rows[i][NS + g + 8 * k];
#pragma unroll
                        for (int c = 0; c < 4; c++) {
                            G[k][c] += dy[c] * cc;
                            gu[c] += G[k][c] * b;
                        }
                    }
                    mma_parts(to_b, G, x, column);
#pragma unroll
                    for (int k = 0; k < 2; k++)
#pragma unroll
                        for (int c = 0; c < 4; c++) {
                            G[k][c] *= decay[r][k][c];
                            const float w = G[k][c] * hs[r][k][c];
                            gd[c] += w * A[k][c];
                            dA[k][c] += w * d[c];
                        }
#pragma unroll
                    for (int c = 0; c < 4; c++) {
                        sums[(r & 1) * 8 + c] = gu[c];
                        sums[(r & 1) * 8 + 4 + c] = gd[c];
                    }
                    if (r & 1) continue;
                    /* two tokens' sums over states: each of eight lanes ends with two of the 16 values */
                    fold<8>(sums, lane & 4, 4);
                    fold<4>(sums, lane & 8, 8);
                    fold<2>(sums, lane & 16, 16);
                    float *out = (g & 2 ? m.gd : m.gu)[i + (g & 1)] + ch[0] + (g & 4) * 2;
                    out[0] = sums[0];
                    out[1] = sums[1];
                }
            }
            const int i = q2 * 8 + 2 * t;
#pragma unroll
            for (int k = 0; k < 4; k++) {
                m.bc[warp][i + (k & 1)][g + 8 * (k >> 1)] = to_b[k];
                m.bc[warp][i + (k & 1)][NS + g + 8 * (k >> 1)] = to_c[k];
            }
        }
        BARRIER();
        const i64 l0 = TOKEN(i0), at = (both + l0) * E + ec, one = (s.b * L + l0) * E + ec, half = 2 * one - ec + E;
        const int there = (int)least(HALF, last - i0);
        const store_t *pd = j.dt + at, *pu = j.u + at, *pg = j.gy + one, *pz = j.xz + half, *ps = j.ys + one;
        store_t *qu = j.du + at, *qd = j.ddt + at, *qz = j.dxz + half;
#pragma unroll 4
        for (int k = 0; k < HALF / EVERY; k++) {
            const int r = row0 + k * EVERY, off = r * step_e;
            if (r >= there || !live) break;
            const float u = get(pu + off), dy = m.dy[r][mine], gu = m.gu[r][mine];
            /* the slope of softplus from its argument: 1 - exp(-delta) would lose small ones */
            const float dd = (LN2 * m.gd[r][mine] + gu * u) * sigmoid(get(pd + off) + bias);
            dD += dy * u;
            dbias += dd;
            put(qu + off, dy * D + gu * m.dt[r][mine]);
            put(qd + off, dd);
            if (s.dir == 0) {
                const float z = get(pz + 2 * off), q = sigmoid(z);
                put(qz + 2 * off, get(pg + off) * get(ps + off) * q * (1.f + z * (1.f - q)));
            }
        }
        float *pb = j.part_bc + ((s.blk * 2 + s.dir) * j.B * L + s.b * L + l0) * 2 * NS + column;
#pragma unroll
        for (int k = 0; k < HALF / WARPS; k++) {
            const int r = warp + k * WARPS;
            float sum = 0.f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) sum += m.bc[w][r][column];
            if (r < there) pb[r * way * 2 * NS] = sum;
        }
    }
    const i64 part = ((i64)s.dir * j.B + s.b) * j.chunks + s.c;
#pragma unroll
    for (int k = 0; k < 2; k++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            if (s.e0 + ch[c] < E) j.dA[(part * NS + g + 8 * k) * E + s.e0 + ch[c]] = dA[k][c];
    /* the threads of one channel add up in a fixed order */
    BARRIER();
    m.gu[row0][mine] = dD;
    m.gd[row0][mine] = dbias;
    BARRIER();
    if (row0 == 0 && live) {
        for (int r = 1; r < EVERY; r++) {
            dD += m.gu[r][mine];
            dbias += m.gd[r][mine];
        }
        j.dD[part * E + e] = dD;
        j.dbias[part * E + e] = dbias;
    }
#undef TOKEN
}

/* dB | dC of each token: the sums over the channel blocks, in their order. grid: x = 2 B L 32 / 256. */
KERNEL(256, 1) sum_bc(job_t j) {
    const i64 at = (i64)blockIdx.x * 256 + threadIdx.x, all = 2 * j.B * j.L * 2 * NS;
    if (at >= all) return;
    const i64 nb = (j.E + BACK_CHANNELS - 1) / BACK_CHANNELS;
    float sum = 0.f;
    for (i64 k = 0; k < nb; k++) sum += j.part_bc[k * all + at];
    put(j.dlow + at / (2 * NS) * (j.R + 2 * NS) + j.R + at % (2 * NS), sum);
}

/* The gradients of the parameters of conv and scan: the parts of batch rows, chunks and runs, in their order.
 * grid: x = channels / 64, y = 2 (16 + 2 + K + 1). */
KERNEL(64, 1) sum_parts(job_t j) {
    const i64 e = (i64)blockIdx.x * 64 + threadIdx.x, rows = NS + 2 + TAPS + 1, d = blockIdx.y / rows, E = j.E;
    const int row = (int)(blockIdx.y % rows);
    if (e >= E) return;
    const i64 parts = row < NS + 2 ? j.B * j.chunks : j.B * ((j.L + j.run - 1) / j.run);
    const i64 step = row < NS ? NS * E : row < NS + 2 ? E : (TAPS + 1) * E;
    const float *in = row < NS ? j.dA + row * E : row == NS ? j.dD : row == NS + 1 ? j.dbias : j.dconv + (row - NS - 2) * E;
    in += d * parts * step + e;
    float sum = 0.f;
    for (i64 k = 0; k < parts; k++) sum += in[k * step];
    if (row < NS)
        j.out_A_log[d][e * NS + row] = -ex2(LOG2E * j.A_log[d][e * NS + row]) * sum; /* A = -exp(A_log) */
    else if (row == NS)
        j.out_D[d][e] = sum;
    else if (row == NS + 1)
        j.out_bias[d][e] = sum;
    else if (row < NS + 2 + TAPS)
        j.out_conv_w[d][e * TAPS + row - NS - 2] = sum;
    else
        j.out_conv_b[d][e] = sum;
}
