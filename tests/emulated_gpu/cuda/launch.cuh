#pragma once
#include <algorithm>
#include <cstdint>

#include "cuda/check.cuh"

namespace rsprune {

inline int device_capability() { return emulated::gpu().capability; }
inline int multiprocessors() { return emulated::gpu().multiprocessors; }

inline unsigned blocks_for(int64_t work, int64_t per_block) {
  return static_cast<unsigned>(
      std::clamp<int64_t>((work + per_block - 1) / per_block, 1, 7));  // few: they loop
}

template <typename... Parameters>
int resident_blocks(void (*)(Parameters...), int, int) {
  return multiprocessors();
}

template <typename... Parameters, typename... Arguments>
void enqueue(cudaStream_t, int64_t blocks, int threads, int shared_bytes, void (*kernel)(Parameters...),
             const Arguments&... arguments) {
  emulated::gpu().run(blocks, threads, shared_bytes, [&] { kernel(static_cast<Parameters>(arguments)...); });
}

}  // namespace rsprune
