#include <immintrin.h>

#include "cpu/entropy_count.h"

namespace rsprune {
namespace {

constexpr int kSmall = 128;  // counts below it are looked up 64 at a time

// The four bytes of T[c] for c < kSmall, in separate tables for vpermi2b.
struct Planes {
  alignas(64) uint8_t byte[4][kSmall];
  Planes() {
    for (int c = 0; c < kSmall; ++c)
      for (int i = 0; i < 4; ++i) byte[i][c] = static_cast<uint8_t>(entropy_table()[c] >> (8 * i));
  }
};

// Eight counts, one per 64-bit lane, and clears their counters.
__m512i take_counts(uint8_t* counter) {
  const __m512i zero = _mm512_setzero_si512();
  const __m512i counts = _mm512_sad_epu8(_mm512_load_si512(counter), zero);
  _mm512_store_si512(counter, zero);
  return counts;
}

// 32 counts, one per 16-bit lane. Their order does not matter, so shifting and merging is all it takes.
__m512i take_32_counts(uint8_t* counter) {
  const __m512i a = take_counts(counter), b = take_counts(counter + 64);
  const __m512i c = take_counts(counter + 128), d = take_counts(counter + 192);
  const __m512i low = _mm512_or_si512(a, _mm512_slli_epi64(b, 16));
  return _mm512_or_si512(low, _mm512_slli_epi64(_mm512_or_si512(c, _mm512_slli_epi64(d, 16)), 32));
}

// Zeroes the large counts and adds their terms to sum.
__m512i without_large(__m512i counts, uint64_t& sum) {
  __mmask32 large = _mm512_cmpge_epu16_mask(counts, _mm512_set1_epi16(kSmall));
  if (!large) return counts;
  alignas(64) uint16_t count[32];
  _mm512_store_si512(count, counts);
  for (uint32_t bits = large; bits; bits &= bits - 1) sum += entropy_table()[count[__builtin_ctz(bits)]];
  return _mm512_maskz_mov_epi16(~large, counts);
}

uint64_t sum_of_counters(uint8_t* counter) {
  static const Planes planes;
  const __m512i zero = _mm512_setzero_si512();
  __m512i bytes[4] = {zero, zero, zero, zero};
  uint64_t sum = 0;
  for (int i = 0; i < 4; ++i, counter += kCounters / 4) {
    const __m512i a = without_large(take_32_counts(counter), sum);
    const __m512i b = without_large(take_32_counts(counter + kCounters / 8), sum);
    const __m512i counts = _mm512_or_si512(a, _mm512_slli_epi16(b, 8));
    for (int p = 0; p < 4; ++p) {
      const __m512i low = _mm512_load_si512(planes.byte[p]), high = _mm512_load_si512(planes.byte[p] + 64);
      const __m512i term = _mm512_permutex2var_epi8(low, counts, high);
      bytes[p] = _mm512_add_epi64(bytes[p], _mm512_sad_epu8(term, zero));
    }
  }
  const __m512i low = _mm512_add_epi64(bytes[0], _mm512_slli_epi64(bytes[1], 8));
  const __m512i high = _mm512_add_epi64(bytes[2], _mm512_slli_epi64(bytes[3], 8));
  return sum + _mm512_reduce_add_epi64(_mm512_add_epi64(low, _mm512_slli_epi64(high, 16)));
}

}  // namespace

extern const EntropyKernel kEntropyAvx512 = {patch<sum_of_counters>};

}  // namespace rsprune
