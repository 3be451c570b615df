#include "cpu/kmeans_tile.h"

namespace rsprune {
namespace {

// Vectors of four floats by the compiler's own extension: SSE2, NEON or whatever the target has.
struct Portable {
  typedef float Reg __attribute__((vector_size(16)));
  typedef int32_t Mask __attribute__((vector_size(16)));
  static constexpr int kLanes = 4, kRows = 4, kVectors = 2, kStep = 1;
  static constexpr double kUnit = 0x1p-24;

  static Reg zero() { return Reg{}; }
  static Reg load(const float* p) {
    Reg v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static Reg load_half(const uint16_t* p) {
    return Reg{float_from_half(p[0]), float_from_half(p[1]), float_from_half(p[2]), float_from_half(p[3])};
  }
  static void store(float* p, Reg v) { __builtin_memcpy(p, &v, sizeof v); }
  static Reg broadcast(const float* p) { return Reg{*p, *p, *p, *p}; }
  static Reg add(Reg a, Reg b) { return a + b; }
  static Reg sub(Reg a, Reg b) { return a - b; }
  static Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
  static Reg dot(Reg a, Reg b, Reg c) { return fma(a, b, c); }
  static Reg min(Reg a, Reg b) { return a < b ? a : b; }
  static Reg max(Reg a, Reg b) { return a > b ? a : b; }
  static float sum(Reg v) { return v[0] + v[1] + v[2] + v[3]; }
  static float largest(Reg v) {
    const float a = v[0] > v[1] ? v[0] : v[1], b = v[2] > v[3] ? v[2] : v[3];
    return a > b ? a : b;
  }
  static unsigned at_least(Reg a, Reg b) {
    const Mask m = a >= b;
    return (m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8);
  }
  static Reg pack(float* words, int64_t j, Reg v) {
    store(words + j, v);
    return v;
  }
  static double squared_distance(const float* a, const float* b, int64_t dim) {
    double sum[4] = {};
    for (int64_t j = 0; j < dim; j += 4)
      for (int i = 0; i < 4; ++i) {
        const double d = static_cast<double>(a[j + i]) - b[j + i];
        sum[i] += d * d;
      }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
};

}  // namespace

const AssignKernel kAssignPortable = make_assign_kernel<Portable>();

}  // namespace rsprune
