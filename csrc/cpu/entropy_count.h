// Counting for the vector paths of the patch entropy. A histogram has eight one-byte counters per bin, side
// by side: neighbouring pixels use different ones, so that equal values do not wait for each other's store,
// and the eight are summed by one "sum of absolute differences" instruction. Internal linkage: see
// kmeans_tile.h.
#pragma once
#include "cpu/entropy_kernel.h"

namespace rsprune {
namespace {

constexpr int kWays = 8;
constexpr int kCounters = kBins * kWays;  // bytes
constexpr int kFull = 255;                // what a counter can hold
static_assert(kCounters + kBins * 4 <= kEntropyScratch);

inline void count_row(const uint8_t* pixel, int64_t step, int64_t width, uint8_t* counter) {
  for (; width >= kWays; width -= kWays, pixel += kWays * step) {
    uint64_t word;
    if (step == 1) __builtin_memcpy(&word, pixel, sizeof word);
#pragma GCC unroll 8
    for (int i = 0; i < kWays; ++i) {
      const uint64_t value = step == 1 ? word >> (8 * i) & 255 : pixel[i * step];
      ++counter[value * kWays + i];
    }
  }
  for (int i = 0; i < width; ++i) ++counter[pixel[i * step] * kWays + i];
}

// Moves the counters to 32-bit totals.
inline void flush(uint8_t* counter, uint32_t* total) {
  for (int b = 0; b < kBins; ++b)
    for (int way = 0; way < kWays; ++way) total[b] += counter[b * kWays + way];
  __builtin_memset(counter, 0, kCounters);
}

inline uint64_t sum_of_totals(uint32_t* total) {
  const uint64_t* table = entropy_table();
  uint64_t sum = 0;
  for (int b = 0; b < kBins; ++b) sum += total[b] < kTableSize ? table[total[b]] : entropy_term(total[b]);
  __builtin_memset(total, 0, kBins * sizeof *total);
  return sum;
}

// sum_of_counters(counter): the sum of T over the bins, whose counters it clears.
template <uint64_t (*sum_of_counters)(uint8_t*)>
uint64_t patch(const uint8_t* pixels, int64_t row_stride, int64_t step, int64_t height, int64_t width,
               uint8_t* scratch) {
  auto* total = reinterpret_cast<uint32_t*>(scratch + kCounters);
  constexpr int64_t kWidest = kFull * kWays;
  bool flushed = false;
  int64_t held = 0;  // at most this much is in any counter
  for (int64_t x = 0; x < width; x += kWidest) {
    const int64_t part = width - x < kWidest ? width - x : kWidest;
    const int64_t most = (part + kWays - 1) / kWays;
    for (int64_t y = 0; y < height; ++y) {
      if (held + most > kFull) {
        flush(scratch, total);
        flushed = true;
        held = 0;
      }
      count_row(pixels + y * row_stride + x * step, step, part, scratch);
      held += most;
    }
  }
  if (!flushed) return sum_of_counters(scratch);
  flush(scratch, total);
  return sum_of_totals(total);
}

}  // namespace
}  // namespace rsprune
