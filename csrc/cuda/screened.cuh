// What kernels hand to each other about the rows of a chunk.
#pragma once
#include "cuda/best_two.h"

namespace rsprune {

// What scoring leaves for each row of a chunk and each group of centres: [splits, rows] arrays.
struct ScreenedRows {
  float *best, *second;
  int32_t* label;
  int64_t rows;
  int splits;

  __device__ __forceinline__ void set(int64_t row, int split, const Screened& s) const {
    const int64_t at = split * rows + row;
    best[at] = s.best;
    second[at] = s.second;
    label[at] = s.label;
  }
  __device__ __forceinline__ Screened get(int64_t row) const {
    Screened s{best[row], second[row], label[row]};
    for (int i = 1; i < splits; ++i) {
      const int64_t at = i * rows + row;
      s.merge({best[at], second[at], label[at]});
    }
    return s;
  }
};

// Rows to decide again. `count` starts at 0; `threshold` says which centres of a row are candidates.
struct UnprovenRows {
  int32_t* row;
  float* threshold;
  uint32_t* count;

  __device__ __forceinline__ void add(int64_t i, float limit) const {
    const uint32_t at = atomicAdd(count, 1u);  // their order changes nothing that is computed
    row[at] = static_cast<int32_t>(i);
    threshold[at] = limit;
  }
};

}  // namespace rsprune
