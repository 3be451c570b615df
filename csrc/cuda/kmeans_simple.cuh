// Two kernels: scores in float32 with the best two of each row, which prove most labels, and a pass of one
// warp per row that measures the distance to a proven centre and decides the others in float64, exactly if
// need be. Plain FMA code; the reference for faster ones.
#pragma once
#include "cuda/exact_rows.cuh"
#include "kmeans.h"

namespace rsprune::simple {

constexpr int kTile = 64;  // points and centres per block
constexpr int kSlab = 16;  // dimensions at a time
constexpr int kSide = 4;   // each of 16 x 16 threads scores 4 points x 4 centres
constexpr int kThreads = 256;
constexpr int kUnproven = -2;  // label of a row that the second kernel decides

// Copies rows [first, first + 64) x dims [at, at + 16) of a matrix, transposed, and adds up squares of rows:
// thread t has row t / 4, and four dimensions.
template <typename T>
__device__ void load_slab(const T* __restrict__ from, int64_t first, int64_t rows, int64_t at, int64_t dim,
                          float (*to)[kTile + 4], double& squares) {
  const int row = threadIdx.x / 4;
  for (int i = 0; i < 4; ++i) {
    const int j = threadIdx.x % 4 * 4 + i;
    const bool inside = first + row < rows && at + j < dim;
    const float v = inside ? to_float(from[(first + row) * dim + at + j]) : 0.0f;
    to[j][row] = v;
    squares += static_cast<double>(v) * v;
  }
}

__device__ double quad_sum(double v) {
  v += __shfl_xor_sync(~0u, v, 1);
  return v + __shfl_xor_sync(~0u, v, 2);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    score_kernel(const T* __restrict__ x, const float* __restrict__ center, int32_t* __restrict__ label,
                 AssignShape s) {
  __shared__ float points[kSlab][kTile + 4], centers[kSlab][kTile + 4];
  __shared__ float half_norm[kTile], point_norm[kTile];  // inf: a centre that cannot be chosen
  __shared__ float largest_norm[kTile];                  // of the centres that one thread quad has seen
  const int ty = threadIdx.x / 16, tx = threadIdx.x % 16;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTile;
  float best[kSide], second[kSide];
  int32_t index[kSide];
  for (int r = 0; r < kSide; ++r) best[r] = second[r] = -INFINITY, index[r] = -1;
  if (threadIdx.x < kTile) largest_norm[threadIdx.x] = 0;

  for (int64_t k = 0; k < s.clusters; k += kTile) {
    float score[kSide][kSide] = {};
    double point_squares = 0, center_squares = 0;
    for (int64_t at = 0; at < s.dim; at += kSlab) {
      __syncthreads();
      load_slab(x, first, s.points, at, s.dim, points, point_squares);
      load_slab(center, k, s.clusters, at, s.dim, centers, center_squares);
      __syncthreads();
#pragma unroll
      for (int j = 0; j < kSlab; ++j) {
        const float4 p = *reinterpret_cast<const float4*>(&points[j][ty * kSide]);
        const float4 c = *reinterpret_cast<const float4*>(&centers[j][tx * kSide]);
        const float a[kSide] = {p.x, p.y, p.z, p.w}, b[kSide] = {c.x, c.y, c.z, c.w};
#pragma unroll
        for (int r = 0; r < kSide; ++r)
#pragma unroll
          for (int i = 0; i < kSide; ++i) score[r][i] = fmaf(a[r], b[i], score[r][i]);
      }
    }
    point_squares = quad_sum(point_squares);
    center_squares = quad_sum(center_squares);
    if (threadIdx.x % 4 == 0) {
      const int row = threadIdx.x / 4;
      const bool usable = k + row < s.clusters && isfinite(center_squares);
      half_norm[row] = usable ? __double2float_rn(center_squares / 2) : INFINITY;
      if (usable) largest_norm[row] = fmaxf(largest_norm[row], __double2float_ru(sqrt(center_squares)));
      point_norm[row] = __double2float_ru(sqrt(point_squares));
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      const float half = half_norm[tx * kSide + i];
      const auto at = static_cast<int32_t>(k + tx * kSide + i);
#pragma unroll
      for (int r = 0; r < kSide; ++r) {
        const float v = half < INFINITY ? score[r][i] - half : -INFINITY;
        second[r] = fmaxf(second[r], fminf(v, best[r]));
        index[r] = v > best[r] ? at : index[r];
        best[r] = fmaxf(v, best[r]);
      }
    }
  }

  __syncthreads();
  float c = 0;
  for (int i = 0; i < kTile; ++i) c = fmaxf(c, largest_norm[i]);
  for (int r = 0; r < kSide; ++r) {
    for (int offset = 8; offset; offset /= 2) {
      const float other = __shfl_xor_sync(~0u, best[r], offset);
      const float runner_up = __shfl_xor_sync(~0u, second[r], offset);
      const int32_t at = __shfl_xor_sync(~0u, index[r], offset);
      second[r] = fmaxf(fmaxf(second[r], runner_up), fminf(best[r], other));
      if (other > best[r]) best[r] = other, index[r] = at;
    }
    const int64_t row = first + ty * kSide + r;
    if (tx != 0 || row >= s.points) continue;
    // The bound of csrc/cpu/kmeans_screen.cpp without its storage terms: the inputs are used as they are.
    const double y = point_norm[ty * kSide + r], n = static_cast<double>(s.dim + 3) * 0x1p-24;
    const double magnitude = y * c + 0.5 * c * c;
    const double underflow = 0x1p-125 * static_cast<double>(s.dim + 2) * (1 + y + c);
    const double margin = 2.001 * (n / (1 - n) * magnitude + 0x1p-24 * c * c + underflow);
    const double gap = static_cast<double>(best[r]) - second[r];  // NaN or inf where nothing was scored
    const bool proven = n < 0.5 && magnitude < 1e38 && index[r] >= 0 && gap > margin;
    label[row] = proven ? index[r] : kUnproven;
  }
}

// One warp per point. Without `distance`, only labels are written.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    decide_kernel(const T* __restrict__ x, const float* __restrict__ center, int32_t* __restrict__ label,
                  float* __restrict__ distance, int64_t* __restrict__ rechecked, AssignShape s) {
  constexpr int kWarps = kThreads / 32;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32; i < s.points;
       i += static_cast<int64_t>(gridDim.x) * kWarps) {
    const T* row = x + i * s.dim;
    Nearest nearest;
    nearest.label = label[i];
    if (nearest.label >= 0) {
      if (distance) nearest.distance = squared_distance(row, center + nearest.label * s.dim, s.dim);
    } else {
      nearest.label = -1;
      for (int64_t k = 0; k < s.clusters; ++k) consider(row, center, s.dim, static_cast<int32_t>(k), nearest);
      if (threadIdx.x % 32 == 0) {
        label[i] = nearest.label;
        if (rechecked) atomicAdd(reinterpret_cast<unsigned long long*>(rechecked), 1ull);
      }
    }
    if (distance && threadIdx.x % 32 == 0) distance[i] = static_cast<float>(nearest.distance);
  }
}

}  // namespace rsprune::simple
