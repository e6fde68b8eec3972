// thawline::adamw_ and sums_of_squares_ for CUDA tensors: one launch for up to 4,000 tensors, on torch's current stream.
//
// Owns the tables in device memory, kept from call to call and told apart by what they were made from: pointers, sizes, keys.
// Names no architecture: build.py compiles for the GPUs that are there, or for those that are asked for.
#include "arguments.h"
#include "cuda_kernel.cuh"
#include "gather.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <list>
#include <mutex>

using namespace thawline;
static_assert(sizeof(TensorEntry) == 8 * 8, "tables are compared by their bytes: no padding");

namespace {

void check_cuda(cudaError_t error, const char* what) {
    STD_TORCH_CHECK(error == cudaSuccess, "thawline: ", what, ": ", cudaGetErrorString(error));
}

cudaStream_t current_stream(int32_t device) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
    return static_cast<cudaStream_t>(stream);
}

// Memory of torch's allocator, on the current stream.
Tensor bytes_on(int32_t device, size_t size) {
    const int64_t length = static_cast<int64_t>(size), stride = 1;
    AtenTensorHandle handle = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(1, &length, &stride, aoti_torch_dtype_uint8(), aoti_torch_device_type_cuda(),
                                                    device, &handle));
    return Tensor(handle);
}

// Tables in device memory that change only when what they are made from does. The newest few are kept: a set of them for each
// group of parameters. A table is bound to the stream it was written on, so that no launch can overtake its copy.
class Tables {
  public:
    enum Kind { ENTRIES, KEYS, NUMELS, CHUNKS_FP32, CHUNKS_BF16, CHUNKS_NORM };

    // The table of this kind that `make` makes of `source`: a vector, which is made only if the table is not there.
    template <class Source, class Make>
    const void* of(Kind kind, const std::vector<Source>& source, int32_t device, cudaStream_t stream, Make make) {
        std::lock_guard<std::mutex> guard(mutex_);
        const char* bytes = reinterpret_cast<const char*>(source.data());
        const size_t size = source.size() * sizeof(Source);
        for (auto table = tables_.begin(); table != tables_.end(); ++table)
            if (table->kind == kind && table->stream == stream && table->device == device && table->source.size() == size &&
                std::memcmp(table->source.data(), bytes, size) == 0) {
                tables_.splice(tables_.begin(), tables_, table);
                return table->memory.data_ptr();
            }
        cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
        check_cuda(cudaStreamIsCapturing(stream, &capture), "asking whether a graph is captured");
        STD_TORCH_CHECK(capture == cudaStreamCaptureStatusNone,
                        "thawline: a captured graph would write its table of tensors from host memory that is gone when it is "
                        "replayed; take one step with these tensors on this stream before the capture");
        const auto made = make(source);
        const size_t made_size = made.size() * sizeof(made[0]);
        const Tensor memory = bytes_on(device, made_size);
        check_cuda(cudaMemcpyAsync(memory.data_ptr(), made.data(), made_size, cudaMemcpyHostToDevice, stream),
                   "writing a table of tensors");
        tables_.push_front({kind, stream, device, std::vector<char>(bytes, bytes + size), memory});
        if (tables_.size() > MAX_TABLES) tables_.pop_back();
        return memory.data_ptr();
    }

    template <class Entry>
    const Entry* of(Kind kind, const std::vector<Entry>& entries, int32_t device, cudaStream_t stream) {
        return static_cast<const Entry*>(of(kind, entries, device, stream, [](const auto& same) -> const auto& { return same; }));
    }

  private:
    static constexpr size_t MAX_TABLES = 256;
    struct Table {
        Kind kind;
        cudaStream_t stream;
        int32_t device;
        std::vector<char> source;
        Tensor memory;
    };
    std::mutex mutex_;
    std::list<Table> tables_;
};

Tables& tables() {
    static Tables* kept = new Tables;  // never destroyed: the driver may be gone by then
    return *kept;
}

// Chunks of SIZE elements of each tensor, in order.
template <int64_t SIZE>
std::vector<ChunkEntry> chunks_of(const std::vector<int64_t>& numels) {
    std::vector<ChunkEntry> chunks;
    for (size_t t = 0; t < numels.size(); t++)
        for (int64_t begin = 0; begin < numels[t]; begin += SIZE) chunks.push_back({static_cast<int>(t), 0, begin});
    return chunks;
}

// Calls launch(first tensor, first chunk, number of chunks, gradient pointers) for each MAX_TENSORS tensors.
template <class Launch>
void for_each_launch(const std::vector<int64_t>& numels, int64_t chunk_size, const std::vector<void*>& grads, Launch launch) {
    size_t first_chunk = 0;
    for (size_t first = 0; first < grads.size(); first += MAX_TENSORS) {
        const size_t last = std::min(first + MAX_TENSORS, grads.size());
        size_t count = 0;
        for (size_t t = first; t < last; t++) count += (numels[t] + chunk_size - 1) / chunk_size;
        GradPointers pointers;
        std::copy(grads.begin() + first, grads.begin() + last, pointers.of);
        if (count) launch(static_cast<int>(first), first_chunk, static_cast<unsigned>(count), pointers);
        first_chunk += count;
    }
    check_cuda(cudaGetLastError(), "launching a kernel");
}

using AdamwKernel = void (*)(const TensorEntry*, const ChunkEntry*, const uint32_t*, int, const Scalars*, Scalars, Options, GradPointers);

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

// `on_device` are the scalars that a captured graph reads anew; null: `given` travel with the launch.
void step_all(const Layout& layout, const std::vector<Streams>& streams, const std::vector<int64_t>& numels, const Scalars* on_device,
              const Scalars& given, const Options& options, int32_t device) {
    if (std::all_of(numels.begin(), numels.end(), [](int64_t numel) { return numel == 0; })) return;
    const torch::stable::accelerator::DeviceGuard guard(device);
    const cudaStream_t stream = current_stream(device);
    std::vector<TensorEntry> entries;
    std::vector<void*> grads;
    std::vector<uint32_t> keys;
    entries.reserve(streams.size());
    for (size_t t = 0; t < streams.size(); t++) {
        entries.push_back({streams[t], numels[t]});
        entries.back().streams.grad = nullptr;
        entries.back().streams.key = 0;  // another in every step, so it has a table of its own
        grads.push_back(streams[t].grad);
        if (layout.state == State::bf16) keys.push_back(streams[t].key);
    }
    const TensorEntry* device_entries = tables().of(Tables::ENTRIES, entries, device, stream);
    const bool is_half = layout.state == State::bf16;
    const int threads = is_half ? THREADS<State::bf16> : THREADS<State::fp32>;
    const int64_t chunk_size = is_half ? CHUNK<State::bf16> : CHUNK<State::fp32>;
    const auto* chunks = static_cast<const ChunkEntry*>(
        is_half ? tables().of(Tables::CHUNKS_BF16, numels, device, stream, chunks_of<CHUNK<State::bf16>>)
                : tables().of(Tables::CHUNKS_FP32, numels, device, stream, chunks_of<CHUNK<State::fp32>>));
    const uint32_t* device_keys = keys.empty() ? nullptr : tables().of(Tables::KEYS, keys, device, stream);
    const AdamwKernel kernel = kernel_for(layout);
    for_each_launch(numels, chunk_size, grads, [&](int first_tensor, size_t first_chunk, unsigned count, const GradPointers& of) {
        kernel<<<count, threads, 0, stream>>>(device_entries, chunks + first_chunk, device_keys, first_tensor, on_device,
                                                               given, options, of);
    });
}

// Fills `out`, in device memory, with one sum for each chunk of NORM_CHUNK elements of each tensor, in order.
void sum_all(Grad format, const std::vector<void*>& grads, const std::vector<int64_t>& numels, double* out, int32_t device,
             cudaStream_t stream) {
    const int64_t* device_numels = tables().of(Tables::NUMELS, numels, device, stream);
    const auto* chunks = static_cast<const ChunkEntry*>(tables().of(Tables::CHUNKS_NORM, numels, device, stream, chunks_of<NORM_CHUNK>));
    auto kernel = format == Grad::bf16 ? &sums_kernel<Grad::bf16> : &sums_kernel<Grad::fp32>;
    constexpr unsigned PER_BLOCK = NORM_THREADS / NORM_LANES;
    for_each_launch(numels, NORM_CHUNK, grads, [&](int first_tensor, size_t first_chunk, unsigned count, const GradPointers& of) {
        const unsigned blocks = (count + PER_BLOCK - 1) / PER_BLOCK;
        kernel<<<blocks, NORM_THREADS, 0, stream>>>(chunks + first_chunk, device_numels, static_cast<int>(count), first_tensor,
                                               out + first_chunk, of);
    });
}

void adamw(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors peaks, Tensors extras, Tensor scalars,
           std::vector<int64_t> keys, bool is_accurate, bool zero_grad, std::string) {
    if (params.empty()) return;
    const Call call = checked(params, grads, exp_avgs, exp_avg_sqs, peaks, extras, scalars, keys);
    const Scalars given = call.are_scalars_on_host ? *call.scalars : Scalars{};
    const Scalars* on_device = call.are_scalars_on_host ? nullptr : call.scalars;
    if (given.skips != 0.0f) return;
    step_all(call.layout, call.streams, call.numels, on_device, given, {is_accurate, zero_grad}, params[0].get_device());
    count_writes({&params, &exp_avgs, &exp_avg_sqs, &peaks, &extras, zero_grad ? &grads : nullptr});
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
    const int32_t device = sums.get_device();
    const torch::stable::accelerator::DeviceGuard guard(device);
    sum_all(is_half ? Grad::bf16 : Grad::fp32, pointers, numels, static_cast<double*>(sums.data_ptr()), device, current_stream(device));
    count_write_of(sums.get());
}

// What went wrong in `work`, or null: an exception must not cross ctypes. The text lasts until the thread's next.
template <class Work>
const char* caught(Work work) {
    static thread_local std::string message;
    try {
        work();
        return nullptr;
    } catch (const std::exception& error) {
        message = error.what();
        return message.c_str();
    }
}

}  // namespace

// What gather.cpp gathered, stepped and measured as by the operators. Called through ctypes.CDLL, without the GIL.
#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT const char* thawline_step(const Gathered* from, const Scalars* scalars, bool is_accurate, bool zero_grad) {
    return caught([&] {
        step_all(from->layout, from->streams, from->numels, nullptr, *scalars, {is_accurate, zero_grad}, from->device_index);
    });
}

// `out` is in host memory: this waits for the device.
EXPORT const char* thawline_sums_of_squares(const Gathered* from, double* out) {
    return caught([&] {
        size_t size = 0;
        std::vector<void*> grads;
        for (const Streams& streams : from->streams) grads.push_back(streams.grad);
        for (int64_t numel : from->numels) size += (numel + NORM_CHUNK - 1) / NORM_CHUNK * sizeof(double);
        if (!size) return;
        const torch::stable::accelerator::DeviceGuard guard(from->device_index);
        const cudaStream_t stream = current_stream(from->device_index);
        const Tensor sums = bytes_on(from->device_index, size);
        sum_all(from->layout.grad, grads, from->numels, static_cast<double*>(sums.data_ptr()), from->device_index, stream);
        check_cuda(cudaMemcpyAsync(out, sums.data_ptr(), size, cudaMemcpyDeviceToHost, stream), "reading the norm's sums");
        check_cuda(cudaStreamSynchronize(stream), "reading the norm's sums");
    });
}

STABLE_TORCH_LIBRARY_IMPL(thawline, CUDA, m) {
    m.impl("adamw_", TORCH_BOX(&adamw));
    m.impl("sums_of_squares_", TORCH_BOX(&sums_of_squares));
}
