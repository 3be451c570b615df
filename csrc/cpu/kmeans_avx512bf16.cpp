#include "cpu/kmeans_avx512.h"

namespace rsprune {
namespace {

struct Avx512Bf16 : Avx512Common {
  static constexpr int kStep = 2;
  // vdpbf16ps adds two products to a float32 and may truncate where an FMA rounds.
  static constexpr double kUnit = 0x1p-23;

  static Reg dot(Reg a, Reg b, Reg c) {
    return _mm512_dpbf16_ps(c, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  static Reg pack(float* words, int64_t j, Reg v) {
    const auto rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(words + j / 2), rounded);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16));
  }
};

}  // namespace

extern const AssignKernel kAssignAvx512Bf16 = make_assign_kernel<Avx512Bf16>(&kAssignAvx512);

}  // namespace rsprune
