#include <algorithm>

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

}  // namespace rsprune
