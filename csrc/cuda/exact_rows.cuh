// Comparison of centres for one row by one warp: in float64, and exactly where that cannot tell.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "exact.h"

namespace rsprune {

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

__device__ __forceinline__ double warp_sum(double v) {
  for (int offset = 16; offset; offset /= 2) v += __shfl_xor_sync(~0u, v, offset);
  return v;
}

template <typename T>
__device__ double squared_distance(const T* x, const float* c, int64_t dim) {
  double sum = 0;
  for (int64_t j = threadIdx.x % 32; j < dim; j += 32) {
    const double d = static_cast<double>(to_float(x[j])) - c[j];
    sum = fma(d, d, sum);
  }
  return warp_sum(sum);
}

template <typename T>
__device__ int compare_exactly(const T* x, const float* a, const float* b, int64_t dim) {
  ExactSum sum;
  for (int64_t j = 0; j < dim; ++j) add_distance_difference(sum, to_float(x[j]), a[j], b[j]);
  return sum.sign();
}

struct Nearest {
  int32_t label = -1;
  double distance = nan("");
};

// In any order of k; the lower index wins a tie.
template <typename T>
__device__ void consider(const T* x, const float* center, int64_t dim, int32_t k, Nearest& nearest) {
  const double error = 0x1p-52 * static_cast<double>(dim + 4);  // of the sum, relative
  const double d = squared_distance(x, center + k * dim, dim);
  if (!isfinite(d)) return;  // float32 values cannot overflow it: the row or the centre is not finite
  if (nearest.label >= 0) {
    if (d * (1 - error) > nearest.distance * (1 + error)) return;
    if (d * (1 + error) >= nearest.distance * (1 - error)) {
      const int order = compare_exactly(x, center + k * dim, center + nearest.label * dim, dim);
      if (order > 0 || (order == 0 && k > nearest.label)) return;
    }
  }
  nearest.label = k;
  nearest.distance = d;
}

}  // namespace rsprune
