// Shannon entropy, in bits, of the 256-bin histogram of each patch of each band.
//
//   image [images, height, width, channels] uint8 or uint16
//   valid [images, height, width] uint8, or nullptr: pixels where it is 0 are not counted
//   lut   [lut_bands, 256 or 65536] uint8, or nullptr: value -> bin; required for uint16; lut_bands is 1 or
//   channels out   [images, ceil(height / patch), ceil(width / patch), channels] float32
//
// H = log2 n - (1/n) sum_b h_b log2 h_b over the n counted pixels, computed as (T[n] - sum_b T[h_b]) / (n
// 2^16) with T[c] = round(c log2 c 2^16). The sum is of integers, so every backend and thread count gives the
// same bits, and a constant patch gives exactly 0. T is exact for c = 0, 1, 2, so at most n / 3 terms are
// rounded, by 1/2 each: |error| <= (n / 6 + 1/2) / (n 2^16), below 1e-5 bits. A ragged last row or column of
// patches counts its own pixels only. NaN where no pixel is counted.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace rsprune {

enum class Pixel { u8, u16 };

struct EntropyShape {
  int64_t images, height, width;  // pixels
  int64_t channels;
  int64_t patch;  // side of a square patch, pixels
  int64_t lut_bands;
  RSPRUNE_HOST_DEVICE int64_t rows() const { return patches(height); }
  RSPRUNE_HOST_DEVICE int64_t cols() const { return patches(width); }
  // Written so that a patch of any size, which then holds the whole image, does not overflow.
  RSPRUNE_HOST_DEVICE int64_t patches(int64_t side) const { return side > 0 ? (side - 1) / patch + 1 : 0; }
};

constexpr double kEntropyScale = 65536.0;  // units of T per bit and pixel

void patch_entropy_cpu(const void* image, Pixel type, const uint8_t* valid, const uint8_t* lut, float* out,
                       EntropyShape shape);
void patch_entropy_cuda(const void* image, Pixel type, const uint8_t* valid, const uint8_t* lut, float* out,
                        EntropyShape shape, void* stream);

}  // namespace rsprune
