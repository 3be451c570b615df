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
  // Histograms of one patch, all channels at once, and their sums of T.
  //   pixels [height, width, channels] uint8, rows row_stride bytes apart
  //   -> sum [channels]: sum over bins of T[count]
  // scratch: kScratchPerChannel bytes a channel, on a cache line boundary, all zero on entry and on return.
  void (*patch)(const uint8_t* pixels, int64_t row_stride, int64_t height, int64_t width, int64_t channels,
                uint8_t* scratch, uint64_t* sum);
};

constexpr int64_t kScratchPerChannel = 16 * kBins;

extern const EntropyKernel kEntropyPortable, kEntropyAvx2, kEntropyAvx512;

const EntropyKernel& entropy_kernel(Isa isa);

}  // namespace rsprune
