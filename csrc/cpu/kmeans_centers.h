// The centres as the assignment kernels want them, and what the error bound needs to know of them.
#pragma once
#include <cmath>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/kmeans_kernel.h"

namespace rsprune {

using FloatBuffer = AlignedBuffer<float>;

// An upper bound of a norm whose square was summed in float32: rounding, and what underflow hides.
inline double norm_above(float squares, int64_t dim) {
  return std::sqrt(squares * (1 + 0x1p-22 * static_cast<double>(dim)) + 0x1p-125 * static_cast<double>(dim));
}

struct Centers {
  Centers(const float* center, AssignShape shape, const AssignKernel& kernel);

  const float* row(int64_t k) const { return rows.get() + k * dim; }
  const float* panel(int64_t first) const {
    return panels.get() + first * steps;
  }  // of the panel's first centre
  int64_t padded_clusters() const { return (clusters + lanes - 1) / lanes * lanes; }

  int64_t clusters, lanes;
  int64_t dim;               // padded to a multiple of 16 with zeros
  int64_t steps;             // words per centre
  FloatBuffer rows;          // [clusters, dim] the given values
  FloatBuffer mean;          // [dim] subtracted from centres and points; or zeros
  FloatBuffer panels;        // [panel][steps][width] packed c - mean
  FloatBuffer bias;          // [padded clusters] -|c - mean|^2 / 2; -inf where there is no centre to choose
  std::vector<bool> usable;  // [clusters] all components finite, and no equal centre before it
  bool any_usable = false;

  std::vector<double> norms;      // [clusters] |packed c|
  std::vector<double> residuals;  // [clusters] |packed c - (c - mean)|
  std::vector<double>
      halves;  // [clusters] |c - mean|^2 / 2; all three are 0 where there is no centre to choose
};

}  // namespace rsprune
