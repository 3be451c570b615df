#pragma once
#include "gpu.h"

#define RSPRUNE_CUDA_CHECK(expr) static_cast<void>(expr)

inline int cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return 0;
}
