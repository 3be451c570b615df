#include "cpu/kmeans_avx512.h"

namespace rsprune {
namespace {

struct Avx512 : Avx512Common {
  static constexpr int kStep = 1;
  static constexpr double kUnit = 0x1p-24;

  static Reg dot(Reg a, Reg b, Reg c) { return fma(a, b, c); }
  static Reg pack(float* words, int64_t j, Reg v) {
    store(words + j, v);
    return v;
  }
};

}  // namespace

extern const AssignKernel kAssignAvx512 = make_assign_kernel<Avx512>();

}  // namespace rsprune
