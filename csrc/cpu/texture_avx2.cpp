#include <immintrin.h>

#include "cpu/texture_planes.h"

namespace rsprune {
namespace {

struct Avx2 {
  using V = __m256i;
  static constexpr int64_t kPixels = 16;
  static V zero() { return _mm256_setzero_si256(); }
  static V load(const uint8_t* from) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  }
  static V add(V a, V b) { return _mm256_add_epi16(a, b); }
  static V sub(V a, V b) { return _mm256_sub_epi16(a, b); }
  static V both(V a, V b) { return _mm256_and_si256(a, b); }
  static V either(V a, V b) { return _mm256_or_si256(a, b); }
  static V add32(V a, V b) { return _mm256_add_epi32(a, b); }
  static V sub32(V a, V b) { return _mm256_sub_epi32(a, b); }
  // sum of 32-bit values plus a b, of pixel pairs
  static V dot(V sum, V a, V b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
  // Pixels first .. last - 1 of the register.
  static V pixels(int64_t first, int64_t last) {
    const V i = _mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const auto from = static_cast<int16_t>(first < kPixels ? first : kPixels);
    const auto to = static_cast<int16_t>(last < kPixels ? last : kPixels);
    return _mm256_andnot_si256(_mm256_cmpgt_epi16(_mm256_set1_epi16(from), i),
                               _mm256_cmpgt_epi16(_mm256_set1_epi16(to), i));
  }
  static V squares() { return pixels(0, kTextureBlock - 1); }
  static V ends() { return either(pixels(0, 1), pixels(kTextureBlock - 1, kTextureBlock)); }
  // The 32-bit values of `sums`, which are not negative, to four 64-bit ones.
  static void add_to(int64_t* total, V sums) {
    auto* to = reinterpret_cast<__m256i*>(total);
    const V even = _mm256_blend_epi32(sums, zero(), 0xaa), odd = _mm256_srli_epi64(sums, 32);
    _mm256_storeu_si256(to, _mm256_add_epi64(_mm256_loadu_si256(to), _mm256_add_epi64(even, odd)));
  }
  static void blocks(V of, int32_t* to) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(of), _mm256_extracti128_si256(of, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    *to = _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
  }
};

}  // namespace

extern const TextureKernel kTextureAvx2 = {texture_planes<Avx2>, texture<double, uint16_t>,
                                           texture<double, float>, saturated};

}  // namespace rsprune
