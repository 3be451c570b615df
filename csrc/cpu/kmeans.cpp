// Points go through in blocks. For each block, scores x.c - |c|^2 / 2 of a chunk of centres are computed into
// a scratch that stays in cache (|x|^2 is the same for all centres, so it drops out of the argmin), then
// every centre whose score is within twice the error bound of the row's best becomes a candidate. A row with
// one candidate is proven; the others are decided in float64, and exactly if need be.
#include "kmeans.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/kmeans_centers.h"
#include "exact.h"

namespace rsprune {
namespace {

constexpr int64_t kChunk = 1536;  // centres scored at a time: a whole number of panels in every kernel
constexpr int64_t kSlab = 128;    // steps of a panel at a time, so that the slab stays in L1
constexpr int64_t kBlockFloats = 1 << 17;  // packed points and scores of a block: half of a 1 MB L2
constexpr int64_t kMaxRows = 192;
constexpr int kCapacity = 64;  // candidates kept per row; a row with more is compared with all centres

// Twice the largest difference between a computed score and the true one, for a row with packed norm y and
// packing residual r: rounding x and c in storage (Cauchy-Schwarz), the accumulation, the rounded bias, and
// underflow. Standard bound: a sum of n terms, each rounded at most n + 3 times, is off by at most
// (n + 3) u / (1 - (n + 3) u) of the sum of magnitudes, which Cauchy-Schwarz bounds by |y| |c| + |c|^2 / 2.
double score_margin(const Centers& c, const AssignKernel& kernel, double y, double r) {
  const double n = static_cast<double>(c.dim + 3) * kernel.unit;
  const double magnitude = y * c.norm + c.half_norm;
  const double storage = r * c.norm + (y + r) * c.residual;
  const double underflow = 0x1p-125 * static_cast<double>(c.dim + 2) * (1 + y + c.norm);
  const double bound = storage + n / (1 - n) * magnitude + 0x1p-24 * c.half_norm + underflow;
  const bool representable = n < 0.5 && magnitude < 1e38;
  return representable ? 2.001 * bound : std::numeric_limits<double>::infinity();
}

struct Row {
  double margin;
  float best;
  int found;  // candidates, or -1: compare with all centres
};

struct Scratch {
  FloatBuffer points, scores, row;
  std::vector<Row> rows;
  std::vector<int32_t> index;  // [rows, kCapacity]
  std::vector<float> score;    // [rows, kCapacity]
};

struct Assigner {
  const void* x;
  Float type;
  AssignShape shape;
  const AssignKernel& kernel;
  Centers centers;
  int64_t stride;        // words between packed points
  int64_t score_stride;  // floats between rows of scores
  int64_t block;         // points per block

  Assigner(const void* x, Float type, const float* center, AssignShape s, const AssignKernel& kernel,
           int threads)
      : x(x), type(type), shape(s), kernel(kernel), centers(center, s, kernel) {
    // An odd number of cache lines: rows of a tile never share all their cache sets.
    stride = (centers.steps + 15) / 16 * 16;
    if (stride / 16 % 2 == 0) stride += 16;
    score_stride = (std::min(centers.padded_clusters(), kChunk) + 15) / 16 * 16 + 16;
    const int64_t share = (shape.points + threads - 1) / threads;
    const int64_t fit = std::min({kBlockFloats / (stride + score_stride), kMaxRows, share});
    block = std::max<int64_t>((fit + kernel.rows - 1) / kernel.rows, 1) * kernel.rows;
  }

  Scratch make_scratch() const {
    return {FloatBuffer(block * stride),
            FloatBuffer(block * score_stride),
            FloatBuffer(centers.dim),
            std::vector<Row>(block),
            std::vector<int32_t>(block * kCapacity),
            std::vector<float>(block * kCapacity)};
  }

  void load(int64_t point, float* row) const {
    const int64_t bytes = type == Float::f32 ? 4 : 2;
    kernel.to_float(static_cast<const char*>(x) + point * shape.dim * bytes, type, shape.dim, row);
    std::fill(row + shape.dim, row + centers.dim, 0.0f);
  }

  void pack(int64_t first, int64_t count, Scratch& s) const {
    const double slack = 1 + 0x1p-22 * static_cast<double>(centers.dim);
    const double floor = 0x1p-125 * static_cast<double>(centers.dim);
    for (int64_t i = 0; i < count; ++i) {
      float sums[2];
      load(first + i, s.row.get());
      kernel.pack(s.row.get(), centers.mean.get(), centers.dim, s.points.get() + i * stride, sums);
      const double y = std::sqrt(sums[0] * slack + floor);
      double r = std::sqrt(sums[1] * slack + floor);
      r += 0x1p-23 * (y + r);  // the float32 subtraction of the mean
      const double margin = score_margin(centers, kernel, y, r);
      const bool bounded = margin < std::numeric_limits<float>::max();  // false for NaN
      s.rows[i] = {margin, -std::numeric_limits<float>::infinity(), bounded ? 0 : -1};
    }
    const int64_t padded = (count + kernel.rows - 1) / kernel.rows * kernel.rows;
    std::fill(s.points.get() + count * stride, s.points.get() + padded * stride, 0.0f);
  }

  void score(int64_t first_center, int64_t width, int64_t count, Scratch& s) const {
    const int64_t groups = (count + kernel.rows - 1) / kernel.rows;
    const int64_t panel_width = kernel.lanes * kernel.vectors;
    for (int64_t c = 0; c < width; c += panel_width) {
      const int64_t vectors = std::min<int64_t>((width - c) / kernel.lanes, kernel.vectors);
      const float* panel = centers.panel(first_center + c);
      for (int64_t step = 0; step < centers.steps; step += kSlab)
        kernel.score(s.points.get() + step, stride, groups, panel + step * vectors * kernel.lanes,
                     static_cast<int>(vectors), std::min(kSlab, centers.steps - step),
                     step ? nullptr : centers.bias.get() + first_center + c, s.scores.get() + c,
                     score_stride);
    }
  }

  // Largest float32 not above best - margin.
  static float threshold(const Row& row) {
    return std::nextafterf(static_cast<float>(row.best - row.margin),
                           -std::numeric_limits<float>::infinity());
  }

  // Drops candidates that a better score has ruled out since they were found.
  void prune(Row& row, int32_t* index, float* score) const {
    const float limit = threshold(row);
    int kept = 0;
    for (int i = 0; i < row.found; ++i)
      if (score[i] >= limit) {
        index[kept] = index[i];
        score[kept++] = score[i];
      }
    row.found = kept;
  }

  void collect(int64_t first_center, int64_t width, int64_t count, Scratch& s) const {
    for (int64_t i = 0; i < count; ++i) {
      Row& row = s.rows[i];
      if (row.found < 0) continue;
      const float* scores = s.scores.get() + i * score_stride;
      int32_t* index = s.index.data() + i * kCapacity;
      float* score = s.score.data() + i * kCapacity;
      const float best = kernel.largest(scores, width);
      if (best > row.best) {
        row.best = best;
        if (row.found) prune(row, index, score);
      }
      if (best < threshold(row)) continue;
      const int room = kCapacity - row.found;
      const int found = kernel.select(scores, width, threshold(row), index + row.found, room);
      if (found > room) {
        row.found = -1;
        continue;
      }
      for (int j = row.found; j < row.found + found; ++j) {
        score[j] = scores[index[j]];
        index[j] += static_cast<int32_t>(first_center);
      }
      row.found += found;
    }
  }

  struct Nearest {
    int32_t label = -1;
    double distance = std::numeric_limits<double>::quiet_NaN();
  };

  int compare_exactly(const float* row, const float* a, const float* b) const {
    ExactSum sum;
    for (int64_t j = 0; j < centers.dim; ++j) add_distance_difference(sum, row[j], a[j], b[j]);
    return sum.sign();
  }

  // Candidates come in ascending order, so that an exact tie leaves the lower index.
  void consider(const float* row, int32_t k, Nearest& nearest) const {
    const double distance = kernel.squared_distance(row, centers.row(k), centers.dim);
    if (nearest.label >= 0) {
      // Each term and the sum of them are off by less than (dim + 4) 2^-53 of the distance.
      const double error = 0x1p-52 * static_cast<double>(centers.dim + 4);
      if (distance * (1 - error) > nearest.distance * (1 + error)) return;
      if (distance * (1 + error) >= nearest.distance * (1 - error) &&
          compare_exactly(row, centers.row(k), centers.row(nearest.label)) >= 0)
        return;
    }
    nearest = {k, distance};
  }

  Nearest decide(int64_t point, const Row& found, const int32_t* index, float* row) const {
    load(point, row);
    Nearest nearest;
    if (found.found >= 0) {
      for (int i = 0; i < found.found; ++i) consider(row, index[i], nearest);
    } else if (std::all_of(row, row + centers.dim, [](float v) { return std::isfinite(v); })) {
      for (int64_t k = 0; k < centers.clusters; ++k)
        if (centers.usable[k]) consider(row, static_cast<int32_t>(k), nearest);
    }
    return nearest;
  }

  int64_t run(int64_t first, int64_t count, Scratch& s, int32_t* label, float* distance) const {
    pack(first, count, s);
    const int64_t padded = centers.padded_clusters();
    for (int64_t c = 0; c < padded; c += kChunk) {
      const int64_t width = std::min(kChunk, padded - c);
      score(c, width, count, s);
      collect(c, width, count, s);
    }
    int64_t rechecked = 0;
    for (int64_t i = 0; i < count; ++i) {
      rechecked += s.rows[i].found != 1;
      const Nearest nearest = decide(first + i, s.rows[i], s.index.data() + i * kCapacity, s.row.get());
      label[first + i] = nearest.label;
      distance[first + i] = static_cast<float>(nearest.distance);
    }
    return rechecked;
  }
};

}  // namespace

int64_t kmeans_assign_cpu(const void* x, Float type, const float* center, int32_t* label, float* distance,
                          AssignShape shape) {
  if (shape.points == 0) return 0;
  const int threads = omp_get_max_threads();
  const Assigner assigner(x, type, center, shape, assign_kernel(isa()), threads);
  if (!assigner.centers.any_usable) {
    std::fill(label, label + shape.points, -1);
    std::fill(distance, distance + shape.points, std::numeric_limits<float>::quiet_NaN());
    return 0;
  }
  std::vector<Scratch> scratch;  // allocated here: an exception must not leave a parallel region
  for (int t = 0; t < threads; ++t) scratch.push_back(assigner.make_scratch());

  const int64_t blocks = (shape.points + assigner.block - 1) / assigner.block;
  int64_t rechecked = 0;
#pragma omp parallel for schedule(dynamic) num_threads(threads) reduction(+ : rechecked)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = b * assigner.block;
    rechecked += assigner.run(first, std::min(assigner.block, shape.points - first),
                              scratch[omp_get_thread_num()], label, distance);
  }
  return rechecked;
}

}  // namespace rsprune
