// What ops_cpu.cpp knows of the kernels: cpu_kernel.cpp, compiled once for each instruction set. No torch here.
#pragma once
#include "layouts.h"

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

namespace scalar { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
