// The texture statistics of a uint8 image without a mask, nearly every image there is, in 16-bit integers:
// bands apart, so that the products of neighbouring pixels can be summed in pairs. Internal linkage: see
// kmeans_tile.h.
//
// I is a register of 16-bit values: V, kPixels (a multiple of kTextureBlock), and what it can do.
#pragma once
#include "cpu/texture_image.h"

namespace rsprune {
namespace {

// Which pixels of a register take part, all bits or none of a value each.
template <typename I>
struct Masks {
  using V = typename I::V;
  V square;                    // of the squares of a block, named by their left column
  V ends;                      // first and last columns of a block, which only the squares on one side hold
  V inside, across, bendable;  // pixels of the image; with a right neighbour; with one on both sides
};

// 32-bit sums over a strip, for each pair of pixels.
template <typename I>
struct Sums {
  using V = typename I::V;
  V product, energy;      // of the squares of a block
  V across, down, curve;  // squared
};

// A strip of `rows` rows, one register wide.
//   row: in the first of them; `above`, `below`: whether there are rows before and after it
//   kEdge: whether some pixels lie outside the image or lack a neighbour
template <typename I, bool kEdge>
Sums<I> strip_sums(const uint8_t* row, int64_t stride, int64_t rows, bool above, bool below,
                   const Masks<I>& m) {
  using V = typename I::V;
  const auto square = [](V sum, V of) { return I::dot(sum, of, of); };
  const auto only = [](V of, V mask) { return kEdge ? I::both(of, mask) : of; };
  V here = I::load(row), right = I::load(row + 1), top = I::sub(right, here);
  V bend = I::sub(top, I::sub(here, I::load(row - 1))), up = I::zero();
  if (above) up = I::sub(here, I::load(row - stride));
  V top_in = I::both(top, m.square);
  V product = I::zero(), other = I::zero(), inner = I::zero(), once = square(I::zero(), top_in),
    across = I::zero();
  V down = I::zero(), gap = I::zero(), curve = I::zero();
  for (int64_t y = 0;; ++y) {
    across = square(across, only(top, m.across));
    inner = square(inner, top_in);
    if (y + 1 == rows && !below) break;
    row += stride;
    const V lower = I::load(row), left = only(I::sub(lower, here), m.inside);
    if (y > 0 || above) curve = square(curve, only(I::add(bend, I::sub(left, up)), m.bendable));
    if (y + 1 == rows) {
      gap = square(gap, left);
      break;
    }
    const V lower_right = I::load(row + 1), bottom = I::sub(lower_right, lower);
    down = square(down, left);
    once = square(once, I::both(left, m.ends));
    product = I::dot(product, top_in, bottom);
    other = I::dot(other, I::both(left, m.square), I::sub(lower_right, right));
    bend = I::sub(bottom, I::sub(lower, I::load(row - 1)));
    here = lower, right = lower_right, top = bottom, up = left, top_in = I::both(bottom, m.square);
  }
  once = square(once, top_in);
  // Two squares hold each difference, but for those counted in `once`.
  const V twice = I::add32(inner, down);
  return {I::add32(product, other), I::sub32(I::add32(twice, twice), once), across, I::add32(down, gap),
          curve};
}

template <typename I>
TextureResult texture_planes(const uint8_t* image, const uint8_t* valid, const TextureShape& s,
                             double* scratch) {
  using V = typename I::V;
  if (valid) return texture<float>(image, valid, s, scratch);
  constexpr int64_t kBlocks = I::kPixels / kTextureBlock;
  const int64_t height = s.height, width = s.width, bands = s.channels;
  constexpr int64_t kLanes = I::kPixels / 4;                // 64-bit ones
  auto* const total = reinterpret_cast<int64_t*>(scratch);  // [bands, 3, kLanes]: across, down, curve
  double* const ratio = scratch + 3 * kLanes * bands;       // [bands, kBlocks]
  auto* const planes =
      reinterpret_cast<uint8_t*>(ratio + kBlocks * bands) + I::kPixels;  // read past both ends
  for (int64_t i = 0; i < 3 * kLanes * bands; ++i) total[i] = 0;

  double correlations = 0;
  for (int64_t y = 0; y < height; y += kTextureBlock) {
    const int64_t rows = height - y < kTextureBlock ? height - y : kTextureBlock;
    const bool above = y > 0, below = y + rows < height;
    const int64_t plane = (rows + above + below) * width;
    split(image + (y - above) * width * bands, plane, bands, planes);
    double of_strip = 0;
    for (int64_t x = 0; x < width; x += I::kPixels) {
      const int64_t left = width - x;
      const V across = I::pixels(0, left - 1);
      const Masks<I> masks{I::both(I::squares(), across), I::either(I::ends(), I::pixels(left - 1, left)),
                           I::pixels(0, left), across, I::pixels(x == 0, left - 1)};
      for (int64_t c = 0; c < bands; ++c) {
        const uint8_t* row = planes + c * plane + above * width + x;
        const auto sums = x == 0 || left <= I::kPixels
                              ? strip_sums<I, true>(row, width, rows, above, below, masks)
                              : strip_sums<I, false>(row, width, rows, above, below, masks);
        int32_t product[kBlocks], energy[kBlocks];
        I::blocks(sums.product, product), I::blocks(sums.energy, energy);
        for (int64_t b = 0; b < kBlocks; ++b)
          ratio[c * kBlocks + b] = energy[b] > 0 ? 2.0 * product[b] / energy[b] : 1;
        int64_t* of_band = total + 3 * kLanes * c;
        I::add_to(of_band, sums.across), I::add_to(of_band + kLanes, sums.down);
        I::add_to(of_band + 2 * kLanes, sums.curve);
      }
      for (int64_t b = 0; b < kBlocks && b * kTextureBlock < left; ++b)
        for (int64_t c = 0; c < bands; ++c)
          of_strip += left - b * kTextureBlock == 1 ? 1 : ratio[c * kBlocks + b];  // one pixel has no square
    }
    correlations += of_strip;
  }

  double sharpness = 0;
  const auto mean = [total](int64_t which, int64_t count) {
    int64_t of = 0;
    for (int64_t i = 0; i < kLanes; ++i) of += total[which * kLanes + i];
    return static_cast<double>(of) / static_cast<double>(count > 1 ? count : 1);
  };
  if (height > 2 && width > 2)
    for (int64_t c = 0; c < bands; ++c) {
      const double slope = mean(3 * c, height * (width - 1)) + mean(3 * c + 1, (height - 1) * width);
      if (slope > 0) sharpness += mean(3 * c + 2, (height - 2) * (width - 2)) / slope;
    }
  const auto blocks = [](int64_t size) { return (size + kTextureBlock - 1) / kTextureBlock; };
  const int64_t used = blocks(height) * blocks(width) * bands;
  return {height > 1 && width > 1 ? correlations / static_cast<double>(used) : 1,
          sharpness / static_cast<double>(bands)};
}

}  // namespace
}  // namespace rsprune
