/* What the CUDA kernels share: hardware functions, storage types, packed loads. Header-free, for NVRTC.
 *
 * -DSTORAGE=0 (float32), 1 (bfloat16) or 2 (float16) is the type that tensors are stored in; sums are float32. The same
 * text runs on the CPU through tests/kernels/cuda_shim.cpp (-DSHIM), which brings its own hardware functions.
 */
typedef unsigned short u16;
typedef unsigned int u32;
typedef long long i64;

#ifndef SHIM
#define DEVICE __device__ __forceinline__
#define KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define SHARED __shared__
#define FULL 0xffffffffu
DEVICE float ex2(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE float lg2(float x) { float y; asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE float rcp(float x) { float y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE float rsqrt(float x) { float y; asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE float bits_f(u32 x) { return __uint_as_float(x); }
DEVICE u16 to_bf16(float x) { u16 r; asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x)); return r; }
DEVICE u16 to_f16(float x) { u16 r; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(x)); return r; }
DEVICE float from_f16(u16 x) { float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x)); return r; }
/* two bf16 in one register, `a` in the lower half */
DEVICE u32 pack(float a, float b) { u32 r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(b), "f"(a)); return r; }
DEVICE float lane_xor(float v, int mask) { return __shfl_xor_sync(FULL, v, mask); }
/* c (16 x 8) += a (16 x 16) b (16 x 8) in bf16 with float32 sums, in the fragment layout of mma.m16n8k16 */
DEVICE void mma(float *c, const u32 *a, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#define BARRIER() __syncthreads()
#endif

#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f
DEVICE i64 least(i64 a, i64 b) { return a < b ? a : b; }

/* ---- storage ---- */

#if STORAGE == 0
typedef float store_t;
DEVICE float get(const store_t *p) { return *p; }
DEVICE void put(store_t *p, float v) { *p = v; }
#elif STORAGE == 1
typedef u16 store_t;
DEVICE float get(const store_t *p) { return bits_f((u32)*p << 16); }
DEVICE void put(store_t *p, float v) { *p = to_bf16(v); }
#else
typedef u16 store_t;
DEVICE float get(const store_t *p) { return from_f16(*p); }
DEVICE void put(store_t *p, float v) { *p = to_f16(v); }
#endif
template <int V> struct __align__(V * sizeof(store_t)) pack_t { store_t v[V]; };
template <int V> DEVICE void get_v(const store_t *p, bool there, float *out) {
    pack_t<V> r;
    if (there) r = *(const pack_t<V> *)p;
#pragma unroll
    for (int i = 0; i < V; i++) out[i] = there ? get(r.v + i) : 0.f;
}
template <int V> DEVICE void put_v(store_t *p, const float *in) {
    pack_t<V> r;
#pragma unroll
    for (int i = 0; i < V; i++) put(r.v + i, in[i]);
    *(pack_t<V> *)p = r;
}
