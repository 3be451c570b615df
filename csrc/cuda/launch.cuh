// What launches ask of the current device, and the launch itself. The tests replace this file, check.cuh,
// ptx.cuh, tensor_map.cuh and sort.h's functions by an emulation on the CPU and compile all else as it is.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cuda/check.cuh"

namespace rsprune {

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  RSPRUNE_CUDA_CHECK(cudaGetDevice(&device));
  RSPRUNE_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}
inline int device_capability() {
  return 10 * device_attribute(cudaDevAttrComputeCapabilityMajor) +
         device_attribute(cudaDevAttrComputeCapabilityMinor);
}
inline int multiprocessors() { return device_attribute(cudaDevAttrMultiProcessorCount); }

// For kernels that take further work in a loop.
inline unsigned blocks_for(int64_t work, int64_t per_block) {
  return static_cast<unsigned>(std::clamp<int64_t>((work + per_block - 1) / per_block, 1, 1 << 20));
}

template <typename... Parameters>
void allow_shared(void (*kernel)(Parameters...), int bytes) {
  if (bytes > 48 << 10)  // what every kernel may have
    RSPRUNE_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
}

template <typename... Parameters>
int resident_blocks(void (*kernel)(Parameters...), int threads, int shared_bytes) {
  int blocks = 0;
  allow_shared(kernel, shared_bytes);
  RSPRUNE_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes));
  return std::max(blocks, 1) * multiprocessors();
}

template <typename... Parameters, typename... Arguments>
void enqueue(cudaStream_t stream, int64_t blocks, int threads, int shared_bytes,
             void (*kernel)(Parameters...), const Arguments&... arguments) {
  if (blocks > INT32_MAX) throw std::runtime_error("the input has more parts than one launch can take");
  allow_shared(kernel, shared_bytes);
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(
      static_cast<Parameters>(arguments)...);
  RSPRUNE_CUDA_CHECK(cudaGetLastError());
}

}  // namespace rsprune
