#include "cpu/kmeans_centers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

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

double squared_norm(const Centers& c, int64_t k) {  // of c_k - mean
  double squares = 0;
  for (int64_t j = 0; j < c.dim; ++j) {
    const double v = static_cast<double>(c.row(k)[j]) - c.mean.get()[j];
    squares += v * v;
  }
  return squares;
}

// A centre equal to an earlier one is never the answer, and would leave every point near it in doubt.
void drop_repeats(Centers& c) {
  std::vector<std::pair<double, int64_t>> order;  // equal centres have equal norms, so they become neighbours
  for (int64_t k = 0; k < c.clusters; ++k)
    if (c.usable[k]) order.emplace_back(squared_norm(c, k), k);
  std::sort(order.begin(), order.end());
  for (size_t i = 1; i < order.size(); ++i)
    if (std::memcmp(c.row(order[i - 1].second), c.row(order[i].second), c.dim * sizeof(float)) == 0)
      c.usable[order[i].second] = false;
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
      usable(clusters),
      norms(clusters),
      residuals(clusters),
      halves(clusters) {
  for (int64_t k = 0; k < clusters; ++k) {
    float* to = rows.get() + k * dim;
    std::memcpy(to, center + k * shape.dim, shape.dim * sizeof(float));
    std::fill(to + shape.dim, to + dim, 0.0f);
    usable[k] = std::all_of(to, to + dim, [](float v) { return std::isfinite(v); });
    any_usable = any_usable || usable[k];
  }
  set_mean(*this);
  drop_repeats(*this);
  std::fill(bias.get(), bias.get() + padded_clusters(), -std::numeric_limits<float>::infinity());
  std::fill(panels.get(), panels.get() + padded_clusters() * steps, 0.0f);

  const int64_t width = kernel.lanes * kernel.vectors;
  FloatBuffer words(steps);
  for (int64_t k = 0; k < clusters; ++k) {
    if (!usable[k]) continue;
    const double squares = squared_norm(*this, k);
    float sums[2];
    kernel.pack(row(k), mean.get(), dim, words.get(), sums);
    norms[k] = norm_above(sums[0], dim);
    // The float32 subtraction of the mean loses up to 2^-24 of each component.
    residuals[k] = norm_above(sums[1], dim) + 0x1p-23 * std::sqrt(squares);
    halves[k] = squares / 2;
    bias.get()[k] = static_cast<float>(-squares / 2);

    const int64_t first = k / width * width;  // of this panel, whose width the last one may not fill
    const int64_t panel_width = std::min(width, padded_clusters() - first);
    float* to = panels.get() + first * steps + (k - first);
    for (int64_t s = 0; s < steps; ++s) std::memcpy(to + s * panel_width, words.get() + s, sizeof(float));
  }
}

}  // namespace rsprune
