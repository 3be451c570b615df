// Compares two squared distances exactly, for the rare rows that float64 cannot decide.
#pragma once
#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace rsprune {

// A fixed-point number wide enough for any sum of up to 2^30 products of two float32 values, one of them
// possibly doubled: a product is a multiple of 2^-298 below 2^257. Limbs of 32 bits are kept in int64, so
// carries can wait until the end.
class ExactSum {
 public:
  RSPRUNE_HOST_DEVICE void add_product(double a, double b) {  // a and b hold float32 values
    const double product = a * b;                             // 48 significant bits: exact in a double
    if (product == 0) return;
    int exponent;
    const double fraction = frexp(product, &exponent);
    const auto mantissa =
        static_cast<int64_t>(ldexp(fraction, 53));  // product = mantissa * 2^(exponent - 53)
    const int shift = exponent - 53 + kBias;
    const int limb = shift >> 5, offset = shift & 31;
    const uint64_t magnitude =
        mantissa < 0 ? -static_cast<uint64_t>(mantissa) : static_cast<uint64_t>(mantissa);
    const uint64_t low = magnitude << offset;
    const uint64_t high = offset ? magnitude >> (64 - offset) : 0;
    const int64_t sign = mantissa < 0 ? -1 : 1;
    limb_[limb] += sign * static_cast<int64_t>(low & 0xffffffffu);
    limb_[limb + 1] += sign * static_cast<int64_t>(low >> 32);
    limb_[limb + 2] += sign * static_cast<int64_t>(high);
  }

  RSPRUNE_HOST_DEVICE int sign() {
    int64_t carry = 0;
    bool zero = true;
    for (int i = 0; i < kLimbs; ++i) {
      const int64_t v = limb_[i] + carry;
      carry = v >> 32;  // floor division, so what remains is in [0, 2^32)
      zero = zero && (v & 0xffffffff) == 0;
    }
    return carry < 0 ? -1 : (carry > 0 || !zero);
  }

 private:
  static constexpr int kBias = 384;  // the smallest product, 2^-298 with 53 fraction bits, keeps shift >= 0
  static constexpr int kLimbs = 24;  // 384 + 256 + 30 bits and a limb to spare
  int64_t limb_[kLimbs] = {};
};

// Adds one dimension's part of |x - a|^2 - |x - b|^2 = sum (a_j^2 - b_j^2) - 2 x_j (a_j - b_j), whose sign
// tells which of a and b is nearer.
RSPRUNE_HOST_DEVICE inline void add_distance_difference(ExactSum& sum, float x, float a, float b) {
  if (a == b) return;
  sum.add_product(a, a);
  sum.add_product(-b, b);
  sum.add_product(-2.0 * x, a);
  sum.add_product(2.0 * x, b);
}

}  // namespace rsprune
