#include <immintrin.h>

#include "cpu/texture_planes.h"

namespace rsprune {
namespace {

struct Avx512 {
  using V = __m512i;
  static constexpr int64_t kPixels = 32;
  static V zero() { return _mm512_setzero_si512(); }
  static V load(const uint8_t* from) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
  }
  static V add(V a, V b) { return _mm512_add_epi16(a, b); }
  static V sub(V a, V b) { return _mm512_sub_epi16(a, b); }
  static V both(V a, V b) { return _mm512_and_si512(a, b); }
  static V either(V a, V b) { return _mm512_or_si512(a, b); }
  static V add32(V a, V b) { return _mm512_add_epi32(a, b); }
  static V sub32(V a, V b) { return _mm512_sub_epi32(a, b); }
  // sum of 32-bit values plus a b, of pixel pairs
  static V dot(V sum, V a, V b) { return _mm512_dpwssd_epi32(sum, a, b); }
  // Pixels first .. last - 1 of the register.
  static V pixels(int64_t first, int64_t last) {
    const auto before = [](int64_t i) { return i < kPixels ? (uint64_t{1} << i) - 1 : 0xffffffff; };
    return _mm512_movm_epi16(static_cast<__mmask32>(before(last) & ~before(first)));
  }
  static V squares() { return _mm512_movm_epi16(0x7fff7fff); }
  static V ends() { return _mm512_movm_epi16(0x80018001); }
  // The 32-bit values of `sums`, which are not negative, to eight 64-bit ones.
  static void add_to(int64_t* total, V sums) {
    const V even = _mm512_maskz_mov_epi32(0x5555, sums), odd = _mm512_srli_epi64(sums, 32);
    _mm512_storeu_si512(total, _mm512_add_epi64(_mm512_loadu_si512(total), _mm512_add_epi64(even, odd)));
  }
  static void blocks(V of, int32_t* to) {
    __m256i a = _mm512_castsi512_si256(of), b = _mm512_extracti64x4_epi64(of, 1);
    a = _mm256_hadd_epi32(a, b);
    const __m128i s = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_hadd_epi32(s, s));
  }
};

}  // namespace

extern const TextureKernel kTextureAvx512 = {texture_planes<Avx512>, texture<double, uint16_t>,
                                             texture<double, float>, saturated};

}  // namespace rsprune
