// What gather.cpp hands to ops_cpu.cpp and ops_cuda.cu: the tensors of one parameter group, as pointers, for one step.
#pragma once
#include <atomic>
#include <vector>

#include "layouts.h"

struct Gathered {
    Layout layout{};
    bool is_on_cuda = false;
    int32_t device_index = -1;
    int64_t num_stepped = 0;  // of the tensors, the first ones: by StepBehind
    std::vector<Streams> streams;
    std::vector<int64_t> numels;
    std::vector<int64_t> positions;  // of the parameters in their group
};

// Steps the tensors of `from` while they are gathered, in their order: those before `ready`, until `is_complete`. Sets
// from.num_stepped. On a thread of its own; takes no part of Python.
using StepBehind = void (*)(Gathered& from, const std::atomic<int64_t>& ready, const std::atomic<bool>& is_complete,
                            const Scalars& scalars, const Options& options);

// A step that is taken while its tensors are gathered; native.py fills it.
struct Ahead {
    Scalars scalars;
    Options options;
    uint64_t seed, first;  // of bf16 moments' random bits: the group's first parameter's number
    StepBehind behind;
};

// Whether this process was forked from the one that loaded the library: torch's threads, which no fork takes along, would be
// waited for without end.
bool is_forked();

// Counts a write to a tensor, given by torch's handle, as autograd does.
void count_write_of(const void* tensor);
