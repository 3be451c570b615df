// What an instruction set provides for the patch entropy; entropy.cpp drives it.
#pragma once
#include <cstdint>

#include "cpu/isa.h"

namespace rsprune {

constexpr int kBins = 256;
constexpr int64_t kTableSize = 65537;

// T[c] = round(c log2 c 2^16) for c < kTableSize (see entropy.h).
const uint64_t* entropy_table();
uint64_t entropy_term(int64_t count);  // T[count], beyond the table as well

struct EntropyKernel {
  // The sum of T over the bins of one patch of one band: pixels [height, width], step bytes apart, in rows
  // row_stride bytes apart.
  // scratch: kEntropyScratch bytes on a cache line boundary, zero at first and then left to this function.
  uint64_t (*patch)(const uint8_t* pixels, int64_t row_stride, int64_t step, int64_t height, int64_t width,
                    uint8_t* scratch);
  // pixels [count, channels] -> planes [channels, count]; null where `patch` takes bands that are not apart
  // just as well, else its step is always 1.
  void (*split)(const uint8_t* pixels, int64_t count, int64_t channels, uint8_t* planes);
};

constexpr int64_t kEntropyScratch = 46 * kBins;

extern const EntropyKernel kEntropyPortable, kEntropyAvx2, kEntropyAvx512;

const EntropyKernel& entropy_kernel(Isa isa);

}  // namespace rsprune
