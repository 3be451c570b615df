// The parts of k-means besides the assignment. Sums do not depend on the number of threads.
#include <algorithm>
#include <vector>

#include "cpu/denormals.h"
#include "cpu/kmeans_kernel.h"

namespace rsprune {

// Threads own slices of the dimensions, so every sum is one thread's, in row order.
void kmeans_sums_cpu(const void* x, Float type, const int32_t* label, double* sum, int64_t* count,
                     AssignShape shape) {
  constexpr int64_t kSlice = 64;
  const AssignKernel& kernel = assign_kernel(isa());
  const int64_t bytes = type == Float::f32 ? 4 : 2;
  for (int64_t i = 0; i < shape.points; ++i)
    if (label[i] >= 0) ++count[label[i]];

#pragma omp parallel for schedule(static)
  for (int64_t first = 0; first < shape.dim; first += kSlice) {
    const KeepDenormals in_thread;
    const int64_t n = std::min(kSlice, shape.dim - first);
    float row[kSlice];
    for (int64_t i = 0; i < shape.points; ++i) {
      if (label[i] < 0) continue;
      kernel.to_float(static_cast<const char*>(x) + (i * shape.dim + first) * bytes, type, n, row);
      double* to = sum + label[i] * shape.dim + first;
      for (int64_t j = 0; j < n; ++j) to[j] += row[j];
    }
  }
}

void kmeans_closer_cpu(const float* x, const float* candidate, const float* closest, float* out,
                       double* potential, int64_t points, int64_t dim) {
  constexpr int64_t kBlock = 1024;
  const AssignKernel& kernel = assign_kernel(isa());
  const int64_t blocks = (points + kBlock - 1) / kBlock;
  std::vector<double> sums(blocks * kCandidates);

#pragma omp parallel for schedule(static)
  for (int64_t b = 0; b < blocks; ++b) {
    const KeepDenormals in_thread;
    const int64_t first = b * kBlock;
    const int64_t count = std::min(kBlock, points - first);
    float* to = out + first * kCandidates;
    kernel.closer(x + first * dim, count, dim, candidate, closest + first, to);
    double* sum = sums.data() + b * kCandidates;
    for (int64_t i = 0; i < count; ++i)
      for (int t = 0; t < kCandidates; ++t) sum[t] += to[i * kCandidates + t];
  }
  std::fill(potential, potential + kCandidates, 0.0);
  for (int64_t i = 0; i < blocks * kCandidates; ++i) potential[i % kCandidates] += sums[i];
}

}  // namespace rsprune
