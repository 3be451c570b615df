#include "cpu/kmeans_centers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

namespace rsprune {
namespace {

// A centre equal to an earlier one is never the answer, and would leave every point near it in doubt.
void drop_repeats(CenterRows& c) {
  std::vector<int64_t> order(c.clusters);
  std::iota(order.begin(), order.end(), 0);
  const auto compare = [&](int64_t a, int64_t b) {
    return std::memcmp(c.row(a), c.row(b), c.dim * sizeof(float));
  };
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    const int difference = compare(a, b);
    return difference ? difference < 0 : a < b;
  });
  for (int64_t i = 1; i < c.clusters; ++i)
    if (compare(order[i - 1], order[i]) == 0) c.usable[order[i]] = false;
}

}  // namespace

CenterRows::CenterRows(const float* center, AssignShape shape)
    : clusters(shape.clusters), dim((shape.dim + 15) / 16 * 16), values(clusters * dim), usable(clusters) {
  for (int64_t k = 0; k < clusters; ++k) {
    float* to = row(k);
    std::memcpy(to, center + k * shape.dim, shape.dim * sizeof(float));
    std::fill(to + shape.dim, to + dim, 0.0f);
    usable[k] = std::all_of(to, to + dim, [](float v) { return std::isfinite(v); });
    any_usable = any_usable || usable[k];
  }
  drop_repeats(*this);
}

std::vector<float> common_origin(const CenterRows& given) {
  std::vector<double> mean(given.dim);
  double squares = 0, count = 0;
  for (int64_t k = 0; k < given.clusters; ++k) {
    if (!given.usable[k]) continue;
    ++count;
    for (int64_t j = 0; j < given.dim; ++j) {
      const double v = given.row(k)[j];
      mean[j] += v;
      squares += v * v;
    }
  }
  double of_mean = 0;
  for (double& v : mean) {
    v /= std::max(count, 1.0);
    of_mean += v * v;
  }
  std::vector<float> origin(given.dim);
  if (of_mean * count > 0.1 * squares) std::copy(mean.begin(), mean.end(), origin.begin());
  return origin;
}

Centers::Centers(const CenterRows& given, const float* origin, const AssignKernel& kernel)
    : clusters(given.clusters),
      lanes(kernel.lanes),
      dim(given.dim),
      steps(dim / kernel.step),
      origin(origin, origin + dim),
      panels(padded_clusters() * steps),
      bias(padded_clusters()),
      norms(clusters),
      residuals(clusters),
      halves(clusters) {
  std::fill(bias.get(), bias.get() + padded_clusters(), -std::numeric_limits<float>::infinity());
  std::fill(panels.get(), panels.get() + padded_clusters() * steps, 0.0f);

  const int64_t width = kernel.lanes * kernel.vectors;
  FloatBuffer words(steps);
  for (int64_t k = 0; k < clusters; ++k) {
    if (!given.usable[k]) continue;
    const double squares = kernel.squared_distance(given.row(k), origin, dim);
    float sums[2];
    kernel.pack(given.row(k), origin, dim, words.get(), sums);
    norms[k] = norm_above(sums[0], dim);
    // The float32 subtraction of the origin loses up to 2^-24 of each component.
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
