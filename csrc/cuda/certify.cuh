// After scoring: proves labels, lists the rows whose label is not proven, and measures distances.
#pragma once
#include "cuda/certificate.h"
#include "cuda/prepare.cuh"
#include "cuda/screened.cuh"

namespace rsprune {

// One thread per row, where its bounds are known.
__global__ void __launch_bounds__(256)
    certify_kernel(ScreenedRows screened, const RowBounds* __restrict__ bounds,
                   const CenterBounds* __restrict__ center_bounds, int64_t dim, int32_t* __restrict__ label,
                   UnprovenRows unproven) {
  const CenterBounds c = *center_bounds;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < screened.rows;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const Screened s = screened.get(i);
    const double gap = required_gap(bounds[i], c, dim);
    label[i] = s.label;
    if (!proven(s, gap)) unproven.add(i, candidate_threshold(s, gap));
  }
}

// One warp per row: its bounds are measured here, and the distance to the centre that scored best.
template <typename H, typename T>
__global__ void __launch_bounds__(256)
    certify_rows_kernel(const T* __restrict__ x, const float* __restrict__ center, ScreenedRows screened,
                        const CenterBounds* __restrict__ center_bounds, int64_t dim,
                        int32_t* __restrict__ label, float* __restrict__ distance, UnprovenRows unproven) {
  const CenterBounds c = *center_bounds;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32; i < screened.rows;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x / 32) {
    const Screened s = screened.get(i);
    const double gap = required_gap(row_bounds<H>(x + i * dim, dim), c, dim);
    const bool sure = proven(s, gap);
    const double d = distance && sure ? squared_distance(x + i * dim, center + s.label * dim, dim) : 0;
    if (threadIdx.x % 32 != 0) continue;
    label[i] = s.label;
    if (!sure)
      unproven.add(i, candidate_threshold(s, gap));
    else if (distance)
      distance[i] = static_cast<float>(d);
  }
}

}  // namespace rsprune
