// How tensors come to the kernels: their formats and their pointers. Shared by CPU and CUDA; no torch here.
#pragma once
#include <cstdint>
#include <type_traits>

#include "step.h"

enum class Param : int { fp32, bf16, split16, fp32_copied };  // fp32_copied: an fp32 master and its bf16 copy
enum class Grad : int { fp32, bf16 };
enum class State : int { fp32, bf16 };

// Of all tensors of one call.
struct Layout {
    Param param;
    Grad grad;
    State state;
    bool operator==(const Layout&) const = default;
};

// One tensor's streams; those a format has no use for are null.
struct Streams {
    void* param;
    void* extra;  // split16: int16 low halves; fp32_copied: the bf16 copy
    void* grad;
    void* exp_avg;
    void* exp_avg_sq;
    float* peak;
    uint32_t key;  // of the random bits
    uint32_t unused;  // named, so that no byte is left to chance: CUDA tells its tables apart by their bytes
};

struct Options {
    bool is_accurate;
    bool zeroes_grad;
};

// The squared norm is summed in double, chunk by chunk of a tensor, in 32 lanes: see reference.sums_of_squares.
constexpr int64_t NORM_CHUNK = 1 << 15;
constexpr int NORM_LANES = 32;
