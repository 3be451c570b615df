#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "entropy.h"

namespace rsprune {

// T[c] of entropy.h.
__device__ __forceinline__ uint64_t entropy_term(int64_t count) {
  if (count < 2) return 0;
  const double c = static_cast<double>(count);
  return static_cast<uint64_t>(llrint(c * log2(c) * kEntropyScale));
}

}  // namespace rsprune
