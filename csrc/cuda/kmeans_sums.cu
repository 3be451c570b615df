// Sums of the rows of each cluster: a stable radix sort of row numbers by label, then sums over the runs.
#include "cuda/launch.cuh"
#include "cuda/sort.h"
#include "cuda/sum_runs.cuh"
#include "kmeans.h"

namespace rsprune {
namespace {

constexpr int64_t kMostRows = int64_t{1} << 22;  // at a time, so that the workspace stays small

// Enough low bits to tell all labels and -1, whose bits are all ones, apart: -1 sorts last.
int label_bits(int64_t clusters) {
  int bits = 1;
  while ((int64_t{1} << bits) - 1 < clusters) ++bits;
  return bits;
}

struct Layout {
  int64_t sorted, rows, sorted_rows, partial, sort, sort_bytes, bytes;
};

Layout layout(AssignShape s) {
  const int64_t n = std::min(s.points, kMostRows);
  Layout l{};
  const auto take = [&](int64_t bytes) {
    const int64_t begin = l.bytes;
    l.bytes += (bytes + 255) / 256 * 256;
    return begin;
  };
  l.sorted = take(n * 4);
  l.rows = take(n * 4);
  l.sorted_rows = take(n * 4);
  l.partial = take((n + kChunkRows - 1) / kChunkRows * 2 * s.dim * 8);
  l.sort_bytes = sort_bytes(n, label_bits(s.clusters));
  l.sort = take(l.sort_bytes);
  return l;
}

template <typename T, int kWidth>
void sum_chunks(const T* x, const SortedRows& s, double* sum, double* partial, cudaStream_t stream) {
  const int64_t slices = (s.dim + 32 * kWidth - 1) / (32 * kWidth);
  const int64_t warps = (s.rows + kChunkRows - 1) / kChunkRows * slices;
  enqueue(stream, blocks_for(warps, 8), 256, 0, sum_chunks_kernel<T, kWidth>, x, s, sum, partial);
}

template <typename T>
void launch(const void* x, const int32_t* label, double* sum, int64_t* count, char* workspace, AssignShape s,
            cudaStream_t stream) {
  constexpr int kWidth = 16 / sizeof(T);
  const Layout l = layout(s);
  auto* sorted = reinterpret_cast<int32_t*>(workspace + l.sorted);
  auto* rows = reinterpret_cast<int32_t*>(workspace + l.rows);
  auto* sorted_rows = reinterpret_cast<int32_t*>(workspace + l.sorted_rows);
  auto* partial = reinterpret_cast<double*>(workspace + l.partial);
  for (int64_t first = 0; first < s.points; first += kMostRows) {
    const int64_t n = std::min(kMostRows, s.points - first);
    const T* from = static_cast<const T*>(x) + first * s.dim;
    enqueue(stream, blocks_for(n, 1024), 256, 0, count_up_kernel, rows, n);
    sort_by_label(label + first, rows, sorted, sorted_rows, n, label_bits(s.clusters), workspace + l.sort,
                  l.sort_bytes, stream);
    const SortedRows sorted_by_label{sorted, sorted_rows, n, s.dim, static_cast<int32_t>(s.clusters)};
    if (s.dim % kWidth == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0)
      sum_chunks<T, kWidth>(from, sorted_by_label, sum, partial, stream);
    else
      sum_chunks<T, 1>(from, sorted_by_label, sum, partial, stream);
    enqueue(stream, blocks_for(s.clusters * ((s.dim + 31) / 32), 8), 256, 0, add_parts_kernel,
            sorted_by_label, partial, sum, count);
  }
}

}  // namespace

int64_t kmeans_sums_workspace_cuda(AssignShape shape) { return shape.points ? layout(shape).bytes : 0; }

void kmeans_sums_cuda(const void* x, Float type, const int32_t* label, double* sum, int64_t* count,
                      void* workspace, AssignShape shape, void* stream) {
  if (shape.points == 0 || shape.clusters == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  auto* memory = static_cast<char*>(workspace);
  switch (type) {
    case Float::f32:
      return launch<float>(x, label, sum, count, memory, shape, on);
    case Float::f16:
      return launch<__half>(x, label, sum, count, memory, shape, on);
    case Float::bf16:
      return launch<__nv_bfloat16>(x, label, sum, count, memory, shape, on);
  }
}

}  // namespace rsprune
