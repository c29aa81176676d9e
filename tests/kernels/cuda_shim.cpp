// Runs CUDA kernels on the CPU, from the kernels' own text (-DSTORAGE=.. -DSOURCE="scan.cu").
//
// A CUDA thread is a fiber that gives way at barriers, shuffles and matrix products; blocks come one after the other. It
// does not model warp convergence or launch limits. With -DSANITIZE it is a program whose CUDA threads are real threads
// and which runs every kernel of scan.cu once, for ThreadSanitizer: that finds a missing barrier even where the values come out right.
#define SHIM
#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>
#ifndef SANITIZE
#include <ucontext.h>
#endif

struct index_t { long x, y; };
struct slot_t { float value; uint32_t a[4], b[2]; };
// Two sets, used in turn: who is a step ahead writes into the one that nobody reads any more.
static slot_t slots[2][1024];
static long block_size;

#ifdef SANITIZE
static thread_local index_t threadIdx, blockIdx;
static thread_local int turn;
static std::unique_ptr<std::barrier<>> block_barrier;
static std::vector<std::unique_ptr<std::barrier<>>> warp_barriers;
static void block_sync() { block_barrier->arrive_and_wait(); }
static void warp_sync() { warp_barriers[threadIdx.x / 32]->arrive_and_wait(); }
static void run_block(const std::function<void()> &body) {
    block_barrier = std::make_unique<std::barrier<>>(block_size);
    warp_barriers.clear();
    for (long w = 0; w < block_size; w += 32) warp_barriers.push_back(std::make_unique<std::barrier<>>(std::min(32l, block_size - w)));
    std::vector<std::thread> pool;
    for (long t = 0; t < block_size; t++)
        pool.emplace_back([t, &body] {
            threadIdx = {t, 0};
            turn = 0;
            body();
        });
    for (auto &thread : pool) thread.join();
}
#else
static index_t threadIdx, blockIdx;
static int turn;
struct fiber_t { ucontext_t context; int turn; bool done; std::vector<char> stack; };
struct meeting_t { long arrived = 0, round = 0; };
static std::vector<fiber_t> fibers;
static std::vector<meeting_t> warps;
static meeting_t block;
static ucontext_t outside;
static const std::function<void()> *block_body;
static void give_way(long next) {
    fiber_t &me = fibers[threadIdx.x];
    me.turn = turn;
    const long self = threadIdx.x;
    threadIdx.x = next;
    turn = fibers[next].turn;
    if (next != self) swapcontext(&me.context, &fibers[next].context);
}
static void meet(meeting_t &m, long first, long count) {
    if (++m.arrived == count) {
        m.arrived = 0;
        m.round++;
        return;
    }
    const long round = m.round;
    while (m.round == round) {
        long next = threadIdx.x;
        do next = first + (next + 1 - first) % count;
        while (fibers[next].done && next != threadIdx.x);
        give_way(next);
    }
}
static void block_sync() { meet(block, 0, block_size); }
static void warp_sync() {
    const long first = threadIdx.x / 32 * 32;
    meet(warps[first / 32], first, std::min(32l, block_size - first));
}
static void fiber_main() {
    (*block_body)();
    fibers[threadIdx.x].done = true;
    for (long t = 0; t < block_size; t++)
        if (!fibers[t].done) {
            threadIdx.x = t;
            turn = fibers[t].turn;
            setcontext(&fibers[t].context);
        }
    setcontext(&outside);
}
static void run_block(const std::function<void()> &body) {
    fibers.resize(block_size);
    warps.assign((block_size + 31) / 32, {});
    block = {};
    block_body = &body;
    for (auto &f : fibers) {
        f.stack.resize(1 << 16);
        f.turn = 0;
        f.done = false;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.data();
        f.context.uc_stack.ss_size = f.stack.size();
        f.context.uc_link = nullptr;
        makecontext(&f.context, fiber_main, 0);
    }
    threadIdx = {0, 0};
    turn = 0;
    swapcontext(&outside, &fibers[0].context);
}
#endif

#define DEVICE static inline
#define KERNEL(threads, blocks) extern "C" void
#define SHARED static
#define __align__(n) __attribute__((aligned(n)))
#define BARRIER() block_sync()
static float bits_f(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static uint32_t f_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static float flush(float x) { return std::fabs(x) < 1.17549435e-38f ? 0.f : x; }
static float ex2(float x) { return flush(std::exp2(x)); }
static float lg2(float x) { return std::log2(x); }
static float rsqrt(float x) { return 1.f / std::sqrt(x); }
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
    slot_t *set = slots[turn ^= 1];
    set[threadIdx.x].value = v;
    warp_sync();
    return set[threadIdx.x ^ mask].value;
}
static float lane_from(float v, int from, int width) {
    slot_t *set = slots[turn ^= 1];
    set[threadIdx.x].value = v;
    warp_sync();
    return set[threadIdx.x / width * width + from].value;
}
// PTX ISA, mma.m16n8k16 with 16-bit elements: which lane and register hold A(row, k), B(k, column), C(row, column).
static void mma(float *c, const uint32_t *a, uint32_t b0, uint32_t b1) {
    slot_t *set = slots[turn ^= 1], &mine = set[threadIdx.x];
    memcpy(mine.a, a, sizeof mine.a);
    mine.b[0] = b0;
    mine.b[1] = b1;
    warp_sync();
    const long warp = threadIdx.x / 32 * 32, lane = threadIdx.x % 32;
    auto half = [](uint32_t v, int odd) { return bits_f(odd ? v & 0xffff0000u : v << 16); };
    auto at_a = [&](int row, int k) { return half(set[warp + row % 8 * 4 + k % 8 / 2].a[row / 8 + 2 * (k / 8)], k & 1); };
    auto at_b = [&](int k, int n) { return half(set[warp + n * 4 + k % 8 / 2].b[k / 8], k & 1); };
    for (int i = 0; i < 4; i++) {
        const int row = (int)lane / 4 + 8 * (i / 2), column = (int)lane % 4 * 2 + i % 2;
        float sum = c[i];
        for (int k = 0; k < 16; k++) sum += at_a(row, k) * at_b(k, column);
        c[i] = sum;
    }
}

#include SOURCE

extern "C" long shim_job_size() { return sizeof(job_t); }
extern "C" void shim_launch(void (*kernel)(job_t), int threads, long x, long y, const job_t *job) {
    block_size = threads;
#ifdef SANITIZE
    run_block([=] {
        for (long by = 0; by < y; by++)
            for (long bx = 0; bx < x; bx++) {
                blockIdx = {bx, by};
                kernel(*job);
                block_sync(); // shared memory is the next block's from here
            }
    });
#else
    for (long by = 0; by < y; by++)
        for (long bx = 0; bx < x; bx++) {
            blockIdx = {bx, by};
            run_block([=] { kernel(*job); });
        }
#endif
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
    const long B = 1, L = 83, E = 72, R = 3, both = 2 * B * L, chunk = 32, chunks = 3, run = 40, runs = 3;
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
    shim_launch(conv_forward_4, 64, B * runs, 1, &j);
    shim_launch(conv_forward_1, 64, B * runs, 2, &j);
    j.chunk = chunk; j.chunks = chunks;
    for (long flags : {0L, (long)ADJOINT}) {
        j.flags = flags;
        shim_launch(flags ? scan_adjoint_4 : scan_ends_4, 64, B * 5, 2 * chunks, &j);
        shim_launch(scan_edges, 64, 2, 2 * B * 16, &j);
        if (flags) shim_launch(scan_backward, 128, B * 2, 2 * chunks, &j);
        else {
            j.flags = KEEP;
            shim_launch(scan_plain_4, 64, B * 5, 2 * chunks, &j);
            shim_launch(scan_plain_2, 64, B * 3, 2 * chunks, &j);
            shim_launch(scan_plain_1, 64, B * 2, 2 * chunks, &j);
            shim_launch(gate_sum, 256, (B * L * E + 255) / 256, 1, &j);
        }
    }
    j.chunk = L; j.chunks = 1; j.direction = 1; j.flags = KEEP;
    shim_launch(scan_gated_1, 64, B * 2, 1, &j);
    shim_launch(sum_bc, 256, (both * 32 + 255) / 256, 1, &j);
    shim_launch(conv_backward_4, 64, B * runs, 1, &j);
    shim_launch(conv_backward_1, 64, B * runs, 2, &j);
    for (int d = 0; d < 2; d++) {
        j.out_conv_w[d] = filled<float>(E * TAPS, 1); j.out_conv_b[d] = filled<float>(E, 1); j.out_bias[d] = filled<float>(E, 1);
        j.out_A_log[d] = filled<float>(E * 16, 1); j.out_D[d] = filled<float>(E, 1);
    }
    shim_launch(sum_parts, 64, 2, 2 * (16 + 2 + TAPS + 1), &j);
    std::puts("every kernel ran");
}
#endif
