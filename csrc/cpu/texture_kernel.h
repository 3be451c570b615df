// What an instruction set provides for the texture statistics; texture.cpp drives it. Each entry does one
// image.
#pragma once
#include "cpu/isa.h"
#include "texture.h"

namespace rsprune {

struct TextureResult {
  double autocorrelation, sharpness;
};

constexpr int64_t kSaturatedPart = 1024;  // pixels

struct TextureKernel {
  // image [height, width, channels]; valid [height, width] or nullptr; scratch: texture_scratch(shape)
  // doubles
  TextureResult (*u8)(const uint8_t* image, const uint8_t* valid, const TextureShape& shape, double* scratch);
  TextureResult (*u16)(const uint16_t* image, const uint8_t* valid, const TextureShape& shape,
                       double* scratch);
  TextureResult (*f32)(const float* image, const uint8_t* valid, const TextureShape& shape, double* scratch);
  // scratch: (channels + 2) kSaturatedPart bytes
  int64_t (*saturated)(const uint8_t* bin, const uint8_t* valid, int64_t pixels, int64_t channels,
                       uint8_t* scratch);
};

// Values between rows: an odd number of cache lines, so that rows do not share all their cache sets.
inline int64_t texture_stride(int64_t span) { return (span + 31) / 32 * 32 + 16; }

inline int64_t texture_scratch(const TextureShape& shape) {
  const int64_t span = shape.width * shape.channels;
  constexpr int64_t kTotals = 6, kSums = 9, kRows = kTextureBlock + 2, kPast = 64;
  return kPast * shape.channels + (kTotals + kSums) * span + kRows * texture_stride(span);
}

extern const TextureKernel kTexturePortable, kTextureAvx2, kTextureAvx512;

const TextureKernel& texture_kernel(Isa isa);

}  // namespace rsprune
