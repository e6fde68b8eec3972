// The AdamW step of one element, written once for the scalar host, AVX2, AVX-512 and CUDA.
//
// Owns the order of operations and the place of each rounding; reference.py says the same in torch, line by line, and the
// tests hold the two equal to the bit. M is the includer's arithmetic: M::F is a float or a vector of floats, and M::fma, mul,
// add, sub, div and root are each rounded once, to nearest even. U is the bits of an F: uint32_t or a vector of them.
// Nothing here may be contracted: -ffp-contract=off on the host, the _rn intrinsics on the device.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define THAWLINE_INLINE __device__ __forceinline__
#else
#define THAWLINE_INLINE static inline __attribute__((always_inline))
#endif

// Computed in double and rounded to fp32 once, by reference.scalars; the order is that of reference.packed.
struct Scalars {
    float decay, weight1, beta2, weight2, root_correction2, eps, step_size, grad_scale;
    float skips;  // not 0: leave everything as it is
};

template <class F>
struct Constants {
    F decay, weight1, beta2, weight2, root_correction2, eps, step_size, grad_scale;
    bool is_near_moment;  // interpolate from the moment (weight1 < 0.5) or from the gradient
    bool is_accurate;
};

template <class F, class Broadcast>
THAWLINE_INLINE Constants<F> constants(const Scalars& s, bool is_accurate, Broadcast broadcast) {
    bool is_near_moment = s.weight1 < 0.5f;
    float weight1 = is_near_moment ? s.weight1 : s.weight1 - 1.0f;
    return {broadcast(s.decay), broadcast(weight1), broadcast(s.beta2), broadcast(s.weight2), broadcast(s.root_correction2),
            broadcast(s.eps), broadcast(s.step_size), broadcast(s.grad_scale), is_near_moment, is_accurate};
}

// Algorithm 2 of Loshchilov and Hutter (ICLR 2019). peak is AMSGrad's running maximum, or null.
template <class M, class F = typename M::F>
THAWLINE_INLINE void step(F& p, F g, F& m, F& v, F* peak, const Constants<F>& k) {
    g = M::mul(g, k.grad_scale);                                           // line 6; negative to maximize
    if (!k.is_accurate) p = M::mul(p, k.decay);                            // line 12, second term
    m = M::fma(k.weight1, M::sub(g, m), k.is_near_moment ? m : g);         // line 7
    v = M::fma(M::mul(k.weight2, g), g, M::mul(v, k.beta2));               // line 8
    F second = v;
    if (peak) second = *peak = ((v > *peak) | (v != v)) ? v : *peak;
    F denominator = M::add(M::div(M::root(second), k.root_correction2), k.eps);  // lines 9, 10
    F change = M::div(M::mul(k.step_size, m), denominator);                // line 12, first term
    p = M::add(p, k.is_accurate ? M::fma(p, k.decay, change) : change);
}

// bf16 is the upper half of an fp32. NaN becomes the one quiet NaN, so that rounding cannot carry it into another number.
constexpr uint32_t QUIET_NAN_BITS = 0x7fc00000u;

template <class F, class U>
THAWLINE_INLINE U nearest_bf16(F x, U bits) {
    return (x != x) ? (U)(bits * 0 + (QUIET_NAN_BITS >> 16)) : (U)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Up or down with the probability that makes the mean exact; `random` is below 2^16.
template <class F, class U>
THAWLINE_INLINE U stochastic_bf16(F x, U bits, U random) {
    return (x != x) ? (U)(bits * 0 + (QUIET_NAN_BITS >> 16)) : (U)((bits + random) >> 16);
}

// split16: the parameter is the fp32 value rounded half up; the low half, as a signed number, leads back to it exactly.
template <class F, class U>
THAWLINE_INLINE U splittable(F x, U bits) {
    return (x != x) ? (U)(bits * 0 + QUIET_NAN_BITS) : bits;
}
template <class U>
THAWLINE_INLINE U upper_half(U bits) { return (bits + 0x8000u) >> 16; }
template <class U>
THAWLINE_INLINE U lower_half(U bits) { return bits & 0xffffu; }
template <class U>
THAWLINE_INLINE U joined(U upper, U signed_lower) { return (upper << 16) + signed_lower; }

// 16 random bits for element `index` under `key`: the finaliser of MurmurHash3 (Appleby), a pure function, so that any
// partition over threads and any resume draws the same.
template <class U>
THAWLINE_INLINE U random16(U index, uint32_t key) {
    U h = (index * 0x9e3779b9u) ^ key;
    h = (h ^ (h >> 16)) * 0x85ebca6bu;
    h = (h ^ (h >> 13)) * 0xc2b2ae35u;
    return (h ^ (h >> 16)) >> 16;
}
