#include <immintrin.h>

#include "cpu/entropy_count.h"

namespace rsprune {
namespace {

constexpr int kSmall = 16;  // counts below it are looked up 32 at a time
constexpr int kPlanes = 3;  // T[15] 2^16 takes 22 bits

// The three bytes of T[c] for c < kSmall, in separate tables for vpshufb.
struct Planes {
  alignas(32) uint8_t byte[kPlanes][32];
  Planes() {
    for (int c = 0; c < 32; ++c)
      for (int i = 0; i < kPlanes; ++i)
        byte[i][c] = static_cast<uint8_t>(entropy_table()[c % kSmall] >> (8 * i));
  }
};

// Four counts, one per 64-bit lane, and clears their counters.
__m256i take_counts(uint8_t* counter) {
  auto* at = reinterpret_cast<__m256i*>(counter);
  const __m256i counts = _mm256_sad_epu8(_mm256_load_si256(at), _mm256_setzero_si256());
  _mm256_store_si256(at, _mm256_setzero_si256());
  return counts;
}

// 16 counts, one per 16-bit lane. Their order does not matter, so shifting and merging is all it takes.
__m256i take_16_counts(uint8_t* counter) {
  const __m256i a = take_counts(counter), b = take_counts(counter + 32);
  const __m256i c = take_counts(counter + 64), d = take_counts(counter + 96);
  const __m256i low = _mm256_or_si256(a, _mm256_slli_epi64(b, 16));
  return _mm256_or_si256(low, _mm256_slli_epi64(_mm256_or_si256(c, _mm256_slli_epi64(d, 16)), 32));
}

// Zeroes the large counts and adds their terms to sum.
__m256i without_large(__m256i counts, uint64_t& sum) {
  const __m256i large = _mm256_cmpgt_epi16(counts, _mm256_set1_epi16(kSmall - 1));
  uint32_t bits = _mm256_movemask_epi8(large) & 0x55555555;
  if (!bits) return counts;
  alignas(32) uint16_t count[16];
  _mm256_store_si256(reinterpret_cast<__m256i*>(count), counts);
  for (; bits; bits &= bits - 1) sum += entropy_table()[count[__builtin_ctz(bits) / 2]];
  return _mm256_andnot_si256(large, counts);
}

uint64_t sum_of_counters(uint8_t* counter) {
  static const Planes planes;
  const __m256i zero = _mm256_setzero_si256();
  __m256i bytes[kPlanes] = {zero, zero, zero};
  uint64_t sum = 0;
  for (int i = 0; i < 8; ++i, counter += kCounters / 8) {
    const __m256i a = without_large(take_16_counts(counter), sum);
    const __m256i b = without_large(take_16_counts(counter + kCounters / 16), sum);
    const __m256i counts = _mm256_or_si256(a, _mm256_slli_epi16(b, 8));
    for (int p = 0; p < kPlanes; ++p) {
      const __m256i table = _mm256_load_si256(reinterpret_cast<const __m256i*>(planes.byte[p]));
      const __m256i term = _mm256_shuffle_epi8(table, counts);
      bytes[p] = _mm256_add_epi64(bytes[p], _mm256_sad_epu8(term, zero));
    }
  }
  const __m256i low = _mm256_add_epi64(bytes[0], _mm256_slli_epi64(bytes[1], 8));
  const __m256i all = _mm256_add_epi64(low, _mm256_slli_epi64(bytes[2], 16));
  alignas(32) uint64_t lane[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lane), all);
  return sum + lane[0] + lane[1] + lane[2] + lane[3];
}

}  // namespace

extern const EntropyKernel kEntropyAvx2 = {patch<sum_of_counters>, nullptr};

}  // namespace rsprune
