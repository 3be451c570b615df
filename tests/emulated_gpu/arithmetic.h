// 16-bit floats and sums of products as matrix units compute them.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace emulated {

// 16-bit floats.
inline float half_to_float(uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const float v = exponent == 31 ? (mantissa ? NAN : INFINITY)
                  : exponent     ? std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25)
                                 : std::ldexp(static_cast<float>(mantissa), -24);
  return h & 0x8000 ? -v : v;
}
inline uint16_t float_to_half(float v) {
  const uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  const float a = std::fabs(v);
  if (std::isnan(v)) return 0x7fff;
  if (a >= 65520.0f) return sign | 0x7c00;
  if (a < 0x1p-14f) return sign | static_cast<uint16_t>(std::nearbyint(a * 0x1p24f));
  int exponent;
  const float fraction = std::frexp(a, &exponent);                          // 0.5..1
  const auto mantissa = static_cast<int>(std::nearbyint(fraction * 2048));  // 1024..2048
  return sign | static_cast<uint16_t>(((exponent + 13) << 10) + mantissa);
}
inline float bfloat_to_float(uint16_t b) {
  const uint32_t bits = static_cast<uint32_t>(b) << 16;
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
inline uint16_t float_to_bfloat(float v) {
  if (std::isnan(v)) return 0x7fff;
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// acc + sum of products as the certificate lets a matrix unit compute it: blocks of 4 products, every term
// cut off below the last bit of the largest, and the sum cut to 24 bits.
inline int exponent_of(double v) {
  uint64_t bits;
  std::memcpy(&bits, &v, 8);
  return static_cast<int>(bits >> 52 & 2047) - 1023;
}
inline double power_of_two(int exponent) {
  const auto bits = static_cast<uint64_t>(exponent + 1023) << 52;
  double v;
  std::memcpy(&v, &bits, 8);
  return v;
}
inline float accumulate(float acc, const float* a, const float* b, int n) {
  for (int k = 0; k < n; k += 4) {
    double term[5] = {acc}, largest = std::fabs(acc), plain = acc;
    for (int i = 0; i < 4; ++i) {
      term[i + 1] = static_cast<double>(a[k + i]) * b[k + i];
      plain += term[i + 1];
      largest = std::fmax(largest, std::fabs(term[i + 1]));
    }
    const int last = exponent_of(largest) - 23;
    if (!std::isfinite(plain) || last < -900) {  // infinities, NaN, and nothing but zeros
      acc = static_cast<float>(plain);
      continue;
    }
    const double up = power_of_two(-last);
    int64_t sum = 0;
    for (double t : term) sum += static_cast<int64_t>(t * up);
    for (int64_t unit = 2; std::abs(sum) >= unit << 23; unit *= 2) sum = sum / unit * unit;  // 24 bits
    acc = static_cast<float>(static_cast<double>(sum) / up);
  }
  return acc;
}

}  // namespace emulated
