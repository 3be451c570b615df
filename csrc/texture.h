// What the guards against noise and blur ask of an image: how differences of neighbouring pixels go together.
//
//   image [images, height, width, channels] uint8, uint16 or float32
//   valid [images, height, width] uint8, or nullptr: pixels where it is 0 take no part
//   autocorrelation, sharpness [images] float32
//
// autocorrelation: the 2 x 2 squares a b / c d of a 16 x 16 block have the sum of (b - a)(d - c) + (c - a)(d
// - b) over half the sum of the squares of the four differences: -1..1, and 1 where the block is constant.
// The image has the mean over bands and over the blocks of which at least half is valid, 1 without any.
// sharpness: mean square of the 4-neighbour Laplacian over that of the gradient, mean over bands; 0 for
// constant bands and for images less than 3 pixels wide or high. Sums are exact for integers, whatever the
// thread count and instruction set; real values are summed in float64.
#pragma once
#include <cstdint>

namespace rsprune {

enum class Value { u8, u16, f32 };

struct TextureShape {
  int64_t images, height, width, channels;
};

constexpr int kTextureBlock = 16;  // pixels

void texture_cpu(const void* image, Value type, const uint8_t* valid, float* autocorrelation,
                 float* sharpness, TextureShape shape);

// Valid pixels with every channel in bin 0 or 255.
//   bin [images, height, width, channels] uint8, valid as above  ->  count [images] int64
void saturated_cpu(const uint8_t* bin, const uint8_t* valid, int64_t* count, TextureShape shape);

}  // namespace rsprune
