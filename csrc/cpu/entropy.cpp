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
  std::vector<uint8_t> planes;  // a row of patches, mapped to bins, band after band
  std::vector<uint8_t> pixels;  // the valid pixels of a patch of one band
};

struct PatchEntropy {
  const void* image;
  Pixel type;
  const uint8_t* valid;
  const uint8_t* lut;
  float* out;
  EntropyShape shape;
  const EntropyKernel& kernel;

  bool apart() const { return lut || (kernel.split && shape.channels > 1); }  // whether bands are, in Scratch

  Scratch make_scratch() const {
    const int64_t rows = std::min(shape.patch, shape.height), cols = std::min(shape.patch, shape.width);
    AlignedBuffer<uint8_t> counts(kEntropyScratch);
    std::fill_n(counts.get(), kEntropyScratch, uint8_t{0});
    return {std::move(counts), std::vector<uint8_t>(apart() ? rows * shape.width * shape.channels : 0),
            std::vector<uint8_t>(valid ? rows * cols : 0)};
  }

  // value [count, channels] -> bin [channels, count]
  template <typename T>
  void map(const T* value, int64_t count, uint8_t* bin) const {
    constexpr int64_t kValues = int64_t{1} << (8 * sizeof(T));
    for (int64_t c = 0; c < shape.channels; ++c, bin += count) {
      const uint8_t* table = lut + (shape.lut_bands == 1 ? 0 : c * kValues);
      for (int64_t i = 0; i < count; ++i) bin[i] = table[value[i * shape.channels + c]];
    }
  }

  // Copies the valid pixels of a patch of one band together; returns how many there are.
  int64_t gather(const uint8_t* pixels, int64_t step, const uint8_t* mask, int64_t height, int64_t width,
                 uint8_t* to) const {
    int64_t n = 0;
    for (int64_t y = 0; y < height; ++y, pixels += shape.width * step, mask += shape.width)
      for (int64_t x = 0; x < width; ++x) {
        to[n] = pixels[x * step];
        n += mask[x] != 0;
      }
    return n;
  }

  void row_of_patches(int64_t n, int64_t row, Scratch& s) const {
    const int64_t y = row * shape.patch, height = std::min(shape.patch, shape.height - y);
    const int64_t first = (n * shape.height + y) * shape.width, count = height * shape.width;  // pixels
    const uint8_t* strip = static_cast<const uint8_t*>(image) + first * shape.channels;
    int64_t step = shape.channels, band = 1;  // bytes between pixels, and between bands
    if (apart()) {
      uint8_t* planes = s.planes.data();
      if (lut && type == Pixel::u16)
        map(static_cast<const uint16_t*>(image) + first * shape.channels, count, planes);
      else if (lut)
        map(strip, count, planes);
      else
        kernel.split(strip, count, shape.channels, planes);
      strip = planes, step = 1, band = count;
    }
    float* to = out + (n * shape.rows() + row) * shape.cols() * shape.channels;
    for (int64_t x = 0; x < shape.width; x += shape.patch)
      for (int64_t c = 0; c < shape.channels; ++c) {
        const int64_t width = std::min(shape.patch, shape.width - x);
        const uint8_t* pixels = strip + c * band + x * step;
        int64_t counted = height * width;
        uint64_t sum;
        if (valid) {
          counted = gather(pixels, step, valid + first + x, height, width, s.pixels.data());
          sum = kernel.patch(s.pixels.data(), counted, 1, 1, counted, s.counts.get());
        } else {
          sum = kernel.patch(pixels, shape.width * step, step, height, width, s.counts.get());
        }
        *to++ = bits(counted, sum);
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

  // A strip of small patches takes a microsecond: several at a time, or threads wait for each other's turn
  // and write to the same cache lines. As few as leave all threads busy to the end.
  const auto turn = static_cast<int>(std::clamp<int64_t>(strips / (16 * threads), 1, 16));
#pragma omp parallel for schedule(dynamic, turn) num_threads(threads)
  for (int64_t i = 0; i < strips; ++i) op.row_of_patches(i / rows, i % rows, scratch[omp_get_thread_num()]);
}

}  // namespace rsprune
