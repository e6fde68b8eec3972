// What ops_cpu.cpp knows of the kernels: cpu_kernel.cpp, compiled once for each instruction set. No torch here.
#pragma once
#include <cstdint>
#include "step.h"

enum class Param : int { fp32, bf16, split16, fp32_copied };  // fp32_copied: an fp32 master and its bf16 copy
enum class Grad : int { fp32, bf16 };
enum class State : int { fp32, bf16 };

// One tensor's streams; those a format has no use for are null.
struct Streams {
    void* param;
    void* extra;  // split16: int16 low halves; fp32_copied: the bf16 copy
    void* grad;
    void* exp_avg;
    void* exp_avg_sq;
    float* peak;
    uint32_t key;  // of the random bits
};

struct Options {
    bool is_accurate;
    bool zeroes_grad;
};

// Steps elements begin..end of a tensor.
using StepRange = void (*)(const Streams&, int64_t begin, int64_t end, const Scalars&, const Options&);
// Sum of squares of one chunk of at most NORM_CHUNK elements, in the order that reference.py lays down.
using SumSquares = double (*)(const void* grad, int64_t begin, int64_t end);
// Reads the four streams and writes three with next to no arithmetic: the floor that the benchmark compares with.
using TouchRange = void (*)(const Streams&, int64_t begin, int64_t end);

struct Kernels {
    StepRange (*step)(Param, Grad, State);
    SumSquares (*sum_squares)(Grad);
    TouchRange touch;
};

constexpr int64_t NORM_CHUNK = 1 << 15;
constexpr int NORM_LANES = 32;

namespace scalar { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
