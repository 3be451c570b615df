#pragma once
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#define RSPRUNE_CUDA_CHECK(expr)                                                             \
  do {                                                                                       \
    const cudaError_t error_ = (expr);                                                       \
    if (error_ != cudaSuccess)                                                               \
      throw std::runtime_error(std::string(#expr " failed: ") + cudaGetErrorString(error_)); \
  } while (0)
