#include "cpu/entropy_kernel.h"

namespace rsprune {
namespace {

void patch(const uint8_t* pixels, int64_t row_stride, int64_t height, int64_t width, int64_t channels,
           uint8_t* scratch, uint64_t* sum) {
  auto* counter = reinterpret_cast<uint32_t*>(scratch);
  // Four histograms in turn, so that equal neighbours do not wait for each other's count.
  for (int64_t y = 0; y < height; ++y) {
    const uint8_t* pixel = pixels + y * row_stride;
    for (int64_t x = 0; x < width; ++x)
      for (int64_t c = 0; c < channels; ++c) ++counter[(c * 4 + x % 4) * kBins + *pixel++];
  }
  const uint64_t* table = entropy_table();
  for (int64_t c = 0; c < channels; ++c) {
    uint32_t* histogram = counter + c * 4 * kBins;
    uint64_t total = 0;
    for (int b = 0; b < kBins; ++b) {
      const int64_t count = static_cast<int64_t>(histogram[b]) + histogram[b + kBins] +
                            histogram[b + 2 * kBins] + histogram[b + 3 * kBins];
      total += count < kTableSize ? table[count] : entropy_term(count);
    }
    for (int b = 0; b < 4 * kBins; ++b) histogram[b] = 0;
    sum[c] = total;
  }
}

}  // namespace

const EntropyKernel kEntropyPortable = {patch};

}  // namespace rsprune
