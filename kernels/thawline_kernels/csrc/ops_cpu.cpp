// thawline::adamw_, sums_of_squares_ and touch_ for CPU tensors: one parallel region over all tensors. ops.py holds the schemas.
//
// Owns the checks, the instruction set chosen at run time, and the cutting of the work into chunks; cpu_kernel.cpp the loops.
// Built against libtorch's stable ABI, so one binary serves torch 2.10 and later.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "cpu_kernel.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

namespace {

constexpr int64_t CHUNK = 1 << 15;  // elements; four streams of it fit in a core's second-level cache

const Kernels& kernels_for(const std::string& isa) {
#if defined(__x86_64__)
    static const bool has_avx512 = __builtin_cpu_supports("avx512f");
    static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx512 && (isa.empty() || isa == "avx512")) return avx512::kernels;
    if (has_avx2 && (isa.empty() || isa == "avx2")) return avx2::kernels;
#endif
    STD_TORCH_CHECK(isa.empty() || isa == "scalar", "thawline: this CPU has no ", isa, "; leave isa empty to take the best it has");
    return scalar::kernels;
}

bool is_bf16(const Tensor& t, const char* what) {
    bool is_half = t.scalar_type() == ScalarType::BFloat16;
    STD_TORCH_CHECK(is_half || t.scalar_type() == ScalarType::Float, "thawline: ", what, " must be float32 or bfloat16");
    return is_half;
}

// Every element of a chunk of memory belongs to one parameter: the callers hand over one layout, checked here.
void check_layout(const Tensor& param, const Tensor& other, const char* what) {
    bool is_same = other.is_cpu() && other.dim() == param.dim();
    for (int64_t d = 0; is_same && d < param.dim(); d++)
        is_same = other.size(d) == param.size(d) && (other.stride(d) == param.stride(d) || param.size(d) < 2);
    STD_TORCH_CHECK(is_same, "thawline: ", what, " differs from its parameter in device, shape or strides");
}

void check_dense(const Tensor& t) {
    if (t.is_contiguous()) return;
    int64_t span = 1;
    for (int64_t d = 0; d < t.dim(); d++) span += (t.size(d) - 1) * t.stride(d);
    STD_TORCH_CHECK(span == t.numel(), "thawline: the elements of a parameter or gradient do not fill their memory");
}

// Hands out the chunks of all tensors, laid end to end, to whichever thread is free. Which thread takes a chunk, and where
// the chunks are cut, changes no bit: the step of an element needs that element alone.
template <class Visit>
void for_each_chunk(const std::vector<int64_t>& numels, Visit visit) {
    std::vector<int64_t> ends(numels.size());
    int64_t total = 0;
    for (size_t t = 0; t < numels.size(); t++) ends[t] = total += numels[t];
    const int64_t num_chunks = (total + CHUNK - 1) / CHUNK;
    std::atomic<int64_t> next{0};
    auto work = [&](int64_t, int64_t) {
        for (int64_t chunk; (chunk = next.fetch_add(1, std::memory_order_relaxed)) < num_chunks;) {
            int64_t begin = chunk * CHUNK, end = std::min(begin + CHUNK, total);
            for (size_t t = std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin(); begin < end; t++) {
                const int64_t start = ends[t] - numels[t], stop = std::min(end, ends[t]);
                if (begin < stop) visit(t, begin - start, stop - start);
                begin = stop;
            }
        }
    };
    const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), num_chunks);
    if (threads > 1) torch::stable::parallel_for(0, threads, 1, work);
    else work(0, 1);
}

struct Layout {
    Param param;
    Grad grad;
    State state;
    bool operator==(const Layout&) const = default;
};

Layout layout_of(const Tensor& param, const Tensor& grad, const Tensor& exp_avg, const Tensor* extra) {
    Param format = is_bf16(param, "a parameter") ? Param::bf16 : Param::fp32;
    if (extra) {
        format = format == Param::bf16 ? Param::split16 : Param::fp32_copied;
        auto wanted = format == Param::split16 ? ScalarType::Short : ScalarType::BFloat16;
        STD_TORCH_CHECK(extra->scalar_type() == wanted, "thawline: beside a bf16 parameter goes int16, beside an fp32 master bf16");
    }
    return {format, is_bf16(grad, "a gradient") ? Grad::bf16 : Grad::fp32, is_bf16(exp_avg, "a moment") ? State::bf16 : State::fp32};
}

Streams streams_of(const Tensor& param, const Tensor* extra, const Tensor& grad, const Tensor& m, const Tensor& v, const Tensor* peak) {
    check_dense(param);
    check_layout(param, grad, "a gradient");
    check_layout(param, m, "exp_avg");
    check_layout(param, v, "exp_avg_sq");
    STD_TORCH_CHECK(m.scalar_type() == v.scalar_type(), "thawline: exp_avg and exp_avg_sq differ in dtype");
    if (extra) check_layout(param, *extra, "the low half or bf16 copy");
    if (peak) check_layout(param, *peak, "max_exp_avg_sq");
    STD_TORCH_CHECK(!peak || peak->scalar_type() == ScalarType::Float, "thawline: max_exp_avg_sq must be float32");
    return {param.data_ptr(), extra ? extra->data_ptr() : nullptr, grad.data_ptr(), m.data_ptr(), v.data_ptr(),
            peak ? static_cast<float*>(peak->data_ptr()) : nullptr, 0};
}

void adamw(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors peaks, Tensors extras, Tensor scalars,
           std::vector<int64_t> keys, bool is_accurate, bool zero_grad, std::string isa) {
    const size_t count = params.size();
    for (const Tensors* list : {&grads, &exp_avgs, &exp_avg_sqs})
        STD_TORCH_CHECK(list->size() == count, "thawline: the lists of tensors differ in length");
    for (size_t length : {peaks.size(), extras.size(), keys.size()})
        STD_TORCH_CHECK(length == 0 || length == count, "thawline: the lists of tensors differ in length");
    STD_TORCH_CHECK(scalars.is_cpu() && scalars.scalar_type() == ScalarType::Float && scalars.numel() * sizeof(float) == sizeof(Scalars) &&
                        scalars.is_contiguous(), "thawline: scalars must be the nine float32 of reference.pack, on the CPU");
    Scalars s = *static_cast<const Scalars*>(scalars.data_ptr());
    if (!count || s.skips != 0.0f) return;
    const Layout layout = layout_of(params[0], grads[0], exp_avgs[0], extras.empty() ? nullptr : &extras[0]);
    std::vector<Streams> streams(count);
    std::vector<int64_t> numels(count);
    for (size_t t = 0; t < count; t++) {
        const Tensor *extra = extras.empty() ? nullptr : &extras[t], *peak = peaks.empty() ? nullptr : &peaks[t];
        STD_TORCH_CHECK(layout_of(params[t], grads[t], exp_avgs[t], extra) == layout, "thawline: the tensors of one call differ in dtype");
        streams[t] = streams_of(params[t], extra, grads[t], exp_avgs[t], exp_avg_sqs[t], peak);
        if (!keys.empty()) streams[t].key = static_cast<uint32_t>(keys[t]);
        numels[t] = params[t].numel();
    }
    const StepRange step = kernels_for(isa).step(layout.param, layout.grad, layout.state);
    const Options options{is_accurate, zero_grad};
    for_each_chunk(numels, [&](size_t t, int64_t begin, int64_t end) { step(streams[t], begin, end, s, options); });
}

// Fills `sums`, float64 with one element for each chunk of NORM_CHUNK elements of each tensor, in order.
void sums_of_squares(Tensors grads, Tensor sums, std::string isa) {
    struct Chunk { const void* grad; Grad dtype; int64_t begin, end; };
    std::vector<Chunk> chunks;
    for (const Tensor& grad : grads) {
        check_dense(grad);
        Grad dtype = is_bf16(grad, "a gradient") ? Grad::bf16 : Grad::fp32;
        for (int64_t begin = 0; begin < grad.numel(); begin += NORM_CHUNK)
            chunks.push_back({grad.data_ptr(), dtype, begin, std::min(begin + NORM_CHUNK, grad.numel())});
    }
    STD_TORCH_CHECK(sums.scalar_type() == ScalarType::Double && sums.numel() == (int64_t)chunks.size() && sums.is_contiguous(),
                    "thawline: sums must be float64, one element for each chunk of ", NORM_CHUNK, " elements of each gradient");
    double* out = static_cast<double*>(sums.data_ptr());
    const Kernels& kernels = kernels_for(isa);
    std::vector<int64_t> numels;
    for (const Chunk& chunk : chunks) numels.push_back(chunk.end - chunk.begin);
    auto sum = [&](size_t c) { out[c] = kernels.sum_squares(chunks[c].dtype)(chunks[c].grad, chunks[c].begin, chunks[c].end); };
    // A chunk of the sum is never cut: it is taken by whoever is handed its first element.
    for_each_chunk(numels, [&](size_t c, int64_t begin, int64_t) { if (begin == 0) sum(c); });
}

void touch(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs) {
    std::vector<Streams> streams;
    std::vector<int64_t> numels;
    for (size_t t = 0; t < params.size(); t++) {
        streams.push_back(streams_of(params[t], nullptr, grads[t], exp_avgs[t], exp_avg_sqs[t], nullptr));
        numels.push_back(params[t].numel());
    }
    const TouchRange touch_range = kernels_for("").touch;
    for_each_chunk(numels, [&](size_t t, int64_t begin, int64_t end) { touch_range(streams[t], begin, end); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(thawline, CPU, m) {
    m.impl("adamw_", TORCH_BOX(&adamw));
    m.impl("sums_of_squares_", TORCH_BOX(&sums_of_squares));
    m.impl("touch_", TORCH_BOX(&touch));
}
