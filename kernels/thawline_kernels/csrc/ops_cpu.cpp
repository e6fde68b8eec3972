// thawline::adamw_, sums_of_squares_ and touch_ for CPU tensors: one parallel region over all tensors. ops.py holds the schemas.
//
// Owns the checks, the instruction set chosen at run time, and the cutting of the work into chunks; cpu_kernel.cpp the loops.
// Built against libtorch's stable ABI, so one binary serves torch 2.10 and later.
#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>

#include "arguments.h"
#include "cpu_kernel.h"
#include "gather.h"

namespace {

constexpr int64_t CHUNK = 1 << 17;  // elements: enough for the hardware to prefetch, few enough to share out evenly

// The loops for an instruction set, for the best there is if none is named; null if this CPU has not got it.
const Kernels* find_kernels(const std::string& isa) {
#if defined(__x86_64__)
    static const bool has_avx512 = __builtin_cpu_supports("avx512f");
    static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx512 && (isa.empty() || isa == "avx512")) return &avx512::kernels;
    if (has_avx2 && (isa.empty() || isa == "avx2")) return &avx2::kernels;
#endif
    return isa.empty() || isa == "scalar" ? &scalar::kernels : nullptr;
}

const Kernels& kernels_for(const std::string& isa) {
    const Kernels* const found = find_kernels(isa);
    STD_TORCH_CHECK(found, "thawline: this CPU has no ", isa, "; leave isa empty to take the best it has");
    return *found;
}

// As parallel_for, on threads made anew; as few as the system grants.
template <class Work>
void on_new_threads(int64_t threads, Work work) {
    std::vector<std::thread> others;
    try {
        while (static_cast<int64_t>(others.size()) + 1 < threads) others.emplace_back(work, 0, 1);
    } catch (const std::system_error&) {
    }
    work(0, 1);
    for (std::thread& other : others) other.join();
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
    if (threads <= 1) work(0, 1);
    else if (is_forked()) on_new_threads(threads, work);
    else torch::stable::parallel_for(0, threads, 1, work);
}

void step_all(const Layout& layout, const std::vector<Streams>& streams, const std::vector<int64_t>& numels, const Scalars& s,
              const Options& options, const std::string& isa) {
    if (s.skips != 0.0f) return;
    const StepRange step = kernels_for(isa).step(layout.param, layout.grad, layout.state);
    for_each_chunk(numels, [&](size_t t, int64_t begin, int64_t end) { step(streams[t], begin, end, s, options); });
}

void adamw(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors peaks, Tensors extras, Tensor scalars,
           std::vector<int64_t> keys, bool is_accurate, bool zero_grad, std::string isa) {
    const Call call = checked(params, grads, exp_avgs, exp_avg_sqs, peaks, extras, scalars, keys);
    step_all(call.layout, call.streams, call.numels, *call.scalars, {is_accurate, zero_grad}, isa);
    if (call.scalars->skips == 0.0f) count_writes({&params, &exp_avgs, &exp_avg_sqs, &peaks, &extras, zero_grad ? &grads : nullptr});
}

// A piece of a gradient whose squares make one element of the sums.
struct Chunk {
    const void* grad;
    SumSquares sum;
    int64_t begin;
};

void append_chunks(std::vector<Chunk>& chunks, std::vector<int64_t>& numels, const void* grad, int64_t numel, SumSquares sum) {
    for (int64_t begin = 0; begin < numel; begin += NORM_CHUNK) {
        chunks.push_back({grad, sum, begin});
        numels.push_back(std::min(NORM_CHUNK, numel - begin));
    }
}

// A chunk of the sum is never cut: whoever is handed its first element takes it whole.
void sum_all(const std::vector<Chunk>& chunks, const std::vector<int64_t>& numels, double* out) {
    for_each_chunk(numels, [&](size_t c, int64_t begin, int64_t) {
        if (begin == 0) out[c] = chunks[c].sum(chunks[c].grad, chunks[c].begin, chunks[c].begin + numels[c]);
    });
}

// Fills `sums`, float64 with one element for each chunk of NORM_CHUNK elements of each tensor, in order.
void sums_of_squares(Tensors grads, Tensor sums, std::string isa) {
    check_sums(grads, sums);
    std::vector<Chunk> chunks;
    std::vector<int64_t> numels;
    for (const Tensor& grad : grads) {
        const SumSquares sum = kernels_for(isa).sum_squares(is_bf16(grad, "a gradient") ? Grad::bf16 : Grad::fp32);
        append_chunks(chunks, numels, grad.data_ptr(), grad.numel(), sum);
    }
    sum_all(chunks, numels, static_cast<double*>(sums.data_ptr()));
    count_write_of(sums.get());
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
    count_writes({&params, &exp_avgs, &exp_avg_sqs});
}

}  // namespace

// What gather.cpp gathered, stepped and measured as by the operators. Called through ctypes.CDLL, without the GIL.
// They return what went wrong, or null: an exception must not cross ctypes, and none is thrown here.
#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int thawline_has(const char* isa) { return find_kernels(isa) != nullptr; }

EXPORT const char* thawline_step(const Gathered* from, const Scalars* scalars, bool is_accurate, bool zero_grad) {
    const std::vector<Streams> streams(from->streams.begin() + from->num_stepped, from->streams.end());
    const std::vector<int64_t> numels(from->numels.begin() + from->num_stepped, from->numels.end());
    step_all(from->layout, streams, numels, *scalars, {is_accurate, zero_grad}, "");
    return nullptr;
}

// A StepBehind. It leaves moments in bf16, whose keys are not known yet, and all from the first large tensor on, which
// thawline_step shares out among the threads.
EXPORT void thawline_step_behind(Gathered& from, const std::atomic<int64_t>& ready, const std::atomic<bool>& is_complete,
                                 const Scalars& scalars, const Options& options) {
    int64_t t = 0;
    // `from` is written to meanwhile: its lines are looked at once, not for each tensor.
    const Streams* const streams = from.streams.data();
    const int64_t* const numels = from.numels.data();
    StepRange step = nullptr;
    while (!is_complete.load(std::memory_order_acquire)) {
        if (t == ready.load(std::memory_order_acquire)) {
            std::this_thread::yield();
            continue;
        }
        if (!step) step = kernels_for("").step(from.layout.param, from.layout.grad, from.layout.state);
        if (numels[t] > CHUNK || from.layout.state == State::bf16) break;
        step(streams[t], 0, numels[t], scalars, options);
        t++;
    }
    from.num_stepped = t;
}

EXPORT const char* thawline_sums_of_squares(const Gathered* from, double* out) {
    std::vector<Chunk> chunks;
    std::vector<int64_t> numels;
    const SumSquares sum = kernels_for("").sum_squares(from->layout.grad);
    for (size_t t = 0; t < from->streams.size(); t++)
        append_chunks(chunks, numels, from->streams[t].grad, from->numels[t], sum);
    sum_all(chunks, numels, out);
    return nullptr;
}

STABLE_TORCH_LIBRARY_IMPL(thawline, CPU, m) {
    m.impl("adamw_", TORCH_BOX(&adamw));
    m.impl("sums_of_squares_", TORCH_BOX(&sums_of_squares));
    m.impl("touch_", TORCH_BOX(&touch));
}
