// The CPU kernels for one instruction set. build.py compiles this file once for each, with -DTHAWLINE_ISA=scalar|avx2|avx512;
// everything lies in that namespace or is static, so that the linker cannot mix the copies.
#include "cpu_kernel.h"

#include <cstring>
#include <initializer_list>

#if THAWLINE_WIDTH > 1
#include <immintrin.h>
#endif

namespace THAWLINE_ISA {
namespace {  // local to the file

constexpr int W = THAWLINE_WIDTH;

#if THAWLINE_WIDTH == 1
using F = float;
using U = uint32_t;
using H = uint16_t;
using D = double;
#else
typedef float F __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef uint16_t H __attribute__((vector_size(2 * W)));
typedef double D __attribute__((vector_size(4 * W)));
#endif

struct Math {
    using F = THAWLINE_ISA::F;
    static F mul(F a, F b) { return a * b; }
    static F add(F a, F b) { return a + b; }
    static F sub(F a, F b) { return a - b; }
    static F div(F a, F b) { return a / b; }
#if THAWLINE_WIDTH == 16
    static F fma(F a, F b, F c) { return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
    static F root(F a) { return (F)_mm512_sqrt_ps((__m512)a); }
#elif THAWLINE_WIDTH == 8
    static F fma(F a, F b, F c) { return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
    static F root(F a) { return (F)_mm256_sqrt_ps((__m256)a); }
#else
    static F fma(F a, F b, F c) { return __builtin_fmaf(a, b, c); }
    static F root(F a) { return __builtin_sqrtf(a); }
#endif
};

template <class To, class From>
THAWLINE_INLINE To as(From x) {
    static_assert(sizeof(To) == sizeof(From), "a reinterpretation keeps the size");
    To y;
    std::memcpy(&y, &x, sizeof(y));
    return y;
}
template <class To, class From>
THAWLINE_INLINE To convert(From x) {
#if THAWLINE_WIDTH == 1
    return static_cast<To>(x);
#else
    return __builtin_convertvector(x, To);
#endif
}
template <class T>
THAWLINE_INLINE T load(const void* from, int64_t element) {
    T x;
    std::memcpy(&x, static_cast<const char*>(from) + element * (sizeof(T) / W), sizeof(T));
    return x;
}
template <class T>
THAWLINE_INLINE void store(void* to, int64_t element, T x) {
    std::memcpy(static_cast<char*>(to) + element * (sizeof(T) / W), &x, sizeof(T));
}
THAWLINE_INLINE F broadcast(float x) { return x - F{}; }  // not a sum, which would make -0.0 positive
// 16 bits each, made 32 with zeros or with the sign, and back where they hold no more. GCC's own conversions take up to four
// instructions for one of AVX2's.
THAWLINE_INLINE U halves(const void* from, int64_t i) {
#if THAWLINE_WIDTH == 8
    return (U)_mm256_cvtepu16_epi32((__m128i)load<H>(from, i));
#else
    return convert<U>(load<H>(from, i));
#endif
}
THAWLINE_INLINE U signed_halves(const void* from, int64_t i) {
#if THAWLINE_WIDTH == 8
    return (U)_mm256_cvtepi16_epi32((__m128i)load<H>(from, i));
#else
    return (halves(from, i) ^ 0x8000u) - 0x8000u;
#endif
}
THAWLINE_INLINE void store_halves(void* to, int64_t i, U x) {
#if THAWLINE_WIDTH == 8
    store(to, i, (H)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1)));
#else
    store(to, i, convert<H>(x));
#endif
}
THAWLINE_INLINE F widened(U upper) { return as<F>((U)(upper << 16)); }
THAWLINE_INLINE U lane_numbers() {
    U numbers;
    uint32_t each[W];
    for (int lane = 0; lane < W; lane++) each[lane] = lane;
    std::memcpy(&numbers, each, sizeof(numbers));
    return numbers;
}

template <Grad GRAD>
THAWLINE_INLINE F load_grad(const void* from, int64_t i) {
    if constexpr (GRAD == Grad::fp32) return load<F>(from, i);
    else return widened(halves(from, i));
}

// As many doubles as fill a vector, of the gradient from element i on.
constexpr int DOUBLES = W == 1 ? 1 : W / 2;
template <Grad GRAD>
THAWLINE_INLINE D doubles(const void* grad, int64_t i) {
#if THAWLINE_WIDTH == 16
    const __m256i* at = (const __m256i*)((const char*)grad + i * (GRAD == Grad::fp32 ? 4 : 2));
    if constexpr (GRAD == Grad::fp32) return (D)_mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_loadu_si256(at)));
    __m256i upper = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)at));
    return (D)_mm512_cvtps_pd(_mm256_castsi256_ps(_mm256_slli_epi32(upper, 16)));
#elif THAWLINE_WIDTH == 8
    const __m128i* at = (const __m128i*)((const char*)grad + i * (GRAD == Grad::fp32 ? 4 : 2));
    if constexpr (GRAD == Grad::fp32) return (D)_mm256_cvtps_pd(_mm_castsi128_ps(_mm_loadu_si128(at)));
    __m128i upper = _mm_cvtepu16_epi32(_mm_loadl_epi64(at));
    return (D)_mm256_cvtps_pd(_mm_castsi128_ps(_mm_slli_epi32(upper, 16)));
#else
    return load_grad<GRAD>(grad, i);
#endif
}

template <Param PARAM>
THAWLINE_INLINE F load_param(const Streams& t, int64_t i) {
    if constexpr (PARAM == Param::bf16) return widened(halves(t.param, i));
    else if constexpr (PARAM == Param::split16) return as<F>(joined(halves(t.param, i), signed_halves(t.extra, i)));
    else return load<F>(t.param, i);
}

template <Param PARAM>
THAWLINE_INLINE void store_param(const Streams& t, int64_t i, F p) {
    U bits = as<U>(p);
    if constexpr (PARAM == Param::bf16) {
        store_halves(t.param, i, nearest_bf16(p, bits));
    } else if constexpr (PARAM == Param::split16) {
        bits = splittable(p, bits);
        store_halves(t.param, i, upper_half(bits));
        store_halves(t.extra, i, lower_half(bits));
    } else {
        store(t.param, i, p);
        if constexpr (PARAM == Param::fp32_copied) store_halves(t.extra, i, nearest_bf16(p, bits));
    }
}

template <bool HAS_PEAK, Param PARAM, Grad GRAD, State STATE>
THAWLINE_INLINE void step_vector(const Streams& t, int64_t i, int64_t number, const Constants<F>& k, const Options& o) {
    constexpr bool is_wide = STATE == State::fp32;
    F p = load_param<PARAM>(t, i), g = load_grad<GRAD>(t.grad, i), peak{};
    F m = is_wide ? load<F>(t.exp_avg, i) : widened(halves(t.exp_avg, i));
    F v = is_wide ? load<F>(t.exp_avg_sq, i) : widened(halves(t.exp_avg_sq, i));
    if constexpr (HAS_PEAK) peak = load<F>(t.peak, i);
    step<Math>(p, g, m, v, HAS_PEAK ? &peak : nullptr, k);
    if constexpr (is_wide) {
        store(t.exp_avg, i, m);
        store(t.exp_avg_sq, i, v);
    } else {
        U random = random16((U)(lane_numbers() + (uint32_t)number), t.key);
        store_halves(t.exp_avg, i, nearest_bf16(m, as<U>(m)));
        store_halves(t.exp_avg_sq, i, stochastic_bf16(v, as<U>(v), random));
    }
    if constexpr (HAS_PEAK) store(t.peak, i, peak);
    store_param<PARAM>(t, i, p);
    if (o.zeroes_grad) {
        if constexpr (GRAD == Grad::fp32) store(t.grad, i, F{});
        else store(t.grad, i, H{});
    }
}

// The last elements, fewer than a vector: stepped in a buffer of one vector each, so that they meet the same instructions.
template <Param PARAM, Grad GRAD, State STATE>
void step_tail(const Streams& t, int64_t begin, int64_t count, const Constants<F>& k, const Options& o) {
    alignas(64) char buffers[6][4 * W] = {};
    const int widths[6] = {PARAM == Param::fp32 || PARAM == Param::fp32_copied ? 4 : 2, 2, GRAD == Grad::fp32 ? 4 : 2,
                           STATE == State::fp32 ? 4 : 2, STATE == State::fp32 ? 4 : 2, 4};
    void* const streams[6] = {t.param, t.extra, t.grad, t.exp_avg, t.exp_avg_sq, t.peak};
    for (int s = 0; s < 6; s++)
        if (streams[s]) std::memcpy(buffers[s], (char*)streams[s] + begin * widths[s], count * widths[s]);
    Streams local{buffers[0], buffers[1], buffers[2], buffers[3], buffers[4], t.peak ? (float*)buffers[5] : nullptr, t.key, 0};
    if (t.peak) step_vector<true, PARAM, GRAD, STATE>(local, 0, begin, k, o);
    else step_vector<false, PARAM, GRAD, STATE>(local, 0, begin, k, o);
    for (int s = 0; s < 6; s++)
        if (streams[s] && (s != 2 || o.zeroes_grad))
            std::memcpy((char*)streams[s] + begin * widths[s], buffers[s], count * widths[s]);
}

template <Param PARAM, Grad GRAD, State STATE>
void step_range(const Streams& streams, int64_t begin, int64_t end, const Scalars& s, const Options& options) {
    const Streams t = streams;  // own copies: a store to a parameter cannot change them, so they stay in registers
    const Options o = options;
    const Constants<F> k = constants<F>(s, o.is_accurate, broadcast);
    int64_t i = begin;
    if (t.peak)
        for (; i + W <= end; i += W) step_vector<true, PARAM, GRAD, STATE>(t, i, i, k, o);
    else
        for (; i + W <= end; i += W) step_vector<false, PARAM, GRAD, STATE>(t, i, i, k, o);
    if (i < end) step_tail<PARAM, GRAD, STATE>(t, i, end - i, k, o);
}

template <Param PARAM, Grad GRAD>
StepRange with_state(State state) {
    return state == State::fp32 ? &step_range<PARAM, GRAD, State::fp32> : &step_range<PARAM, GRAD, State::bf16>;
}
template <Param PARAM>
StepRange with_grad(Grad grad, State state) {
    return grad == Grad::fp32 ? with_state<PARAM, Grad::fp32>(state) : with_state<PARAM, Grad::bf16>(state);
}
StepRange select_step(Param param, Grad grad, State state) {
    switch (param) {
        case Param::fp32: return with_grad<Param::fp32>(grad, state);
        case Param::bf16: return with_grad<Param::bf16>(grad, state);
        case Param::split16: return with_grad<Param::split16>(grad, state);
        default: return with_grad<Param::fp32_copied>(grad, state);
    }
}

// Squares are exact in double. Lane i % NORM_LANES adds element i; then the lanes are halved to one.
template <Grad GRAD>
double sum_squares(const void* grad, int64_t begin, int64_t end) {
    constexpr int GROUPS = NORM_LANES / DOUBLES;
    D sums[GROUPS] = {};
    int64_t i = begin;
    for (; i + NORM_LANES <= end; i += NORM_LANES)
        for (int group = 0; group < GROUPS; group++) {
            D x = doubles<GRAD>(grad, i + group * DOUBLES);
            sums[group] += x * x;
        }
    double lanes[NORM_LANES];
    std::memcpy(lanes, sums, sizeof(lanes));
    for (int lane = 0; i < end; i++, lane++) {
        uint32_t bits = 0;
        if constexpr (GRAD == Grad::fp32) {
            std::memcpy(&bits, (const char*)grad + 4 * i, 4);
        } else {
            uint16_t half;
            std::memcpy(&half, (const char*)grad + 2 * i, 2);
            bits = (uint32_t)half << 16;
        }
        double x = as<float>(bits);
        lanes[lane] += x * x;
    }
    for (int half = NORM_LANES / 2; half; half /= 2)
        for (int lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
    return lanes[0];
}
SumSquares select_sum(Grad grad) { return grad == Grad::fp32 ? &sum_squares<Grad::fp32> : &sum_squares<Grad::bf16>; }

void touch(const Streams& t, int64_t begin, int64_t end) {
    const F little = broadcast(1e-12f);
    for (int64_t i = begin; i + W <= end; i += W) {
        F g = load<F>(t.grad, i) * little;
        for (void* stream : {t.param, t.exp_avg, t.exp_avg_sq}) store(stream, i, load<F>(stream, i) + g);
    }
}

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {&select_step, &select_sum, &touch};

}  // namespace THAWLINE_ISA
