/* Residual add and RMSNorm in one kernel, forward and backward: a warp per row, rows of up to 1024 columns.
 *
 * x = residual + scale hidden;  out = x rstd weight,  rstd = (mean(x^2) + eps)^(-1/2). The residual stream, weight and
 * sums are float32; hidden and out are in storage. Each row is read once and stays in registers.
 */
#include "common.cuh"

#define WARPS 4
#define QUADS 8 /* of four columns, per lane */

struct __align__(16) four_t { float v[4]; };
struct job_t {
    i64 rows, D, L;         /* L rows share a scale */
    const float *residual;  /* (rows, D) */
    const store_t *hidden;  /* (rows, D) or null */
    const float *scale;     /* (rows / L) or null: 1 */
    const float *weight;    /* (D) */
    float *x;               /* (rows, D), null without hidden: the residual itself */
    float *rstd;            /* (rows) */
    store_t *out;           /* (rows, D) */
    const store_t *g_out;   /* (rows, D) */
    const float *g_x;       /* (rows, D) or null */
    float *d_residual;      /* (rows, D) */
    store_t *d_hidden;      /* (rows, D) or null */
    float *parts, *d_weight; /* (blocks, D), (D) */
    i64 blocks;
    double eps;
};

DEVICE float over_lanes(float v) {
#pragma unroll
    for (int m = 1; m < 32; m *= 2) v += lane_xor(v, m);
    return v;
}
DEVICE float inverse_root(float v) {
    /* the approximation, and one Newton step for full float32 */
    float r = rsqrt(v);
    return r * (1.5f - 0.5f * v * r * r);
}

/* grid: x = rows / 4 */
KERNEL(32 * WARPS, 1) add_norm_forward(job_t j) {
    const i64 row = (i64)blockIdx.x * WARPS + threadIdx.x / 32, D = j.D;
    const int lane = threadIdx.x % 32;
    if (row >= j.rows) return;
    const float scale = j.scale ? j.scale[row / j.L] : 1.f;
    four_t x[QUADS];
    float sum = 0.f;
#pragma unroll
    for (int k = 0; k < QUADS; k++) {
        const i64 c = 4 * lane + 128 * k;
        if (c < D) x[k] = *(const four_t *)(j.residual + row * D + c);
    }
#pragma unroll
    for (int k = 0; k < QUADS; k++) {
        const i64 c = 4 * lane + 128 * k;
        if (c >= D) continue;
        if (j.hidden) {
            float h[4];
            get_v<4>(j.hidden + row * D + c, true, h);
#pragma unroll
            for (int i = 0; i < 4; i++) x[k].v[i] += scale * h[i];
            *(four_t *)(j.x + row * D + c) = x[k];
        }
#pragma unroll
        for (int i = 0; i < 4; i++) sum += x[k].v[i] * x[k].v[i];
    }
    const float rstd = inverse_root(over_lanes(sum) / (float)D + (float)j.eps);
    if (lane == 0) j.rstd[row] = rstd;
#pragma unroll
    for (int k = 0; k < QUADS; k++) {
        const i64 c = 4 * lane + 128 * k;
        if (c >= D) continue;
        const four_t w = *(const four_t *)(j.weight + c);
        float o[4];
#pragma unroll
        for (int i = 0; i < 4; i++) o[i] = x[k].v[i] * rstd * w.v[i];
        put_v<4>(j.out + row * D + c, o);
    }
}

/* j.residual: x of the forward. A block takes every blocks-th group of rows, so its part of the weight's gradient is a sum
 * in a fixed order. grid: x = blocks */
KERNEL(32 * WARPS, 3) add_norm_backward(job_t j) {
    SHARED four_t sums[WARPS][QUADS * 32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const i64 D = j.D;
    four_t dw[QUADS];
#pragma unroll
    for (int k = 0; k < QUADS; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) dw[k].v[i] = 0.f;
    for (i64 row = (i64)blockIdx.x * WARPS + warp; row < j.rows; row += j.blocks * WARPS) {
        const float rstd = j.rstd[row], scale = j.scale ? j.scale[row / j.L] : 1.f;
        four_t xhat[QUADS], g[QUADS];
        float sum = 0.f;
#pragma unroll
        for (int k = 0; k < QUADS; k++) {
            const i64 c = 4 * lane + 128 * k;
            if (c >= D) continue;
            xhat[k] = *(const four_t *)(j.residual + row * D + c);
            get_v<4>(j.g_out + row * D + c, true, g[k].v);
            const four_t w = *(const four_t *)(j.weight + c);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                xhat[k].v[i] *= rstd;
                dw[k].v[i] += g[k].v[i] * xhat[k].v[i];
                g[k].v[i] *= w.v[i];
                sum += g[k].v[i] * xhat[k].v[i];
            }
        }
        const float mean = over_lanes(sum) / (float)D;
#pragma unroll
        for (int k = 0; k < QUADS; k++) {
            const i64 c = 4 * lane + 128 * k;
            if (c >= D) continue;
            four_t d;
#pragma unroll
            for (int i = 0; i < 4; i++) d.v[i] = rstd * (g[k].v[i] - xhat[k].v[i] * mean);
            if (j.g_x) {
                const four_t r = *(const four_t *)(j.g_x + row * D + c);
#pragma unroll
                for (int i = 0; i < 4; i++) d.v[i] += r.v[i];
            }
            *(four_t *)(j.d_residual + row * D + c) = d;
            if (j.d_hidden) {
#pragma unroll
                for (int i = 0; i < 4; i++) d.v[i] *= scale;
                put_v<4>(j.d_hidden + row * D + c, d.v);
            }
        }
    }
#pragma unroll
    for (int k = 0; k < QUADS; k++) sums[warp][32 * k + lane] = dw[k];
    BARRIER();
    for (i64 c = threadIdx.x; 4 * c < D; c += 32 * WARPS) {
        four_t total = sums[0][c];
        for (int w = 1; w < WARPS; w++)
            for (int i = 0; i < 4; i++) total.v[i] += sums[w][c].v[i];
        *(four_t *)(j.parts + blockIdx.x * D + 4 * c) = total;
    }
}

/* grid: x = columns / 32; eight threads add a column's parts, every eighth each */
KERNEL(256, 1) add_norm_weight(job_t j) {
    SHARED float sums[8][32];
    const int lane = threadIdx.x % 32, group = threadIdx.x / 32;
    const i64 c = (i64)blockIdx.x * 32 + lane;
    float sum = 0.f;
    if (c < j.D)
        for (i64 b = group; b < j.blocks; b += 8) sum += j.parts[b * j.D + c];
    sums[group][lane] = sum;
    BARRIER();
    if (group == 0 && c < j.D) {
        for (int k = 1; k < 8; k++) sum += sums[k][lane];
        j.d_weight[c] = sum;
    }
}
