// The CUDA kernels: one launch for up to MAX_TENSORS tensors, a block for each chunk. No torch here.
//
// Every element takes step.h's operations with the _rn intrinsics, which the compiler may not contract; so the bits are the
// CPU's. The scalars are read from device memory, so that a captured graph can be replayed with new ones; or they travel with
// the launch, which then waits for no copy.
#pragma once
#include <cuda_runtime.h>

#include "layouts.h"

namespace thawline {

struct DeviceMath {
    using F = float;
    static __device__ __forceinline__ F mul(F a, F b) { return __fmul_rn(a, b); }
    static __device__ __forceinline__ F add(F a, F b) { return __fadd_rn(a, b); }
    static __device__ __forceinline__ F sub(F a, F b) { return __fsub_rn(a, b); }
    static __device__ __forceinline__ F div(F a, F b) { return __fdiv_rn(a, b); }
    static __device__ __forceinline__ F fma(F a, F b, F c) { return __fmaf_rn(a, b, c); }
    static __device__ __forceinline__ F root(F a) { return __fsqrt_rn(a); }
};

constexpr int WIDTH = 4;                     // elements a thread loads at once: 16 bytes of fp32
constexpr int MAX_TENSORS = 4000;            // gradient pointers by value: 32,000 of the 32,764 bytes of parameters
constexpr int NORM_THREADS = 256;

// Of a block: small ones leave no half-empty last wave. Measured on an H100, see kernels/README.md; the rounding of bf16
// moments takes more instructions, and then fewer threads with more turns are faster.
template <State STATE> constexpr int THREADS = STATE == State::fp32 ? 512 : 128;
template <State STATE> constexpr int64_t CHUNK = STATE == State::fp32 ? 4096 : 2048;

// Tables in device memory; they change only when the tensors do.
struct TensorEntry {
    Streams streams;  // without what changes from step to step: the gradient and the key
    int64_t numel;
};
struct ChunkEntry {
    int tensor;
    int unused;
    int64_t begin;
};
// Gradients are new tensors after every zero_grad(set_to_none=True), so their pointers travel with the launch.
struct GradPointers {
    void* of[MAX_TENSORS];
};

template <int BYTES> struct alignas(BYTES) Packet { unsigned char bytes[BYTES]; };

// Streaming: nothing of an optimizer step is read again before the cache has turned over.
__device__ __forceinline__ void read(Packet<16>& to, const void* from) { *reinterpret_cast<int4*>(&to) = __ldcs((const int4*)from); }
__device__ __forceinline__ void read(Packet<8>& to, const void* from) { *reinterpret_cast<int2*>(&to) = __ldcs((const int2*)from); }
__device__ __forceinline__ void write(void* to, const Packet<16>& from) { __stcs((int4*)to, *reinterpret_cast<const int4*>(&from)); }
__device__ __forceinline__ void write(void* to, const Packet<8>& from) { __stcs((int2*)to, *reinterpret_cast<const int2*>(&from)); }

template <class T>
struct Lanes {
    T x[WIDTH];
    // `count` elements: all of them in one transaction where the address allows, else one by one.
    __device__ __forceinline__ void load(const void* stream, int64_t i, int count, bool is_aligned) {
        if (!stream) return;
        const T* from = static_cast<const T*>(stream) + i;
        if (is_aligned) read(*reinterpret_cast<Packet<sizeof(T) * WIDTH>*>(x), from);
        else for (int j = 0; j < WIDTH; j++) x[j] = j < count ? from[j] : T(0);
    }
    __device__ __forceinline__ void store(void* stream, int64_t i, int count, bool is_aligned) const {
        if (!stream) return;
        T* to = static_cast<T*>(stream) + i;
        if (is_aligned) write(to, *reinterpret_cast<const Packet<sizeof(T) * WIDTH>*>(x));
        else for (int j = 0; j < WIDTH; j++) if (j < count) to[j] = x[j];
    }
};

__device__ __forceinline__ float widened(uint16_t upper) { return __uint_as_float((uint32_t)upper << 16); }
__device__ __forceinline__ float widened(float value) { return value; }

template <Param PARAM, class P, class X>
__device__ __forceinline__ float param_value(P p, X x) {
    if constexpr (PARAM == Param::split16) return __uint_as_float(joined<uint32_t>(p, static_cast<int16_t>(x)));
    else return widened(p);
}
template <Param PARAM, class P, class X>
__device__ __forceinline__ void keep_param(float value, P& p, X& x) {
    uint32_t bits = __float_as_uint(value);
    if constexpr (PARAM == Param::bf16) p = nearest_bf16(value, bits);
    else if constexpr (PARAM == Param::split16) {
        bits = splittable(value, bits);
        p = upper_half(bits);
        x = lower_half(bits);
    } else p = value;
    if constexpr (PARAM == Param::fp32_copied) x = nearest_bf16(value, bits);
}

__device__ __forceinline__ bool is_packet_aligned(const void* stream, int64_t element, int bytes) {
    return ((reinterpret_cast<uintptr_t>(stream) + element * bytes) % (bytes * WIDTH)) == 0;
}

// Field by field, through an intrinsic: of `scalars ? *scalars : given` nvcc 13.0 reads the first field from `given` always.
__device__ __forceinline__ Scalars read_scalars(const Scalars* scalars, const Scalars& given) {
    Scalars s = given;
    if (scalars)
        for (int i = 0; i < static_cast<int>(sizeof(Scalars) / sizeof(float)); i++)
            reinterpret_cast<float*>(&s)[i] = __ldcg(reinterpret_cast<const float*>(scalars) + i);
    return s;
}

template <Param PARAM, Grad GRAD, State STATE>
__global__ void __launch_bounds__(THREADS<STATE>) adamw_kernel(
    const TensorEntry* __restrict__ tensors, const ChunkEntry* __restrict__ chunks, const uint32_t* __restrict__ keys,
    int first_tensor, const Scalars* __restrict__ scalars, const __grid_constant__ Scalars given, Options options,
    const __grid_constant__ GradPointers grads) {
    using P = std::conditional_t<PARAM == Param::fp32 || PARAM == Param::fp32_copied, float, uint16_t>;
    using G = std::conditional_t<GRAD == Grad::fp32, float, uint16_t>;
    using S = std::conditional_t<STATE == State::fp32, float, uint16_t>;
    const Scalars s = read_scalars(scalars, given);
    if (s.skips != 0.0f) return;
    const Constants<float> k = constants<float>(s, options.is_accurate, [](float x) { return x; });
    const ChunkEntry chunk = chunks[blockIdx.x];
    const TensorEntry& entry = tensors[chunk.tensor];
    Streams t = entry.streams;
    if constexpr (STATE == State::bf16) t.key = keys[chunk.tensor];
    t.grad = grads.of[chunk.tensor - first_tensor];
    const int64_t end = min(chunk.begin + CHUNK<STATE>, entry.numel);
    bool is_aligned = is_packet_aligned(t.param, chunk.begin, sizeof(P)) && is_packet_aligned(t.extra, chunk.begin, 2) &&
                      is_packet_aligned(t.grad, chunk.begin, sizeof(G)) && is_packet_aligned(t.exp_avg, chunk.begin, sizeof(S)) &&
                      is_packet_aligned(t.exp_avg_sq, chunk.begin, sizeof(S)) && is_packet_aligned(t.peak, chunk.begin, 4);
    for (int64_t i = chunk.begin + WIDTH * threadIdx.x; i < end; i += WIDTH * THREADS<STATE>) {
        const int count = min((int64_t)WIDTH, end - i);
        const bool is_whole = is_aligned && count == WIDTH;
        Lanes<P> p; Lanes<uint16_t> x; Lanes<G> g; Lanes<S> m, v; Lanes<float> peak;
        p.load(t.param, i, count, is_whole);
        x.load(t.extra, i, count, is_whole);
        g.load(t.grad, i, count, is_whole);
        m.load(t.exp_avg, i, count, is_whole);
        v.load(t.exp_avg_sq, i, count, is_whole);
        peak.load(t.peak, i, count, is_whole);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) {
            float value = param_value<PARAM>(p.x[j], x.x[j]), first = widened(m.x[j]), second = widened(v.x[j]);
            step<DeviceMath>(value, widened(g.x[j]), first, second, t.peak ? &peak.x[j] : nullptr, k);
            keep_param<PARAM>(value, p.x[j], x.x[j]);
            if constexpr (STATE == State::fp32) {
                m.x[j] = first;
                v.x[j] = second;
            } else {
                m.x[j] = nearest_bf16(first, __float_as_uint(first));
                v.x[j] = stochastic_bf16(second, __float_as_uint(second), random16((uint32_t)(i + j), t.key));
            }
            g.x[j] = G(0);
        }
        p.store(t.param, i, count, is_whole);
        x.store(PARAM == Param::split16 || PARAM == Param::fp32_copied ? t.extra : nullptr, i, count, is_whole);
        m.store(t.exp_avg, i, count, is_whole);
        v.store(t.exp_avg_sq, i, count, is_whole);
        peak.store(t.peak, i, count, is_whole);
        if (options.zeroes_grad) g.store(t.grad, i, count, is_whole);
    }
}

// One warp a chunk of NORM_CHUNK: lane l adds the elements l, l + 32, ... in order, then the lanes are halved to one: the
// order of reference.py, so the sums are the CPU's to the bit.
template <Grad GRAD>
__global__ void __launch_bounds__(NORM_THREADS) sums_kernel(const ChunkEntry* __restrict__ chunks, const int64_t* __restrict__ numels,
                                                       int num_chunks, int first_tensor, double* __restrict__ sums,
                                                       const __grid_constant__ GradPointers grads) {
    using G = std::conditional_t<GRAD == Grad::fp32, float, uint16_t>;
    const int index = blockIdx.x * (NORM_THREADS / NORM_LANES) + threadIdx.x / NORM_LANES, lane = threadIdx.x % NORM_LANES;
    if (index >= num_chunks) return;
    const ChunkEntry chunk = chunks[index];
    const G* grad = static_cast<const G*>(grads.of[chunk.tensor - first_tensor]);
    const int64_t end = min(chunk.begin + NORM_CHUNK, numels[chunk.tensor]);
    double sum = 0.0;
#pragma unroll 16
    for (int64_t i = chunk.begin + lane; i < end; i += NORM_LANES) {
        double x = widened(grad[i]);
        sum = __dadd_rn(sum, __dmul_rn(x, x));
    }
    for (int half = NORM_LANES / 2; half; half /= 2) sum = __dadd_rn(sum, __shfl_down_sync(0xffffffffu, sum, half));
    if (lane == 0) sums[index] = sum;
}

}  // namespace thawline
