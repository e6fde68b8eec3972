// The arguments of thawline::adamw_, checked and turned into pointers, for CPU and CUDA alike.
//
// Refuses what a kernel would read wrong: other dtypes, shapes, strides or devices than the parameter's, and tensors whose
// elements do not fill their memory. batches.py hands over tensors that pass.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "gather.h"
#include "layouts.h"

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

namespace {

bool is_bf16(const Tensor& t, const char* what) {
    bool is_half = t.scalar_type() == ScalarType::BFloat16;
    STD_TORCH_CHECK(is_half || t.scalar_type() == ScalarType::Float, "thawline: ", what, " must be float32 or bfloat16");
    return is_half;
}

void check_like(const Tensor& param, const Tensor& other, const char* what) {
    bool is_like = other.is_cpu() == param.is_cpu() && other.get_device() == param.get_device() && other.dim() == param.dim();
    for (int64_t d = 0; is_like && d < param.dim(); d++)
        is_like = other.size(d) == param.size(d) && (other.stride(d) == param.stride(d) || param.size(d) < 2);
    STD_TORCH_CHECK(is_like, "thawline: ", what, " differs from its parameter in device, shape or strides");
}

void check_dense(const Tensor& t) {
    if (t.is_contiguous()) return;
    int64_t span = 1;
    for (int64_t d = 0; d < t.dim(); d++) span += (t.size(d) - 1) * t.stride(d);
    STD_TORCH_CHECK(span == t.numel(), "thawline: the elements of a parameter or gradient do not fill their memory");
}

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
    check_like(param, grad, "a gradient");
    check_like(param, m, "exp_avg");
    check_like(param, v, "exp_avg_sq");
    STD_TORCH_CHECK(m.scalar_type() == v.scalar_type(), "thawline: exp_avg and exp_avg_sq differ in dtype");
    if (extra) check_like(param, *extra, "the low half or bf16 copy");
    if (peak) check_like(param, *peak, "max_exp_avg_sq");
    STD_TORCH_CHECK(!peak || peak->scalar_type() == ScalarType::Float, "thawline: max_exp_avg_sq must be float32");
    return {param.data_ptr(), extra ? extra->data_ptr() : nullptr, grad.data_ptr(), m.data_ptr(), v.data_ptr(),
            peak ? static_cast<float*>(peak->data_ptr()) : nullptr, 0, 0};
}

struct Call {
    Layout layout;
    std::vector<Streams> streams;
    std::vector<int64_t> numels;
    const Scalars* scalars;  // on the device of the tensors, or on the host: see are_scalars_on_host
    bool are_scalars_on_host;
};

Call checked(const Tensors& params, const Tensors& grads, const Tensors& exp_avgs, const Tensors& exp_avg_sqs,
             const Tensors& peaks, const Tensors& extras, const Tensor& scalars, const std::vector<int64_t>& keys) {
    const size_t count = params.size();
    bool is_even = grads.size() == count && exp_avgs.size() == count && exp_avg_sqs.size() == count;
    for (size_t length : {peaks.size(), extras.size(), keys.size()}) is_even = is_even && (length == 0 || length == count);
    STD_TORCH_CHECK(is_even, "thawline: the lists of tensors differ in length");
    Call call{{}, std::vector<Streams>(count), std::vector<int64_t>(count), static_cast<const Scalars*>(scalars.data_ptr()), scalars.is_cpu()};
    for (size_t t = 0; t < count; t++) {
        const Tensor *extra = extras.empty() ? nullptr : &extras[t], *peak = peaks.empty() ? nullptr : &peaks[t];
        Layout layout = layout_of(params[t], grads[t], exp_avgs[t], extra);
        if (t == 0) call.layout = layout;
        STD_TORCH_CHECK(layout == call.layout, "thawline: the tensors of one call differ in dtype");
        call.streams[t] = streams_of(params[t], extra, grads[t], exp_avgs[t], exp_avg_sqs[t], peak);
        if (!keys.empty()) call.streams[t].key = static_cast<uint32_t>(keys[t]);
        call.numels[t] = params[t].numel();
    }
    bool is_packed = scalars.scalar_type() == ScalarType::Float && scalars.is_contiguous() &&
                     scalars.numel() * sizeof(float) == sizeof(Scalars) &&
                     (count == 0 || scalars.is_cpu() || scalars.get_device() == params[0].get_device());
    STD_TORCH_CHECK(is_packed, "thawline: scalars must be the nine float32 of reference.packed, on the host or on the parameters' device");
    return call;
}

// As autograd does for the operators it knows.
void count_writes(std::initializer_list<const Tensors*> lists) {
    for (const Tensors* list : lists)
        for (size_t t = 0; list && t < list->size(); t++) count_write_of((*list)[t].get());
}

int64_t num_norm_chunks(const Tensors& grads) {
    int64_t count = 0;
    for (const Tensor& grad : grads) count += (grad.numel() + NORM_CHUNK - 1) / NORM_CHUNK;
    return count;
}

void check_sums(const Tensors& grads, const Tensor& sums) {
    STD_TORCH_CHECK(sums.scalar_type() == ScalarType::Double && sums.numel() == num_norm_chunks(grads) && sums.is_contiguous(),
                    "thawline: sums must be float64, one element for each chunk of ", NORM_CHUNK, " elements of each gradient");
    for (const Tensor& grad : grads) {
        check_dense(grad);
        STD_TORCH_CHECK(grad.is_cpu() == sums.is_cpu() && grad.get_device() == sums.get_device(),
                        "thawline: a gradient is on another device than the sums");
    }
}

}  // namespace
