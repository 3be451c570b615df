#include "cpu/kmeans_centers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace rsprune {
namespace {

// The mean of the usable centres if it is a large part of them, else zeros. Subtracting any one vector from
// points and centres moves no argmin; subtracting the mean makes norms, and so the error bound, small. But it
// also rounds points that are exact in bfloat16, so it is not done for a small gain.
void set_mean(const Centers& c) {
  std::vector<double> sum(c.dim);
  double squares = 0, count = 0;
  for (int64_t k = 0; k < c.clusters; ++k) {
    if (!c.usable[k]) continue;
    ++count;
    for (int64_t j = 0; j < c.dim; ++j) {
      const double v = c.row(k)[j];
      sum[j] += v;
      squares += v * v;
    }
  }
  double of_mean = 0;
  for (double& v : sum) {
    v /= std::max(count, 1.0);
    of_mean += v * v;
  }
  const bool large = of_mean * count > 0.1 * squares;
  for (int64_t j = 0; j < c.dim; ++j) c.mean.get()[j] = large ? static_cast<float>(sum[j]) : 0.0f;
}

}  // namespace

Centers::Centers(const float* center, AssignShape shape, const AssignKernel& kernel)
    : clusters(shape.clusters),
      lanes(kernel.lanes),
      dim((shape.dim + 15) / 16 * 16),
      steps(dim / kernel.step),
      rows(clusters * dim),
      mean(dim),
      panels(padded_clusters() * steps),
      bias(padded_clusters()),
      usable(clusters) {
  for (int64_t k = 0; k < clusters; ++k) {
    float* to = rows.get() + k * dim;
    std::memcpy(to, center + k * shape.dim, shape.dim * sizeof(float));
    std::fill(to + shape.dim, to + dim, 0.0f);
    usable[k] = std::all_of(to, to + dim, [](float v) { return std::isfinite(v); });
    any_usable = any_usable || usable[k];
  }
  set_mean(*this);
  std::fill(bias.get(), bias.get() + padded_clusters(), -std::numeric_limits<float>::infinity());
  std::fill(panels.get(), panels.get() + padded_clusters() * steps, 0.0f);

  const int64_t width = kernel.lanes * kernel.vectors;
  FloatBuffer words(steps);
  for (int64_t k = 0; k < clusters; ++k) {
    if (!usable[k]) continue;
    double squares = 0;
    for (int64_t j = 0; j < dim; ++j) {
      const double v = static_cast<double>(row(k)[j]) - mean.get()[j];
      squares += v * v;
    }
    float sums[2];
    kernel.pack(row(k), mean.get(), dim, words.get(), sums);
    const double slack = 1 + 0x1p-22 * dim;
    const double floor = 0x1p-125 * dim;  // what underflow can hide in a sum of squares
    norm = std::max(norm, std::sqrt(sums[0] * slack + floor));
    // The float32 subtraction of the mean loses up to 2^-24 of each component.
    residual = std::max(residual, std::sqrt(sums[1] * slack + floor) + 0x1p-23 * std::sqrt(squares));
    half_norm = std::max(half_norm, squares / 2);
    bias.get()[k] = static_cast<float>(-squares / 2);

    const int64_t first = k / width * width;  // of this panel, whose width the last one may not fill
    const int64_t panel_width = std::min(width, padded_clusters() - first);
    float* to = panels.get() + first * steps + (k - first);
    for (int64_t s = 0; s < steps; ++s) std::memcpy(to + s * panel_width, words.get() + s, sizeof(float));
  }
}

}  // namespace rsprune
