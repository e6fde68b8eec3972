// What gather.cpp hands to ops_cpu.cpp and ops_cuda.cu: the tensors of one parameter group, as pointers, for one step.
#pragma once
#include <atomic>
#include <vector>

#include "layouts.h"

struct Gathered {
    Layout layout{};
    bool has_peaks = false;
    bool is_on_cuda = false;
    int32_t device_index = -1;
    int64_t num_stepped = 0;  // of the tensors, the first ones: by StepBehind
    std::vector<Streams> streams;
    std::vector<int64_t> numels;
    std::vector<int64_t> positions;  // of the parameters in their group
    std::vector<void*> kept;         // gradients whose memory `streams` points into; released with this
    std::vector<void*> states;       // the dicts that hold the moments, and whose "step" counts; released with this
};

// Steps the tensors of `from` while they are gathered, in their order: those before `ready`, until `is_complete`. Sets
// from.num_stepped. On a thread of its own; takes no part of Python.
using StepBehind = void (*)(Gathered& from, const std::atomic<int64_t>& ready, const std::atomic<bool>& is_complete,
                            const Scalars& scalars, const Options& options);
