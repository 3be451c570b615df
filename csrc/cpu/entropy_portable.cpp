#include "cpu/entropy_kernel.h"

namespace rsprune {
namespace {

uint64_t patch(const uint8_t* pixels, int64_t row_stride, int64_t step, int64_t height, int64_t width,
               uint8_t* scratch) {
  auto* histogram = reinterpret_cast<uint32_t*>(scratch);
  // Four histograms in turn, so that equal neighbours do not wait for each other's count.
  for (int64_t y = 0; y < height; ++y, pixels += row_stride)
    for (int64_t x = 0; x < width; ++x) ++histogram[x % 4 * kBins + pixels[x * step]];
  const uint64_t* table = entropy_table();
  uint64_t sum = 0;
  for (int b = 0; b < kBins; ++b) {
    const int64_t count = static_cast<int64_t>(histogram[b]) + histogram[b + kBins] +
                          histogram[b + 2 * kBins] + histogram[b + 3 * kBins];
    sum += count < kTableSize ? table[count] : entropy_term(count);
  }
  for (int b = 0; b < 4 * kBins; ++b) histogram[b] = 0;
  return sum;
}

}  // namespace

const EntropyKernel kEntropyPortable = {patch, nullptr};

}  // namespace rsprune
