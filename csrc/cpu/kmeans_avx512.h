// What the two AVX-512 paths of the assignment share; they differ in how scores are multiplied.
#pragma once
#include <immintrin.h>

#include "cpu/kmeans_tile.h"

namespace rsprune {
namespace {

struct Avx512Common {
  using Reg = __m512;
  static constexpr int kLanes = 16, kRows = 8, kVectors = 3;

  static Reg zero() { return _mm512_setzero_ps(); }
  static Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static Reg load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void store(float* p, Reg v) { _mm512_storeu_ps(p, v); }
  static Reg broadcast(const float* p) { return _mm512_set1_ps(*p); }
  static Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  static Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static float sum(Reg v) { return _mm512_reduce_add_ps(v); }
  static float largest(Reg v) { return _mm512_reduce_max_ps(v); }
  static unsigned at_least(Reg a, Reg b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
  static double squared_distance(const float* a, const float* b, int64_t dim) {
    __m512d sum[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
    for (int64_t j = 0; j < dim; j += 16)
      for (int i = 0; i < 2; ++i) {
        const __m512d d = _mm512_sub_pd(_mm512_cvtps_pd(_mm256_loadu_ps(a + j + 8 * i)),
                                        _mm512_cvtps_pd(_mm256_loadu_ps(b + j + 8 * i)));
        sum[i] = _mm512_fmadd_pd(d, d, sum[i]);
      }
    return _mm512_reduce_add_pd(_mm512_add_pd(sum[0], sum[1]));
  }
};

}  // namespace
}  // namespace rsprune
