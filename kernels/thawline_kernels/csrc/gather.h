// What gather.cpp hands to ops_cpu.cpp and ops_cuda.cu: the tensors of one parameter group, as pointers, for one step.
#pragma once
#include <vector>

#include "layouts.h"

struct Gathered {
    Layout layout{};
    bool has_peaks = false;
    bool is_on_cuda = false;
    int32_t device_index = -1;
    std::vector<Streams> streams;
    std::vector<int64_t> numels;
    std::vector<int64_t> positions;  // of the parameters in their group
    std::vector<void*> kept;         // Python objects whose memory `streams` points into; released with this
    std::vector<void*> states;       // the dicts whose "step" counts
};
