#include "entropy.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/entropy_kernel.h"

namespace rsprune {

uint64_t entropy_term(int64_t count) {
  if (count < 2) return 0;
  const double c = static_cast<double>(count);
  return static_cast<uint64_t>(std::llround(c * std::log2(c) * kEntropyScale));
}

const uint64_t* entropy_table() {
  static const std::vector<uint64_t> table = [] {
    std::vector<uint64_t> t(kTableSize);
    for (int64_t c = 0; c < kTableSize; ++c) t[c] = entropy_term(c);
    return t;
  }();
  return table.data();
}

namespace {

float bits(int64_t n, uint64_t sum) {
  if (n == 0) return std::numeric_limits<float>::quiet_NaN();
  const uint64_t all = n < kTableSize ? entropy_table()[n] : entropy_term(n);
  return static_cast<float>(static_cast<double>(all - sum) / (static_cast<double>(n) * kEntropyScale));
}

struct Scratch {
  AlignedBuffer<uint8_t> counts;
  std::vector<uint64_t> sum;
  std::vector<uint8_t> bins;    // a row of patches, mapped to bins
  std::vector<uint8_t> pixels;  // a patch with only its valid pixels
};

struct PatchEntropy {
  const void* image;
  Pixel type;
  const uint8_t* valid;
  const uint8_t* lut;
  float* out;
  EntropyShape shape;
  const EntropyKernel& kernel;

  Scratch make_scratch() const {
    const int64_t patch = std::min(shape.patch, std::max(shape.height, shape.width));
    const int64_t rows = std::min(patch, shape.height), cols = std::min(patch, shape.width);
    AlignedBuffer<uint8_t> counts(shape.channels * kScratchPerChannel);
    std::fill_n(counts.get(), shape.channels * kScratchPerChannel, uint8_t{0});
    return {std::move(counts), std::vector<uint64_t>(shape.channels),
            std::vector<uint8_t>(lut ? rows * shape.width * shape.channels : 0),
            std::vector<uint8_t>(valid ? rows * cols * shape.channels : 0)};
  }

  template <typename T>
  void map(const T* value, int64_t pixels, uint8_t* bin) const {
    constexpr int64_t kValues = int64_t{1} << (8 * sizeof(T));
    if (shape.lut_bands == 1) {
      for (int64_t i = 0; i < pixels * shape.channels; ++i) bin[i] = lut[value[i]];
      return;
    }
    for (int64_t i = 0; i < pixels; ++i)
      for (int64_t c = 0; c < shape.channels; ++c) *bin++ = lut[c * kValues + *value++];
  }

  // Copies the valid pixels of a patch together; returns how many there are.
  int64_t gather(const uint8_t* pixels, const uint8_t* mask, int64_t height, int64_t width,
                 uint8_t* to) const {
    const int64_t channels = shape.channels;
    int64_t n = 0;
    for (int64_t y = 0; y < height; ++y, pixels += shape.width * channels, mask += shape.width)
      for (int64_t x = 0; x < width; ++x) {
        std::copy_n(pixels + x * channels, channels, to + n * channels);
        n += mask[x] != 0;
      }
    return n;
  }

  void row_of_patches(int64_t n, int64_t row, Scratch& s) const {
    const int64_t channels = shape.channels, stride = shape.width * channels;
    const int64_t y = row * shape.patch, height = std::min(shape.patch, shape.height - y);
    const int64_t first = (n * shape.height + y) * shape.width;  // pixel
    const uint8_t* strip = static_cast<const uint8_t*>(image) + first * channels;
    if (lut) {
      if (type == Pixel::u16)
        map(static_cast<const uint16_t*>(image) + first * channels, height * shape.width, s.bins.data());
      else
        map(strip, height * shape.width, s.bins.data());
      strip = s.bins.data();
    }
    float* to = out + (n * shape.rows() + row) * shape.cols() * channels;
    for (int64_t x = 0; x < shape.width; x += shape.patch, to += channels) {
      const int64_t width = std::min(shape.patch, shape.width - x);
      int64_t counted = height * width;
      if (valid) {
        counted = gather(strip + x * channels, valid + first + x, height, width, s.pixels.data());
        kernel.patch(s.pixels.data(), counted * channels, 1, counted, channels, s.counts.get(), s.sum.data());
      } else {
        kernel.patch(strip + x * channels, stride, height, width, channels, s.counts.get(), s.sum.data());
      }
      for (int64_t c = 0; c < channels; ++c) to[c] = bits(counted, s.sum[c]);
    }
  }
};

}  // namespace

void patch_entropy_cpu(const void* image, Pixel type, const uint8_t* valid, const uint8_t* lut, float* out,
                       EntropyShape shape) {
  const PatchEntropy op{image, type, valid, lut, out, shape, entropy_kernel(isa())};
  const int64_t rows = shape.rows(), strips = shape.images * rows;
  if (strips == 0 || shape.width == 0 || shape.channels == 0) return;
  const int threads = static_cast<int>(std::min<int64_t>(omp_get_max_threads(), strips));
  std::vector<Scratch> scratch;  // allocated here: an exception must not leave a parallel region
  for (int t = 0; t < threads; ++t) scratch.push_back(op.make_scratch());
  entropy_table();

#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t i = 0; i < strips; ++i) op.row_of_patches(i / rows, i % rows, scratch[omp_get_thread_num()]);
}

}  // namespace rsprune
