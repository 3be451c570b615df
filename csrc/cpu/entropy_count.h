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
static_assert(kCounters + kBins * 4 <= kScratchPerChannel);

// counter [channels][kBins][kWays]
template <int kChannels>
void count_row(const uint8_t* pixel, int64_t width, uint8_t* counter) {
  for (; width >= kWays; width -= kWays, pixel += kWays * kChannels) {
    uint64_t word[kChannels];
    __builtin_memcpy(word, pixel, sizeof word);
#pragma GCC unroll 32
    for (int i = 0; i < kWays * kChannels; ++i) {
      const uint8_t value = static_cast<uint8_t>(word[i / 8] >> (i % 8 * 8));
      ++counter[i % kChannels * kCounters + value * kWays + i / kChannels];
    }
  }
  for (int i = 0; i < width * kChannels; ++i)
    ++counter[i % kChannels * kCounters + pixel[i] * kWays + i / kChannels];
}

inline void count_row(const uint8_t* pixel, int64_t width, int64_t channels, uint8_t* counter) {
  switch (channels) {
    case 1:
      return count_row<1>(pixel, width, counter);
    case 3:
      return count_row<3>(pixel, width, counter);
    case 4:
      return count_row<4>(pixel, width, counter);
  }
  for (int64_t x = 0; x < width; ++x)
    for (int64_t c = 0; c < channels; ++c) ++counter[c * kCounters + *pixel++ * kWays + x % kWays];
}

// Moves the counters of one channel to its 32-bit totals.
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

// sum_of_counters(counter): the sum of T over the bins of one channel, whose counters it clears.
template <uint64_t (*sum_of_counters)(uint8_t*)>
void patch(const uint8_t* pixels, int64_t row_stride, int64_t height, int64_t width, int64_t channels,
           uint8_t* scratch, uint64_t* sum) {
  uint8_t* counter = scratch;
  auto* total = reinterpret_cast<uint32_t*>(scratch + channels * kCounters);
  constexpr int64_t kWidest = kFull * kWays;
  bool flushed = false;
  int64_t held = 0;  // at most this much is in any counter
  for (int64_t x = 0; x < width; x += kWidest) {
    const int64_t part = width - x < kWidest ? width - x : kWidest;
    const int64_t most = (part + kWays - 1) / kWays;
    for (int64_t y = 0; y < height; ++y) {
      if (held + most > kFull) {
        for (int64_t c = 0; c < channels; ++c) flush(counter + c * kCounters, total + c * kBins);
        flushed = true;
        held = 0;
      }
      count_row(pixels + y * row_stride + x * channels, part, channels, counter);
      held += most;
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    if (flushed) {
      flush(counter + c * kCounters, total + c * kBins);
      sum[c] = sum_of_totals(total + c * kBins);
    } else {
      sum[c] = sum_of_counters(counter + c * kCounters);
    }
  }
}

}  // namespace
}  // namespace rsprune
