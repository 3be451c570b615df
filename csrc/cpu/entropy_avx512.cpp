// Small patches are counted without a counter in memory: for eight values at a time, a table look-up turns
// every pixel into a byte with one of eight bits set, or none; full adders add these bytes up bit by bit; and
// the bits of the sums are gathered by transposing and counting. The fewer values lie between the smallest
// and the largest of a patch, the less there is to do: real patches of 32 pixels hold about 60.
#include <immintrin.h>

#include "cpu/entropy_count.h"
#include "cpu/planes.h"

namespace rsprune {
namespace {

constexpr int kSmall = 128;  // counts below it are looked up 64 at a time
constexpr int kWord = 64;    // pixels in a register
// Pixels of a patch, and values between its extremes, from which on counters in memory are faster.
constexpr int64_t kMany = 8192;
constexpr int kWide = 192;
constexpr int kBlock = 32;  // values that are counted in one go: 4 groups of 8

struct alignas(64) Lanes {
  uint8_t byte[kWord];
};

template <typename F>
constexpr Lanes lanes(F f) {
  Lanes made{};
  for (int i = 0; i < kWord; ++i) made.byte[i] = static_cast<uint8_t>(f(i));
  return made;
}

// Value in a block -> its bit, for each group of 8.
constexpr Lanes kGroup[4] = {lanes([](int v) { return v / 8 == 0 ? 1 << v % 8 : 0; }),
                             lanes([](int v) { return v / 8 == 1 ? 1 << v % 8 : 0; }),
                             lanes([](int v) { return v / 8 == 2 ? 1 << v % 8 : 0; }),
                             lanes([](int v) { return v / 8 == 3 ? 1 << v % 8 : 0; })};
constexpr Lanes kTransposed = lanes([](int i) { return i % 8 * 8 + i / 8; });  // 8 x 8 bytes

__m512i load(const Lanes& from) { return _mm512_load_si512(from.byte); }

// The four bytes of T[c] for c < kSmall, in separate tables for vpermi2b.
struct Planes {
  alignas(64) uint8_t byte[4][kSmall];
  Planes() {
    for (int c = 0; c < kSmall; ++c)
      for (int i = 0; i < 4; ++i) byte[i][c] = static_cast<uint8_t>(entropy_table()[c] >> (8 * i));
  }
};

const Planes& planes() {
  static const Planes all;
  return all;
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

// Sums of T, of which the bytes are summed apart.
struct Terms {
  const Planes& tables;
  __m512i bytes[4] = {};
  uint64_t large = 0;

  // 64 counts, one per 16-bit lane
  void add(__m512i a, __m512i b) {
    a = without_large(a, large), b = without_large(b, large);
    const __m512i counts = _mm512_or_si512(a, _mm512_slli_epi16(b, 8));
    for (int p = 0; p < 4; ++p) {
      const uint8_t* table = tables.byte[p];
      const __m512i term =
          _mm512_permutex2var_epi8(_mm512_load_si512(table), counts, _mm512_load_si512(table + kWord));
      bytes[p] = _mm512_add_epi64(bytes[p], _mm512_sad_epu8(term, _mm512_setzero_si512()));
    }
  }

  uint64_t sum() const {
    const __m512i low = _mm512_add_epi64(bytes[0], _mm512_slli_epi64(bytes[1], 8));
    const __m512i high = _mm512_add_epi64(bytes[2], _mm512_slli_epi64(bytes[3], 8));
    return large + _mm512_reduce_add_epi64(_mm512_add_epi64(low, _mm512_slli_epi64(high, 16)));
  }
};

// Four times eight counts, one per 64-bit lane, to one per 16-bit lane. Their order does not matter.
__m512i merged(const __m512i (&count)[4]) {
  const __m512i low = _mm512_or_si512(count[0], _mm512_slli_epi64(count[1], 16));
  const __m512i high = _mm512_or_si512(count[2], _mm512_slli_epi64(count[3], 16));
  return _mm512_or_si512(low, _mm512_slli_epi64(high, 32));
}

// With counters
// ------------------------------------------------------------------------------------------------

// 32 counts, and clears their counters.
__m512i take_32_counts(uint8_t* counter) {
  const __m512i zero = _mm512_setzero_si512();
  __m512i count[4];
  for (int i = 0; i < 4; ++i, counter += 64) {
    count[i] = _mm512_sad_epu8(_mm512_load_si512(counter), zero);
    _mm512_store_si512(counter, zero);
  }
  return merged(count);
}

uint64_t sum_of_counters(uint8_t* counter) {
  Terms terms{planes()};
  for (int i = 0; i < 4; ++i, counter += kCounters / 4)
    terms.add(take_32_counts(counter), take_32_counts(counter + kCounters / 8));
  return terms.sum();
}

// Without
// -------------------------------------------------------------------------------------------------------

// How often each of 8 bits is set in `word`, for each 64-bit lane apart: byte j of it is for bit j.
template <int kWords>
__attribute__((always_inline)) inline __m512i bit_counts(const __m512i (&word)[kWords]) {
  __m512i sum = word[0], carry[kWords / 2 + 1];
  int carries = 0;
#pragma GCC unroll 16
  for (int i = 1; i < kWords; i += 2) {
    const __m512i a = word[i], b = i + 1 < kWords ? word[i + 1] : _mm512_setzero_si512();
    carry[carries++] = _mm512_ternarylogic_epi64(sum, a, b, 0xe8);
    sum = _mm512_ternarylogic_epi64(sum, a, b, 0x96);
  }
  const __m512i identity = _mm512_set1_epi64(0x8040201008040201);
  const __m512i counts = _mm512_popcnt_epi8(_mm512_gf2p8affine_epi64_epi8(identity, sum, 0));
  if constexpr (kWords == 1) {
    return counts;
  } else {
    __m512i next[kWords / 2];
    for (int i = 0; i < kWords / 2; ++i) next[i] = carry[i];
    const __m512i above = bit_counts(next);
    return _mm512_add_epi8(counts, _mm512_add_epi8(above, above));
  }
}

// Adds to count how often each value of `groups` groups of 8, from `base` on, is among 64 kWords pixels.
template <int kWords>
__attribute__((always_inline)) inline void count_groups(const uint8_t* pixel, int base, int groups,
                                                        __m512i (&count)[4]) {
  __m512i value[kWords], bit[kWords];
  for (int i = 0; i < kWords; ++i)  // what is not in the block becomes 63, which has no bit
    value[i] = _mm512_min_epu8(
        _mm512_sub_epi8(_mm512_load_si512(pixel + i * kWord), _mm512_set1_epi8(static_cast<char>(base))),
        _mm512_set1_epi8(kWord - 1));
  const __m512i transposed = load(kTransposed);
  for (int g = 0; g < groups; ++g) {
    const __m512i table = load(kGroup[g]);
    for (int i = 0; i < kWords; ++i) bit[i] = _mm512_permutexvar_epi8(value[i], table);
    const __m512i bytes = _mm512_permutexvar_epi8(transposed, bit_counts(bit));
    count[g] = _mm512_add_epi64(count[g], _mm512_sad_epu8(bytes, _mm512_setzero_si512()));
  }
}

// How often each of the values base .. min(last, base + 31) is among the pixels: of base in the first lane.
__m512i count_block(const uint8_t* pixel, int64_t words, int base, int last) {
  __m512i count[4] = {};
  const int groups = base + kBlock <= last ? 4 : (last - base + 8) / 8;
  for (; words >= 16; words -= 16, pixel += 16 * kWord) count_groups<16>(pixel, base, groups, count);
  for (; words > 0; words -= 4, pixel += 4 * kWord) count_groups<4>(pixel, base, groups, count);
  return merged(count);
}

uint8_t* put(uint8_t* to, __m512i pixels) {
  _mm512_storeu_si512(to, pixels);
  return to + kWord;
}

// Two rows of 32 pixels, or four of 16.
__m512i pair(const uint8_t* row, int64_t stride) {
  const __m512i first = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row)));
  return _mm512_inserti64x4(first, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + stride)), 1);
}

__m512i four(const uint8_t* row, int64_t stride) {
  const auto at = [&](int64_t y) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + y * stride));
  };
  const __m512i first = _mm512_inserti32x4(_mm512_castsi128_si512(at(0)), at(1), 1);
  return _mm512_inserti32x4(_mm512_inserti32x4(first, at(2), 2), at(3), 3);
}

int smallest(__m512i bytes) {
  const __m256i half = _mm256_min_epu8(_mm512_castsi512_si256(bytes), _mm512_extracti64x4_epi64(bytes, 1));
  const __m128i last = _mm_min_epu8(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  const __m128i words = _mm_min_epu8(last, _mm_srli_epi16(last, 8));
  return _mm_extract_epi8(_mm_minpos_epu16(_mm_and_si128(words, _mm_set1_epi16(255))), 0);
}

uint64_t small_patch(const uint8_t* pixels, int64_t row_stride, int64_t step, int64_t height, int64_t width,
                     uint8_t* scratch) {
  if (height * width >= kMany)
    return patch<sum_of_counters>(pixels, row_stride, step, height, width, scratch);
  uint8_t* const packed = scratch + kCounters + kBins * 4;
  uint8_t* end = packed;
  if (width == 16 || width == 32) {  // the usual ones: several rows in a register
    for (const int64_t rows = kWord / width; height >= rows; height -= rows, pixels += rows * row_stride)
      end = put(end, width == 32 ? pair(pixels, row_stride) : four(pixels, row_stride));
  }
  for (; height > 0; --height, pixels += row_stride)
    for (int64_t x = 0; x < width; x += kWord) {
      const int64_t part = width - x < kWord ? width - x : kWord;
      put(end, _mm512_maskz_loadu_epi8(_cvtu64_mask64(~0ull >> (kWord - part)), pixels + x));
      end += part;
    }
  if (end == packed) return 0;
  const int64_t words = (end - packed + 4 * kWord - 1) / (4 * kWord) * 4;
  const int64_t padding = packed + words * kWord - end;
  if (padding) __builtin_memset(end, packed[0], padding);
  __m512i low = _mm512_load_si512(packed), high = low;
  for (int64_t i = 1; i < words; ++i) {
    const __m512i word = _mm512_load_si512(packed + i * kWord);
    low = _mm512_min_epu8(low, word), high = _mm512_max_epu8(high, word);
  }
  const int first = smallest(low), last = kBins - 1 - smallest(_mm512_xor_si512(high, _mm512_set1_epi8(-1)));
  if (last - first >= kWide) return patch<sum_of_counters>(packed, 0, 1, 1, end - packed, scratch);
  if (padding) __builtin_memset(end, first, padding);
  // The first count is that of the padding, too.
  __m512i extra = _mm512_zextsi128_si512(_mm_cvtsi64_si128(padding));
  Terms terms{planes()};
  for (int base = first; base <= last; base += 2 * kBlock) {
    terms.add(
        _mm512_sub_epi16(count_block(packed, words, base, last), extra),
        base + kBlock <= last ? count_block(packed, words, base + kBlock, last) : _mm512_setzero_si512());
    extra = _mm512_setzero_si512();
  }
  return terms.sum();
}

}  // namespace

extern const EntropyKernel kEntropyAvx512 = {small_patch, split};

}  // namespace rsprune
