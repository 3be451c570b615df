// The texture statistics of one image, in a form that compilers vectorise: sums run down the columns of a
// strip of 16 rows, with the channels of a pixel side by side as they are stored, and only then across.
// Differences of uint8 are summed in float32: 16 squares of at most 4 * 255 stay below 2^24, so that is
// exact. Images without a mask, nearly all, have a loop of their own: it shares differences that a mask keeps
// apart. Internal linkage: see kmeans_tile.h.
#pragma once
#include "cpu/planes.h"
#include "cpu/texture_kernel.h"

namespace rsprune {
namespace {

// One row of values (0 where not valid), and their validity as 0 or 1; [width, channels].
template <typename Real>
struct Row {
  Real *value, *ok;
};

// Sums down the columns of a strip, [width, channels]. Of the 2 x 2 squares, each named by its upper left
// pixel, and of the squared differences across, down, and of the Laplacian; with a mask, how many of these
// there are. gap: differences down to the next strip, which no square holds.
template <typename Real>
struct Columns {
  Real *product, *energy, *gap, *across, *down, *curve, *n_across, *n_down, *n_curve;
};

// Without a mask
// ---------------------------------------------------------------------------------------------

#ifdef __AVX2__
constexpr int kRegister = 32;  // bytes
#else
constexpr int kRegister = 16;
#endif

template <typename Real, int kLanes>
struct Vector {
  typedef Real type __attribute__((vector_size(kLanes * sizeof(Real))));
};

// Columns [first, first + kLanes) of a strip, whose sums stay in registers; they have neighbours on both
// sides.
//   strip: its first row; `above`, `below`: whether there are rows before and after it
// energy is left without the differences down, which the next column has to add as well.
template <int kLanes, typename Real>
void add_columns(const Real* strip, int64_t stride, int64_t first, int64_t rows, bool above, bool below,
                 int64_t next, const Columns<Real>& sum) {
  using V = typename Vector<Real, kLanes>::type;
  const auto load = [](const Real* from, V& to) { __builtin_memcpy(&to, from, sizeof to); };
  const Real* row = strip + first;
  V here, right, left_of, lower, lower_right, lower_left, up{};
  load(row, here), load(row + next, right), load(row - next, left_of);
  V top = right - here, top_left = here - left_of;
  V product{}, across = top * top, down{}, gap{}, curve{}, energy = -across;
  if (above) load(row - stride, up), up = here - up;
  for (int64_t y = 1; y < rows; ++y) {
    row += stride;
    load(row, lower), load(row + next, lower_right), load(row - next, lower_left);
    const V bottom = lower_right - lower, left = lower - here;
    product += top * bottom + left * (lower_right - right);
    across += bottom * bottom;
    down += left * left;
    if (y > 1 || above) {
      const V laplacian = (top - top_left) + (left - up);
      curve += laplacian * laplacian;
    }
    here = lower, right = lower_right, top = bottom, top_left = lower - lower_left, up = left;
  }
  energy += across + across - top * top;
  if (below) {
    load(row + stride, lower);
    const V left = lower - here;
    gap = left * left;
    if (rows > 1 || above) {
      const V laplacian = (top - top_left) + (left - up);
      curve += laplacian * laplacian;
    }
  }
  const auto store = [first](const V& from, Real* to) { __builtin_memcpy(to + first, &from, sizeof from); };
  store(product, sum.product), store(energy, sum.energy), store(across, sum.across), store(down, sum.down);
  store(gap, sum.gap), store(curve, sum.curve);
}

// The first and the last pixel of the rows of a strip.
template <typename Real>
void add_edges(const Real* strip, int64_t stride, int64_t rows, bool below, int64_t span, int64_t next,
               const Columns<Real>& sum) {
  const int64_t last = span - next;
  for (int64_t y = 0; y < rows; ++y, strip += stride)
    for (int64_t c = 0; c < next; ++c) {
      const auto at = [&](int64_t i) { return strip[i]; };
      const bool inside = y + 1 < rows;
      if (inside || below) {
        const Real first_down = at(stride + c) - at(c), last_down = at(stride + last + c) - at(last + c);
        (inside ? sum.down : sum.gap)[c] += first_down * first_down;
        if (last) (inside ? sum.down : sum.gap)[last + c] += last_down * last_down;
      }
      if (!last) continue;  // one pixel wide
      const Real top = at(next + c) - at(c);
      sum.across[c] += top * top;
      sum.energy[c] += (y == 0 || !inside ? (rows == 1 ? 0 : 1) : 2) * top * top;
      if (inside) {
        const Real bottom = at(stride + next + c) - at(stride + c), left = at(stride + c) - at(c);
        sum.product[c] += top * bottom + left * (at(stride + next + c) - at(next + c));
      }
    }
}

//   image: first row of the strip; values: room for its rows and the two around it
template <typename Real, typename T>
void add_strip(const T* image, int64_t rows, bool above, bool below, int64_t span, int64_t next, Real* values,
               const Columns<Real>& sum) {
  constexpr int kLanes = kRegister / sizeof(Real);
  const int64_t stride = texture_stride(span);
  for (int64_t y = above ? -1 : 0; y < rows + below; ++y) {
    const T* __restrict__ from = image + y * span;
    Real* __restrict__ to = values + (y + 1) * stride;
#pragma omp simd
    for (int64_t i = 0; i < span; ++i) to[i] = static_cast<Real>(from[i]);
  }
  const Real* strip = values + stride;
  add_edges(strip, stride, rows, below, span, next, sum);
  const int64_t end = span - next;
  int64_t i = next;
  for (; i + kLanes <= end; i += kLanes) add_columns<kLanes>(strip, stride, i, rows, above, below, next, sum);
  if (i < end && end - kLanes >= next)  // the same again for some columns
    add_columns<kLanes>(strip, stride, end - kLanes, rows, above, below, next, sum);
  else
    for (; i < end; ++i) add_columns<1>(strip, stride, i, rows, above, below, next, sum);
#pragma omp simd
  for (i = 0; i < end; ++i) sum.energy[i] += sum.down[i] + sum.down[i + next];
#pragma omp simd
  for (i = 0; i < span; ++i) sum.down[i] += sum.gap[i];
}

// With a mask
// ------------------------------------------------------------------------------------------------

template <typename T, typename Real>
void load_masked_row(const T* image, const uint8_t* valid, int64_t y, const TextureShape& s,
                     const Row<Real>& row) {
  const T* from = image + y * s.width * s.channels;
  for (int64_t x = 0, i = 0; x < s.width; ++x)
    for (int64_t c = 0; c < s.channels; ++c, ++i) {
      row.ok[i] = valid[y * s.width + x] != 0;
      row.value[i] = row.ok[i] != 0 ? static_cast<Real>(from[i]) : Real{0};
    }
}

template <typename Real>
void add_masked_across(const Row<Real>& row, int64_t span, int64_t next, const Columns<Real>& sum) {
#pragma omp simd
  for (int64_t i = 0; i < span - next; ++i) {
    const Real both = row.ok[i] * row.ok[i + next], d = row.value[i + next] - row.value[i];
    sum.across[i] += both * d * d;
    sum.n_across[i] += both;
  }
}

template <typename Real>
void add_masked_down(const Row<Real>& here, const Row<Real>& below, int64_t span, const Columns<Real>& sum) {
#pragma omp simd
  for (int64_t i = 0; i < span; ++i) {
    const Real both = here.ok[i] * below.ok[i], d = below.value[i] - here.value[i];
    sum.down[i] += both * d * d;
    sum.n_down[i] += both;
  }
}

template <typename Real>
void add_masked_curve(const Row<Real>& above, const Row<Real>& here, const Row<Real>& below, int64_t span,
                      int64_t next, const Columns<Real>& sum) {
  const Real* v = here.value;
#pragma omp simd
  for (int64_t i = next; i < span - next; ++i) {
    const Real all = above.ok[i] * here.ok[i] * below.ok[i] * here.ok[i - next] * here.ok[i + next];
    const Real across = (v[i + next] - v[i]) - (v[i] - v[i - next]);
    const Real laplacian = across + ((below.value[i] - v[i]) - (v[i] - above.value[i]));
    sum.curve[i] += all * laplacian * laplacian;
    sum.n_curve[i] += all;
  }
}

template <typename Real>
void add_masked_squares(const Row<Real>& here, const Row<Real>& below, int64_t span, int64_t next,
                        const Columns<Real>& sum) {
  const Real *v = here.value, *w = below.value;
#pragma omp simd
  for (int64_t i = 0; i < span - next; ++i) {
    const Real all = here.ok[i] * here.ok[i + next] * below.ok[i] * below.ok[i + next];
    const Real top = v[i + next] - v[i], bottom = w[i + next] - w[i];
    const Real left = w[i] - v[i], right = w[i + next] - v[i + next];
    sum.product[i] += all * (top * bottom + left * right);
    sum.energy[i] += all * (top * top + bottom * bottom + left * left + right * right);
  }
}

// Both
// -------------------------------------------------------------------------------------------------------

template <typename Real>
void add_channels(const Real* column, int64_t span, int64_t channels, double* total) {
  if (channels == 3) {  // the usual case, in registers
    double a = 0, b = 0, c = 0;
    for (int64_t i = 0; i < span; i += 3) a += column[i], b += column[i + 1], c += column[i + 2];
    total[0] += a, total[1] += b, total[2] += c;
    return;
  }
  for (int64_t i = 0; i < span; i += channels)
    for (int64_t c = 0; c < channels; ++c) total[c] += column[i + c];
}

// Autocorrelation of a row of blocks [rows, width], added over blocks and bands; counts the blocks in use.
template <typename Real>
double block_correlations(const Columns<Real>& sum, const uint8_t* valid, int64_t rows, const TextureShape& s,
                          double* scratch, int64_t& used) {
  double *product = scratch, *energy = scratch + s.channels, result = 0;
  for (int64_t x = 0; x < s.width; x += kTextureBlock) {
    const int64_t width = s.width - x < kTextureBlock ? s.width - x : kTextureBlock;
    if (valid) {
      int64_t count = 0;
      for (int64_t y = 0; y < rows; ++y)
        for (int64_t i = 0; i < width; ++i) count += valid[y * s.width + x + i] != 0;
      if (2 * count < rows * width) continue;
    }
    ++used;
    for (int64_t c = 0; c < 2 * s.channels; ++c) scratch[c] = 0;
    // The last column of a block has no square of its own.
    add_channels(sum.product + x * s.channels, (width - 1) * s.channels, s.channels, product);
    add_channels(sum.energy + x * s.channels, (width - 1) * s.channels, s.channels, energy);
    for (int64_t c = 0; c < s.channels; ++c) result += energy[c] > 0 ? 2 * product[c] / energy[c] : 1;
  }
  return result;
}

template <typename Real, typename T>
TextureResult texture(const T* image, const uint8_t* valid, const TextureShape& s, double* scratch) {
  const int64_t height = s.height, next = s.channels, span = s.width * next;
  double* block = scratch;           // [2, channels]
  double* total = block + 2 * next;  // [6, width, channels]: the last six of Columns, over the whole image
  for (int64_t i = 0; i < 6 * span; ++i) total[i] = 0;
  Real* at = reinterpret_cast<Real*>(total + 6 * span);
  const auto take = [&] { return at += span, at - span; };
  Real* sums = at;
  const Columns<Real> sum{take(), take(), take(), take(), take(), take(), take(), take(), take()};
  Real* values = at;  // what follows is used by one of the two ways only
  Row<Real> above{take(), take()}, here{take(), take()}, below{take(), take()};

  double correlations = 0;
  int64_t used = 0;
  if (valid) load_masked_row(image, valid, 0, s, here);
  for (int64_t top = 0; top < height; top += kTextureBlock) {
    const int64_t rows = height - top < kTextureBlock ? height - top : kTextureBlock;
    for (int64_t i = 0; i < 9 * span; ++i) sums[i] = 0;
    if (!valid) add_strip(image + top * span, rows, top > 0, top + rows < height, span, next, values, sum);
    for (int64_t y = top; valid && y < top + rows; ++y) {
      add_masked_across(here, span, next, sum);
      if (y + 1 == height) break;
      load_masked_row(image, valid, y + 1, s, below);
      add_masked_down(here, below, span, sum);
      if (y > 0) add_masked_curve(above, here, below, span, next, sum);
      if (y + 1 < top + rows) add_masked_squares(here, below, span, next, sum);
      const Row<Real> free = above;
      above = here, here = below, below = free;
    }
    correlations += block_correlations(sum, valid ? valid + top * s.width : nullptr, rows, s, block, used);
#pragma omp simd
    for (int64_t i = 0; i < (valid ? 6 : 3) * span; ++i) total[i] += sum.across[i];
  }

  double sharpness = 0;
  const auto mean = [&](int64_t which, int64_t c, int64_t count) {
    double of = 0, counted = 0;
    for (int64_t i = c; i < span; i += next)
      of += total[which * span + i], counted += total[(which + 3) * span + i];
    if (!valid) counted = static_cast<double>(count);
    return of / (counted > 1 ? counted : 1);
  };
  if (height > 2 && s.width > 2)
    for (int64_t c = 0; c < next; ++c) {
      const double slope = mean(0, c, height * (s.width - 1)) + mean(1, c, (height - 1) * s.width);
      if (slope > 0) sharpness += mean(2, c, (height - 2) * (s.width - 2)) / slope;
    }
  const bool squares = height > 1 && s.width > 1 && used > 0;
  return {squares ? correlations / static_cast<double>(used * next) : 1,
          sharpness / static_cast<double>(next)};
}

// The pixels go in parts, whose counts are added up side by side, in bytes, for as long as these can hold
// them.
inline int64_t saturated(const uint8_t* bin, const uint8_t* valid, int64_t pixels, int64_t channels,
                         uint8_t* scratch) {
  constexpr int64_t kPart = kSaturatedPart, kMost = 255 * kPart;
  uint8_t *const counts = scratch, *const all = counts + kPart, *const planes = all + kPart;
  int64_t total = 0;
  for (int64_t start = 0; start < pixels; start += kMost) {
    const int64_t end = pixels - start < kMost ? pixels : start + kMost;
    __builtin_memset(counts, 0, kPart);
    for (int64_t first = start; first < end; first += kPart) {
      const int64_t part = end - first < kPart ? end - first : kPart;
      split(bin + first * channels, part, channels, planes);
      for (int64_t i = 0; i < part; ++i) all[i] = valid ? valid[first + i] != 0 : 1;
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t i = 0; i < part; ++i)
          all[i] &= static_cast<uint8_t>(planes[c * part + i] + 1) <= 1;  // 255 wraps to 0
      for (int64_t i = 0; i < part; ++i) counts[i] += all[i];
    }
    for (int64_t i = 0; i < kPart; ++i) total += counts[i];
  }
  return total;
}

}  // namespace
}  // namespace rsprune
