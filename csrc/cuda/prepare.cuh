// What matrix units need before they can score: centres and, where x is not stored so, rows in 16 bits with a
// row pitch that is a multiple of 8 values; half norms; and the norms from which score errors are bounded.
#pragma once
#include "cuda/certificate.h"
#include "cuda/exact_rows.cuh"
#include "kmeans.h"

namespace rsprune {

// The nearest finite 16-bit value: a value out of range costs certainty (its residual is large), not
// correctness. NaN and infinities need no care: a row's norm tells, and centres are checked before.
template <typename H>
__device__ __forceinline__ H to_half(float v);
template <>
__device__ __forceinline__ __half to_half<__half>(float v) {
  return __float2half_rn(fminf(fmaxf(v, -65504.0f), 65504.0f));
}
template <>
__device__ __forceinline__ __nv_bfloat16 to_half<__nv_bfloat16>(float v) {
  constexpr float largest = 3.3895314e38f;
  return __float2bfloat16_rn(fminf(fmaxf(v, -largest), largest));
}

// Rounded up, also over the error of summing squares in float64.
__device__ __forceinline__ float norm_above(double squares) {
  return __double2float_ru(sqrt(squares) * (1 + 0x1p-30));
}

// Non-negative floats order as their bits do. NaN would be the largest.
__device__ __forceinline__ void raise(float* to, float v) {
  atomicMax(reinterpret_cast<unsigned*>(to), float_bits(v));
}

// One warp per row of `packed` [padded, pitch]. Rows beyond the last centre, and centres that are not finite,
// are zeros with half norm kUnusable. `bounds` starts as zeros.
template <typename H>
__global__ void __launch_bounds__(256)
    pack_centers_kernel(const float* __restrict__ center, H* __restrict__ packed,
                        float* __restrict__ half_norm, CenterBounds* __restrict__ bounds, AssignShape s,
                        int64_t padded, int64_t pitch) {
  const int lane = threadIdx.x % 32;
  for (int64_t k = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32; k < padded;
       k += static_cast<int64_t>(gridDim.x) * blockDim.x / 32) {
    const bool inside = k < s.clusters;
    const float* c = center + k * s.dim;
    double squares = 0, lost = 0;
    for (int64_t j = lane; j < s.dim && inside; j += 32) {
      const double v = c[j], d = v - to_float(to_half<H>(c[j]));
      squares = fma(v, v, squares);
      lost = fma(d, d, lost);
    }
    squares = warp_sum(squares);
    lost = warp_sum(lost);
    const float half = __double2float_rn(squares / 2);
    const bool usable = inside && half < 1e37f;  // false for NaN; larger ones are left to exact comparison
    for (int64_t j = lane; j < pitch; j += 32)
      packed[k * pitch + j] = usable && j < s.dim ? to_half<H>(c[j]) : to_half<H>(0.0f);
    if (lane == 0) {
      half_norm[k] = usable ? half : kUnusable;
      if (usable) {
        raise(&bounds->norm, norm_above(squares));
        raise(&bounds->residual, norm_above(lost));
      } else if (inside && isfinite(squares)) {
        raise(&bounds->norm, INFINITY);  // it could be chosen after all: nothing is proven
      }
    }
  }
}

// x [rows, dim] -> packed [rows, pitch], zeros beyond dim.
template <typename T, typename H>
__global__ void __launch_bounds__(256) pack_rows_kernel(const T* __restrict__ x, H* __restrict__ packed,
                                                        int64_t rows, int64_t dim, int64_t pitch) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < rows * pitch; i += step) {
    const int64_t row = i / pitch, j = i % pitch;
    packed[i] = to_half<H>(j < dim ? to_float(x[row * dim + j]) : 0.0f);
  }
}

// A warp's row: bounds of its norms, inf or NaN where it is not finite.
template <typename H, typename T>
__device__ __forceinline__ RowBounds row_bounds(const T* x, int64_t dim) {
  double squares = 0, lost = 0;
  for (int64_t j = threadIdx.x % 32; j < dim; j += 32) {
    const float v = to_float(x[j]);
    const double packed = to_float(to_half<H>(v)), d = v - packed;
    squares = fma(packed, packed, squares);
    lost = fma(d, d, lost);
  }
  return {norm_above(warp_sum(squares)), norm_above(warp_sum(lost))};
}

template <typename H, typename T>
__global__ void __launch_bounds__(256)
    row_bounds_kernel(const T* __restrict__ x, RowBounds* __restrict__ bounds, int64_t rows, int64_t dim) {
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32; i < rows;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x / 32) {
    const RowBounds b = row_bounds<H>(x + i * dim, dim);
    if (threadIdx.x % 32 == 0) bounds[i] = b;
  }
}

}  // namespace rsprune
