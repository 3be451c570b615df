// Sums of rows that a sort by label has brought together: no atomics, and always the same order of additions.
//
// The sorted sequence is cut into chunks of kChunkRows, one warp each. A run of equal labels that lies inside
// a chunk is a whole cluster and is added to its sum at once; a run that reaches the chunk's first or last
// row may go on elsewhere and is left in `partial` for the second kernel, which adds a cluster's parts in
// order.
#pragma once
#include "cuda/exact_rows.cuh"

namespace rsprune {

constexpr int kChunkRows = 256;

struct SortedRows {
  const int32_t* label;  // [rows] ascending; those that are skipped come last
  const int32_t* row;    // [rows] of x
  int64_t rows, dim;
  int32_t clusters;
  __device__ __forceinline__ bool skipped(int32_t k) const { return k < 0 || k >= clusters; }
};

// First position whose label is not below k; skipped ones count as above all.
__device__ __forceinline__ int64_t lower_bound(const SortedRows& s, int32_t k) {
  int64_t low = 0, high = s.rows;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    const int32_t v = s.label[middle];
    if (!s.skipped(v) && v < k)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Vector {
  T v[kWidth];
};

__global__ void __launch_bounds__(256) count_up_kernel(int32_t* to, int64_t n) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < n;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    to[i] = static_cast<int32_t>(i);
}

// A warp's slice is 32 x kWidth dimensions; partial [chunks, 2, dim].
template <typename T, int kWidth>
__global__ void __launch_bounds__(256)
    sum_chunks_kernel(const T* __restrict__ x, SortedRows s, double* __restrict__ sum,
                      double* __restrict__ partial) {
  constexpr int kAhead = 4;  // rows loaded before the first is added
  const int lane = threadIdx.x % 32;
  const int64_t slices = (s.dim + 32 * kWidth - 1) / (32 * kWidth);
  const int64_t items = (s.rows + kChunkRows - 1) / kChunkRows * slices;
  for (int64_t item = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32; item < items;
       item += static_cast<int64_t>(gridDim.x) * blockDim.x / 32) {
    const int64_t chunk = item / slices, dim = (item % slices * 32 + lane) * kWidth;
    const int64_t begin = chunk * kChunkRows, end = min(begin + kChunkRows, s.rows);
    const bool inside = dim < s.dim;  // kWidth divides s.dim
    double total[kWidth] = {};
    int32_t current = s.label[begin];
    bool at_start = true;

    const auto flush = [&](bool at_end) {
      if (inside && !s.skipped(current)) {
        double* to = at_start || at_end ? partial + (chunk * 2 + !at_start) * s.dim : sum + current * s.dim;
#pragma unroll
        for (int j = 0; j < kWidth; ++j) to[dim + j] = at_start || at_end ? total[j] : to[dim + j] + total[j];
      }
#pragma unroll
      for (int j = 0; j < kWidth; ++j) total[j] = 0;
      at_start = false;
    };
    for (int64_t i = begin; i < end; i += kAhead) {
      Vector<T, kWidth> ahead[kAhead];
      int32_t label[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int64_t at = min(i + a, end - 1);
        label[a] = s.label[at];
        if (inside) ahead[a] = *reinterpret_cast<const Vector<T, kWidth>*>(x + s.row[at] * s.dim + dim);
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (i + a >= end) continue;
        if (label[a] != current) {
          flush(false);
          current = label[a];
        }
#pragma unroll
        for (int j = 0; j < kWidth; ++j)
          if (inside) total[j] += static_cast<double>(to_float(ahead[a].v[j]));
      }
    }
    flush(true);
  }
}

// One warp per cluster and 32 dimensions: adds what its chunks have left, and counts its rows.
__global__ void __launch_bounds__(256)
    add_parts_kernel(SortedRows s, const double* __restrict__ partial, double* __restrict__ sum,
                     int64_t* __restrict__ count) {
  const int lane = threadIdx.x % 32;
  const int64_t slices = (s.dim + 31) / 32;
  for (int64_t item = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
       item < s.clusters * slices; item += static_cast<int64_t>(gridDim.x) * blockDim.x / 32) {
    const auto k = static_cast<int32_t>(item / slices);
    const int64_t dim = item % slices * 32 + lane;
    const int64_t begin = lower_bound(s, k), end = lower_bound(s, k + 1);
    if (begin == end) continue;
    if (item % slices == 0 && lane == 0) count[k] += end - begin;
    double total = 0;
    bool parts = false;
    for (int64_t chunk = begin / kChunkRows; chunk <= (end - 1) / kChunkRows; ++chunk) {
      const int64_t first = chunk * kChunkRows, last = min(first + kChunkRows, s.rows);
      const bool at_start = begin <= first, at_end = end >= last;
      if (!at_start && !at_end) continue;
      parts = true;
      if (dim < s.dim) total += partial[(chunk * 2 + !at_start) * s.dim + dim];
    }
    if (parts && dim < s.dim) sum[k * s.dim + dim] += total;
  }
}

}  // namespace rsprune
