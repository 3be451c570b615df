#include "cpu/kmeans_screen.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace rsprune {
namespace {

constexpr int64_t kChunk = 1536;  // centres scored at a time: a whole number of panels in every kernel
constexpr int64_t kSlab = 128;    // steps of a panel at a time, so that the slab stays in L1
constexpr int64_t kBlockFloats = 1 << 17;  // packed points and scores of a block: half of a 1 MB L2
constexpr int64_t kMaxRows = 192;
constexpr int64_t kAhead = 4;  // rows between fetching one and packing it
constexpr float kNone = -std::numeric_limits<float>::infinity();

// Largest float32 not above best - margin.
float threshold(const Screened& row) { return std::nextafterf(row.best - row.margin, kNone); }

// Drops candidates that a better score has ruled out since they were found.
void prune(Screened& row, int32_t* index, float* score) {
  const float limit = threshold(row);
  int kept = 0;
  for (int i = 0; i < row.found; ++i)
    if (score[i] >= limit) {
      index[kept] = index[i];
      score[kept++] = score[i];
    }
  row.found = kept;
}

}  // namespace

Screen::Screen(const void* x, Float type, const CenterRows& centers, const float* origin, AssignShape s,
               const AssignKernel& kernel, int threads)
    : x_(x),
      type_(type),
      shape_(s),
      kernel_(kernel),
      centers_(centers, origin, kernel),
      norms_(centers_.padded_clusters()),
      slacks_(centers_.padded_clusters()) {
  set_bounds();
  // An odd number of cache lines: rows of a tile never share all their cache sets.
  stride_ = (centers_.steps + 15) / 16 * 16;
  if (stride_ / 16 % 2 == 0) stride_ += 16;
  score_stride_ = (std::min(centers_.padded_clusters(), kChunk) + 15) / 16 * 16 + 16;
  const int64_t share = (shape_.points + threads - 1) / threads;
  const int64_t fit = std::min({kBlockFloats / (stride_ + score_stride_), kMaxRows, share});
  block_ = std::max<int64_t>((fit + kernel.rows - 1) / kernel.rows, 1) * kernel.rows;
}

ScreenScratch Screen::make_scratch() const {
  return {FloatBuffer(block_ * stride_),
          FloatBuffer(block_ * score_stride_),
          FloatBuffer(centers_.dim),
          std::vector<Screened>(block_),
          AlignedBuffer<int32_t>(block_ * kCapacity),
          FloatBuffer(block_ * kCapacity)};
}

void Screen::run(const int64_t* point, int64_t count, ScreenScratch& s) const {
  pack(point, count, s);
  const int64_t padded = centers_.padded_clusters();
  for (int64_t c = 0; c < padded; c += kChunk) {
    const int64_t width = std::min(kChunk, padded - c);
    score(c, width, count, s);
    collect(c, width, count, s);
  }
}

const char* Screen::at(int64_t point) const { return static_cast<const char*>(x_) + point * row_bytes(); }

void Screen::prefetch(int64_t point) const {
  for (int64_t i = 0; i < row_bytes(); i += 64) __builtin_prefetch(at(point) + i);
}

void Screen::load(int64_t point, float* row) const {
  kernel_.to_float(at(point), type_, shape_.dim, row);
  std::fill(row + shape_.dim, row + centers_.dim, 0.0f);
}

// The largest difference between a computed score and the true one: rounding x and c in storage
// (Cauchy-Schwarz), the accumulation, the rounded bias, and underflow. Standard bound: a sum whose terms are
// each rounded at most n times is off by at most n u / (1 - n u) of the sum of magnitudes, which
// Cauchy-Schwarz bounds by |x| |c| + |c|^2 / 2. A term is rounded as a product, once for each further
// dimension of its slab, and once for each slab that is added. The bias is rounded, and so are the sum of
// score and bound, and the bound itself: 2^-22 of the magnitude, and a thousandth of the bound, are more than
// that takes.
void Screen::set_bounds() {
  const Centers& c = centers_;
  const int64_t slabs = (c.steps + kSlab - 1) / kSlab;
  const int64_t roundings = std::min(c.dim, kSlab * kernel_.step) + slabs + 2;
  const double n = static_cast<double>(roundings) * kernel_.unit;
  rounding_ = n < 0.5 ? n / (1 - n) + 0x1p-22 : std::numeric_limits<double>::infinity();
  std::fill_n(norms_.get(), c.padded_clusters(), 0.0f);
  std::fill_n(slacks_.get(), c.padded_clusters(), 0.0f);
  for (int64_t k = 0; k < c.clusters; ++k) {
    norm_ = std::max(norm_, c.norms[k]);
    half_ = std::max(half_, c.halves[k]);
  }
  for (int64_t k = 0; k < c.clusters; ++k)  // not of tiny centres, of which underflow may leave nothing
    if (c.norms[k] > 0x1p-20 * norm_) relative_ = std::max(relative_, c.residuals[k] / c.norms[k]);
  for (int64_t k = 0; k < c.clusters; ++k) {
    rest_ = std::max(rest_, c.residuals[k] - relative_ * c.norms[k]);
    norms_.get()[k] = static_cast<float>(c.norms[k]);
    slacks_.get()[k] = static_cast<float>(1.001 * rounding_ * c.halves[k]);
  }
}

// For a point of that packed norm and packing residual.
Screened Screen::bounds(double norm, double residual) const {
  const double slope = norm * (rounding_ + relative_) + residual * (1 + relative_);
  const double underflow = 0x1p-124 * static_cast<double>(centers_.dim + 2) * (1 + norm + norm_);
  const double margin = 2.002 * ((norm + residual) * rest_ + underflow);
  // false for NaN
  const bool bounded =
      norm * norm_ + half_ < 1e37 && 1.001 * slope * norm_ + rounding_ * half_ < 1e37 && margin < 1e37;
  return {static_cast<float>(1.001 * slope), static_cast<float>(1.001 * margin), kNone, bounded ? 0 : -1};
}

void Screen::pack(const int64_t* point, int64_t count, ScreenScratch& s) const {
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) prefetch(point[i + kAhead]);
    float sums[2];
    load(point[i], s.row.get());
    kernel_.pack(s.row.get(), centers_.origin.data(), centers_.dim, s.points.get() + i * stride_, sums);
    const double norm = norm_above(sums[0], centers_.dim);
    double residual = norm_above(sums[1], centers_.dim);
    residual += 0x1p-23 * (norm + residual);  // the float32 subtraction of the origin
    s.rows[i] = bounds(norm, residual);
  }
  const int64_t padded = (count + kernel_.rows - 1) / kernel_.rows * kernel_.rows;
  std::fill(s.points.get() + count * stride_, s.points.get() + padded * stride_, 0.0f);
}

void Screen::score(int64_t first_center, int64_t width, int64_t count, ScreenScratch& s) const {
  const int64_t groups = (count + kernel_.rows - 1) / kernel_.rows;
  const int64_t panel_width = kernel_.lanes * kernel_.vectors;
  for (int64_t c = 0; c < width; c += panel_width) {
    const int64_t vectors = std::min<int64_t>((width - c) / kernel_.lanes, kernel_.vectors);
    const float* panel = centers_.panel(first_center + c);
    for (int64_t step = 0; step < centers_.steps; step += kSlab)
      kernel_.score(s.points.get() + step, stride_, groups, panel + step * vectors * kernel_.lanes,
                    static_cast<int>(vectors), std::min(kSlab, centers_.steps - step),
                    step ? nullptr : centers_.bias.get() + first_center + c, s.scores.get() + c,
                    score_stride_);
  }
}

void Screen::collect(int64_t first_center, int64_t width, int64_t count, ScreenScratch& s) const {
  for (int64_t i = 0; i < count; ++i) {
    Screened& row = s.rows[i];
    if (row.found < 0) continue;
    const float* scores = s.scores.get() + i * score_stride_;
    int32_t* index = s.index.get() + i * kCapacity;
    float* score = s.score.get() + i * kCapacity;
    const float *norm = norms_.get() + first_center, *slack = slacks_.get() + first_center;
    const float best = kernel_.largest(scores, norm, slack, row.slope, width);
    if (best > row.best) {
      row.best = best;
      if (row.found) prune(row, index, score);
    }
    const int room = kCapacity - row.found;
    const int found =
        kernel_.select(scores, norm, slack, row.slope, width, threshold(row), index + row.found, room);
    if (found > room) {
      row.found = -1;
      continue;
    }
    for (int j = row.found; j < row.found + found; ++j) {
      const int32_t k = index[j];
      score[j] = scores[k] + (row.slope * norm[k] + slack[k]);
      index[j] += static_cast<int32_t>(first_center);
    }
    row.found += found;
  }
}

}  // namespace rsprune
