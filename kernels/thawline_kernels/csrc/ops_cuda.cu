// thawline::adamw_ and sums_of_squares_ for CUDA tensors: one launch for up to 4,000 tensors, on torch's current stream.
//
// Owns the tables in device memory, kept from call to call and told apart by their contents: pointers, sizes, keys.
// Names no architecture: build.py compiles for the GPUs that are there, or for those that are asked for.
#include "arguments.h"
#include "cuda_kernel.cuh"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <list>
#include <mutex>

using namespace thawline;
static_assert(sizeof(TensorEntry) == 8 * 8 && sizeof(ChunkEntry) == 2 * 8, "tables are compared by their bytes: no padding");

namespace {

void check_cuda(cudaError_t error, const char* what) {
    STD_TORCH_CHECK(error == cudaSuccess, "thawline: ", what, ": ", cudaGetErrorString(error));
}

cudaStream_t current_stream(int32_t device) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    return static_cast<cudaStream_t>(stream);
}

// Bytes in device memory that change only when their contents do. The newest few are kept: one set of tables for each group
// of parameters. A table is bound to the stream it was written on, so that no launch can overtake its copy.
class Tables {
  public:
    template <class Entry>
    const Entry* of(const std::vector<Entry>& entries, const Tensor& like, cudaStream_t stream) {
        std::lock_guard<std::mutex> guard(mutex_);
        const char* bytes = reinterpret_cast<const char*>(entries.data());
        const size_t size = entries.size() * sizeof(Entry);
        for (auto table = tables_.begin(); table != tables_.end(); ++table)
            if (table->stream == stream && table->device.get_device() == like.get_device() && table->host.size() == size &&
                std::memcmp(table->host.data(), bytes, size) == 0) {
                tables_.splice(tables_.begin(), tables_, table);
                return static_cast<const Entry*>(table->device.data_ptr());
            }
        Tensor device = torch::stable::new_empty(like, {static_cast<int64_t>(size)}, ScalarType::Byte);
        tables_.push_front({stream, std::vector<char>(bytes, bytes + size), device});
        check_cuda(cudaMemcpyAsync(device.data_ptr(), tables_.front().host.data(), size, cudaMemcpyHostToDevice, stream),
                   "writing a table of tensors");
        if (tables_.size() > MAX_TABLES) tables_.pop_back();
        return static_cast<const Entry*>(device.data_ptr());
    }

  private:
    static constexpr size_t MAX_TABLES = 256;
    struct Table {
        cudaStream_t stream;
        std::vector<char> host;
        Tensor device;
    };
    std::mutex mutex_;
    std::list<Table> tables_;
};

Tables& tables() {
    static Tables* kept = new Tables;  // never destroyed: the driver may be gone by then
    return *kept;
}

// Chunks of `size` elements of each tensor in order, and where in that list each tensor's begin.
struct Chunks {
    std::vector<ChunkEntry> entries;
    std::vector<size_t> first;
};
Chunks chunks_of(const std::vector<int64_t>& numels, int64_t size) {
    Chunks chunks;
    for (size_t t = 0; t < numels.size(); t++) {
        chunks.first.push_back(chunks.entries.size());
        for (int64_t begin = 0; begin < numels[t]; begin += size) chunks.entries.push_back({static_cast<int>(t), 0, begin});
    }
    chunks.first.push_back(chunks.entries.size());
    return chunks;
}

// Calls launch(first tensor, first chunk, number of chunks, gradient pointers) for each MAX_TENSORS tensors.
template <class Launch>
void for_each_launch(const Chunks& chunks, const std::vector<void*>& grads, Launch launch) {
    for (size_t first = 0; first < grads.size(); first += MAX_TENSORS) {
        const size_t last = std::min(first + MAX_TENSORS, grads.size());
        const size_t count = chunks.first[last] - chunks.first[first];
        GradPointers pointers;
        std::copy(grads.begin() + first, grads.begin() + last, pointers.of);
        if (count) launch(static_cast<int>(first), chunks.first[first], static_cast<unsigned>(count), pointers);
    }
    check_cuda(cudaGetLastError(), "launching a kernel");
}

using AdamwKernel = void (*)(const TensorEntry*, const ChunkEntry*, int, const Scalars*, Options, GradPointers);

template <Param PARAM, Grad GRAD>
AdamwKernel with_state(State state) {
    return state == State::fp32 ? &adamw_kernel<PARAM, GRAD, State::fp32> : &adamw_kernel<PARAM, GRAD, State::bf16>;
}
template <Param PARAM>
AdamwKernel with_grad(Layout layout) {
    return layout.grad == Grad::fp32 ? with_state<PARAM, Grad::fp32>(layout.state) : with_state<PARAM, Grad::bf16>(layout.state);
}
AdamwKernel kernel_for(Layout layout) {
    switch (layout.param) {
        case Param::fp32: return with_grad<Param::fp32>(layout);
        case Param::bf16: return with_grad<Param::bf16>(layout);
        case Param::split16: return with_grad<Param::split16>(layout);
        default: return with_grad<Param::fp32_copied>(layout);
    }
}

void adamw(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors peaks, Tensors extras, Tensor scalars,
           std::vector<int64_t> keys, bool is_accurate, bool zero_grad, std::string) {
    if (params.empty()) return;
    const Call call = checked(params, grads, exp_avgs, exp_avg_sqs, peaks, extras, scalars, keys);
    const torch::stable::accelerator::DeviceGuard guard(params[0].get_device());
    const cudaStream_t stream = current_stream(params[0].get_device());
    std::vector<TensorEntry> entries;
    std::vector<void*> pointers;
    for (size_t t = 0; t < params.size(); t++) {
        entries.push_back({call.streams[t], call.numels[t]});
        entries.back().streams.grad = nullptr;
        pointers.push_back(call.streams[t].grad);
    }
    const Chunks chunks = chunks_of(call.numels, DEVICE_CHUNK);
    if (chunks.entries.empty()) return;
    const TensorEntry* device_entries = tables().of(entries, params[0], stream);
    const ChunkEntry* device_chunks = tables().of(chunks.entries, params[0], stream);
    const AdamwKernel kernel = kernel_for(call.layout);
    const Options options{is_accurate, zero_grad};
    for_each_launch(chunks, pointers, [&](int first_tensor, size_t first_chunk, unsigned count, const GradPointers& of) {
        kernel<<<count, THREADS, 0, stream>>>(device_entries, device_chunks + first_chunk, first_tensor, call.scalars, options, of);
    });
}

void sums_of_squares(Tensors grads, Tensor sums, std::string) {
    check_sums(grads, sums);
    if (sums.numel() == 0) return;
    std::vector<int64_t> numels;
    std::vector<void*> pointers;
    const bool is_half = is_bf16(grads[0], "a gradient");
    for (const Tensor& grad : grads) {
        STD_TORCH_CHECK(is_bf16(grad, "a gradient") == is_half, "thawline: the gradients of one call differ in dtype");
        numels.push_back(grad.numel());
        pointers.push_back(grad.data_ptr());
    }
    const torch::stable::accelerator::DeviceGuard guard(sums.get_device());
    const cudaStream_t stream = current_stream(sums.get_device());
    const Chunks chunks = chunks_of(numels, NORM_CHUNK);
    const int64_t* device_numels = tables().of(numels, sums, stream);
    const ChunkEntry* device_chunks = tables().of(chunks.entries, sums, stream);
    double* out = static_cast<double*>(sums.data_ptr());
    auto kernel = is_half ? &sums_kernel<Grad::bf16> : &sums_kernel<Grad::fp32>;
    constexpr unsigned PER_BLOCK = THREADS / NORM_LANES;
    for_each_launch(chunks, pointers, [&](int first_tensor, size_t first_chunk, unsigned count, const GradPointers& of) {
        const unsigned blocks = (count + PER_BLOCK - 1) / PER_BLOCK;
        kernel<<<blocks, THREADS, 0, stream>>>(device_chunks + first_chunk, device_numels, static_cast<int>(count), first_tensor,
                                               out + first_chunk, of);
    });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(thawline, CUDA, m) {
    m.impl("adamw_", TORCH_BOX(&adamw));
    m.impl("sums_of_squares_", TORCH_BOX(&sums_of_squares));
}
