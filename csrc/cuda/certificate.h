// How far a score that matrix units computed in 16 bits can be from the true one, so that a label is proven
// where the best two scores of a row are farther apart than twice that.
//
// True score: x.c - |c|^2 / 2, x and c as given. Computed: a sum of products x'_j c'_j, where x' and c' are x
// and c in 16 bits (x' = x where x is stored so), less the half norm, with a column in its low bits. Parts of
// the difference, by Cauchy-Schwarz:
//
//   storage       x.c - x'.c' = x'.(c - c') + (x - x').c, so at most |x'| |c - c'| + |x - x'| |c|. The norms
//                 of the differences are measured, not estimated.
//   accumulation  Products of two 16-bit values are exact in float32 (at most 22 significand bits; bfloat16
//                 products may leave the exponent range: see underflow). A matrix unit adds blocks of b >= 4
//                 products to the accumulator: it aligns the b + 1 terms to the largest and cuts off what is
//                 below its last bit, then cuts the sum to 24 bits. Each term loses less than 2^-23 of the
//                 largest, and so does the sum. Every term and partial sum is at most S = |x'| |c'| (1 + A),
//                 so ceil(D / b) blocks lose at most A S with A = D / b (b + 2) 2^-23 <= 1.5 D 2^-23, D
//                 rounded up to 16. More guard bits or larger blocks, as later units have, lose less.
//   half norm     rounded once to float32, subtracted with one rounding: 2^-24 (half norm + |score|) each.
//   column        2^(kColumnBits - 23) |score|.
//   underflow     results below 2^-126 may be flushed: D + 2 times that, and for products of subnormal x' or
//   c'
//                 as much again, scaled by the other's size.
#pragma once
#include <cmath>

#include "cuda/best_two.h"

namespace rsprune {

struct CenterBounds {    // over the centres that can be chosen
  float norm, residual;  // largest |c|, and |c - c'|, rounded up
};
struct RowBounds {
  float norm, residual;  // |x'|, and |x - x'|, rounded up
};

RSPRUNE_INLINE double score_error(RowBounds x, CenterBounds c, int64_t dim) {
  const double rounded_norm = static_cast<double>(c.norm) + c.residual;  // |c'|
  const double half_norm = 0.5 * static_cast<double>(c.norm) * c.norm;
  const double products = x.norm * rounded_norm;
  const double n = 1.5 * static_cast<double>((dim + 15) / 16 * 16) * 0x1p-23;
  const double accumulation = n / (1 - n) * products;
  const double storage = static_cast<double>(x.norm) * c.residual + static_cast<double>(x.residual) * c.norm;
  const double score = products + accumulation + half_norm;
  const double underflow = 0x1p-125 * static_cast<double>(dim + 2) * (1 + x.norm + rounded_norm);
  const double last = (0x1p-24 + (1 << kColumnBits) * 0x1p-23) * score + 0x1p-24 * half_norm;
  // Beyond this the float32 arithmetic could overflow, or n / (1 - n) says little: nothing is proven.
  return n < 0.5 && score < 1e37 ? storage + accumulation + last + underflow : INFINITY;
}

// What best - second must exceed. The factor covers the float64 arithmetic of score_error.
RSPRUNE_INLINE double required_gap(RowBounds x, CenterBounds c, int64_t dim) {
  return 2.001 * score_error(x, c, dim);
}

// False for NaN and where nothing finite was scored.
RSPRUNE_INLINE bool proven(const Screened& s, double gap) {
  return s.label >= 0 && s.best > -1e37f && static_cast<double>(s.best) - s.second > gap;
}

// Centres with a score below this cannot be the nearest; -inf where no score can tell (then all are
// compared).
RSPRUNE_INLINE float candidate_threshold(const Screened& s, double gap) {
  const double limit = static_cast<double>(s.best) - gap;
  return limit > -1e37 && limit < 1e37 ? static_cast<float>(limit - 0x1p-22 * fabs(limit)) : -INFINITY;
}

}  // namespace rsprune
