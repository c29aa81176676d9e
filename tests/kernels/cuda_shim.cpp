// Runs the CUDA kernels of bimamba on CPU threads: a CUDA thread is a std::thread, blocks come one after the other.
//
// Compiled with the kernels' own text (-DSTORAGE=.. -DTAPS=.. -DSOURCE="scan.cu"). It models barriers, shuffles and matrix
// products, not warp convergence or launch limits. With -DSANITIZE it is a program that runs every kernel once, for
// ThreadSanitizer, which finds a missing barrier even where the values come out right.
#define SHIM
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

struct index_t { long x, y; };
static thread_local index_t threadIdx, blockIdx;
static std::unique_ptr<std::barrier<>> block_barrier;
static std::vector<std::unique_ptr<std::barrier<>>> warp_barriers;
struct slot_t { float value; uint32_t a[4], b[2]; };
static slot_t slots[1024];

#define DEVICE static inline
#define KERNEL(threads, blocks) extern "C" void
#define SHARED static
#define __align__(n) alignas(n)
#define BARRIER() block_barrier->arrive_and_wait()
static void warp_sync() { warp_barriers[threadIdx.x / 32]->arrive_and_wait(); }
static float bits_f(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static uint32_t f_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static float flush(float x) { return std::fabs(x) < 1.17549435e-38f ? 0.f : x; }
static float ex2(float x) { return flush(std::exp2(x)); }
static float lg2(float x) { return std::log2(x); }
static float rcp(float x) { return flush(1.f / x); }
static uint16_t to_bf16(float f) {
    if (f != f) return 0x7fff;
    uint32_t u = f_bits(f);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
static uint16_t to_f16(float f) {
    if (f != f) return 0x7fff;
    const uint16_t sign = (uint16_t)(f_bits(f) >> 16 & 0x8000);
    const float size = std::fabs(f);
    if (size >= 65520.f) return sign | 0x7c00;
    int exponent = size == 0.f ? -14 : std::max(-14, std::ilogb(size));
    float steps = std::nearbyint(std::ldexp(size, 10 - exponent)); // half to even
    if (steps >= 2048.f) { steps = 1024.f; exponent++; }
    return sign | (uint16_t)(steps < 1024.f ? (int)steps : (exponent + 15) << 10 | ((int)steps - 1024));
}
static float from_f16(uint16_t h) {
    const int exponent = h >> 10 & 31, rest = h & 1023;
    float v = exponent == 31 ? (rest ? NAN : INFINITY) : exponent ? std::ldexp(1024.f + rest, exponent - 25) : std::ldexp((float)rest, -24);
    return h & 0x8000 ? -v : v;
}
static uint32_t pack(float a, float b) { return to_bf16(a) | (uint32_t)to_bf16(b) << 16; }
static float lane_xor(float v, int mask) {
    slots[threadIdx.x].value = v;
    warp_sync();
    float r = slots[threadIdx.x ^ mask].value;
    warp_sync();
    return r;
}
// PTX ISA, mma.m16n8k16 with 16-bit elements: which lane and register hold A(row, k), B(k, column), C(row, column).
static void mma(float *c, const uint32_t *a, uint32_t b0, uint32_t b1) {
    slot_t &mine = slots[threadIdx.x];
    memcpy(mine.a, a, sizeof mine.a);
    mine.b[0] = b0;
    mine.b[1] = b1;
    warp_sync();
    const long warp = threadIdx.x / 32 * 32, lane = threadIdx.x % 32;
    auto half = [](uint32_t v, int odd) { return bits_f(odd ? v & 0xffff0000u : v << 16); };
    auto at_a = [&](int row, int k) { return half(slots[warp + row % 8 * 4 + k % 8 / 2].a[row / 8 + 2 * (k / 8)], k & 1); };
    auto at_b = [&](int k, int n) { return half(slots[warp + n * 4 + k % 8 / 2].b[k / 8], k & 1); };
    for (int i = 0; i < 4; i++) {
        const int row = (int)lane / 4 + 8 * (i / 2), column = (int)lane % 4 * 2 + i % 2;
        float sum = c[i];
        for (int k = 0; k < 16; k++) sum += at_a(row, k) * at_b(k, column);
        c[i] = sum;
    }
    warp_sync();
}

#include SOURCE

extern "C" long shim_job_size() { return sizeof(job_t); }
extern "C" void shim_launch(void (*kernel)(job_t), int threads, long x, long y, const job_t *job) {
    block_barrier = std::make_unique<std::barrier<>>(threads);
    warp_barriers.clear();
    for (int w = 0; w < threads; w += 32) warp_barriers.push_back(std::make_unique<std::barrier<>>(std::min(32, threads - w)));
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; t++)
        pool.emplace_back([=] {
            threadIdx = {t, 0};
            for (long by = 0; by < y; by++)
                for (long bx = 0; bx < x; bx++) {
                    blockIdx = {bx, by};
                    kernel(*job);
                    block_barrier->arrive_and_wait(); // shared memory is the next block's from here
                }
        });
    for (auto &thread : pool) thread.join();
}

#ifdef SANITIZE
static std::vector<std::unique_ptr<char[]>> kept;
template <class T> static T *filled(long count, float scale) {
    kept.push_back(std::make_unique<char[]>(count * sizeof(T) + 64));
    T *p = (T *)(((uintptr_t)kept.back().get() + 63) & ~(uintptr_t)63);
    for (long i = 0; i < count; i++) {
        float v = scale * (float)std::sin(0.7 * i + 1.3 * kept.size());
        if constexpr (sizeof(T) == 4) p[i] = v;
        else p[i] = to_bf16(v);
    }
    return p;
}
int main() {
    const long B = 2, L = 83, E = 72, R = 3, both = 2 * B * L, chunk = 32, chunks = 3, run = 40, runs = 3;
    job_t j = {};
    j.B = B; j.L = L; j.E = E; j.R = R; j.run = run;
    j.xz = filled<store_t>(B * L * 2 * E, 1); j.u = filled<store_t>(both * E, 1); j.dt = filled<store_t>(both * E, 1);
    j.low = filled<store_t>(both * (R + 32), 1); j.y = filled<store_t>(B * L * E, 1); j.ys = filled<store_t>(B * L * E, 1);
    for (int d = 0; d < 2; d++) {
        j.conv_w[d] = filled<float>(E * TAPS, 0.5); j.conv_b[d] = filled<float>(E, 0.1); j.bias[d] = filled<float>(E, 1);
        j.A_log[d] = filled<float>(E * 16, 1); j.D[d] = filled<float>(E, 1);
    }
    j.states = filled<float>(2 * B * ((L - 1) / SEG) * 16 * E, 1); j.edges = filled<float>(2 * B * chunks * 16 * E, 1);
    j.sums = filled<float>(2 * B * chunks * E, 1); j.gy = filled<store_t>(B * L * E, 1);
    j.du = filled<store_t>(both * E, 1); j.ddt = filled<store_t>(both * E, 1); j.dxz = filled<store_t>(B * L * 2 * E, 1);
    j.part_bc = filled<float>(2 * both * 32, 1); j.dlow = filled<store_t>(both * (R + 32), 1);
    j.dA = filled<float>(2 * B * chunks * 16 * E, 1); j.dD = filled<float>(2 * B * chunks * E, 1);
    j.dbias = filled<float>(2 * B * chunks * E, 1); j.dconv = filled<float>(2 * B * runs * (TAPS + 1) * E, 1);
    shim_launch(conv_forward_4, 64, 1, B * runs, &j);
    shim_launch(conv_forward_1, 64, 2, B * runs, &j);
    j.chunk = chunk; j.chunks = chunks; j.directions = 2;
    for (long flags : {0L, (long)ADJOINT}) {
        j.flags = flags;
        shim_launch(scan_ends_4, 64, B * 5, 2 * chunks, &j);
        shim_launch(scan_edges, 64, 2, 2 * B * 16, &j);
        if (flags) shim_launch(scan_backward, 128, B * 2, 2 * chunks, &j);
        else {
            j.flags = STATES;
            shim_launch(scan_forward_4, 64, B * 5, 2 * chunks, &j);
            shim_launch(scan_forward_1, 64, B * 2, 2 * chunks, &j);
            j.flags = KEEP;
            shim_launch(gate_sum, 256, (B * L * E + 255) / 256, 1, &j);
        }
    }
    j.chunk = L; j.chunks = 1; j.direction = 1; j.directions = 1; j.flags = ADD | GATE | KEEP | STATES;
    shim_launch(scan_forward_1, 64, B * 2, 1, &j);
    shim_launch(sum_bc, 256, (both * 32 + 255) / 256, 1, &j);
    shim_launch(conv_backward_4, 64, 1, B * runs, &j);
    shim_launch(conv_backward_1, 64, 2, B * runs, &j);
    std::puts("every kernel ran");
}
#endif
