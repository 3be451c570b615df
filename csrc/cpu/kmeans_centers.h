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

// The centres as given.
struct CenterRows {
  CenterRows(const float* center, AssignShape shape);

  float* row(int64_t k) const { return values.get() + k * dim; }

  int64_t clusters;
  int64_t dim;               // padded to a multiple of 16 with zeros
  FloatBuffer values;        // [clusters, dim]
  std::vector<bool> usable;  // [clusters] all components finite, and no equal centre before it
  bool any_usable = false;
};

// The mean [dim] of the usable centres if it is a large part of them, else zeros. Subtracting it makes norms,
// and so the error bound, small. But it also rounds points that are exact in bfloat16, so it is not done for
// a small gain.
std::vector<float> common_origin(const CenterRows& given);

// The centres less an origin, packed: subtracting any one vector from points and centres moves no argmin.
struct Centers {
  Centers(const CenterRows& given, const float* origin, const AssignKernel& kernel);

  const float* panel(int64_t first) const {
    return panels.get() + first * steps;
  }  // of the panel's first centre
  int64_t padded_clusters() const { return (clusters + lanes - 1) / lanes * lanes; }

  int64_t clusters, lanes;
  int64_t dim;                // padded, as in CenterRows
  int64_t steps;              // words per centre
  std::vector<float> origin;  // [dim]
  FloatBuffer panels;         // [panel][steps][width] packed c - origin
  FloatBuffer bias;           // [padded clusters] -|c - origin|^2 / 2; -inf where there is none to choose

  std::vector<double> norms;      // [clusters] |packed c|
  std::vector<double> residuals;  // [clusters] |packed c - (c - origin)|
  std::vector<double>
      halves;  // [clusters] |c - origin|^2 / 2; all three are 0 where there is no centre to choose
};

}  // namespace rsprune
