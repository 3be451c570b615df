#include "cpu/kmeans_regions.h"

#include <omp.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "cpu/denormals.h"

namespace rsprune {
namespace {

constexpr int64_t kRegions = 16;         // at most: a vector of AVX-512
constexpr int64_t kCentersEach = 32;     // at least: comparing fewer costs no more than this
constexpr int64_t kPointsPerCenter = 2;  // at least, in each: all centres are packed for each region
constexpr int64_t kCrowd = 32;           // it pays where more than one in so many centres is a candidate
constexpr int64_t kStretch = 1 << 17;    // points in order of region at a time: x may be a large file
constexpr int kRounds = 2;               // of Lloyd's algorithm: more make regions hardly better

// Whether many centres are candidates for a point, as a sample has it.
bool crowded(const Screen& screen, AssignShape shape) {
  ScreenScratch s = screen.make_scratch();
  std::vector<int64_t> sample(std::min(screen.block(), shape.points / 64));
  const auto count = static_cast<int64_t>(sample.size());
  for (int64_t i = 0; i < count; ++i) sample[i] = i * shape.points / count;
  screen.run(sample.data(), count, s);
  int64_t candidates = 0;
  for (int64_t i = 0; i < count; ++i) candidates += s.rows[i].found < 0 ? shape.clusters : s.rows[i].found;
  return candidates > count * shape.clusters / kCrowd;
}

int64_t nearest(const CenterRows& middles, const float* center, const AssignKernel& kernel) {
  int64_t found = 0;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t r = 0; r < middles.clusters; ++r) {
    const double distance = kernel.squared_distance(center, middles.row(r), middles.dim);
    if (distance < least) least = distance, found = r;
  }
  return found;
}

// The first ones are centres at all distances from the origin, so that no crowd takes all.
CenterRows middles_of(const CenterRows& centers, int64_t count, const AssignKernel& kernel) {
  const std::vector<float> origin = common_origin(centers);
  const int64_t dim = centers.dim;
  std::vector<std::pair<double, int64_t>> usable;  // with the distance
  for (int64_t k = 0; k < centers.clusters; ++k)
    if (centers.usable[k])
      usable.emplace_back(kernel.squared_distance(centers.row(k), origin.data(), dim), k);
  std::sort(usable.begin(), usable.end());
  const auto n = static_cast<int64_t>(usable.size());
  std::vector<float> start(count * dim);
  for (int64_t r = 0; r < count; ++r)
    std::copy_n(centers.row(usable[(2 * r + 1) * n / (2 * count)].second), dim, start.data() + r * dim);

  CenterRows middles(start.data(), {n, count, dim});
  for (int round = 0; round < kRounds; ++round) {
    std::vector<double> sum(count * dim);
    std::vector<int64_t> members(count);
    for (const auto& [distance, k] : usable) {
      const int64_t r = nearest(middles, centers.row(k), kernel);
      for (int64_t j = 0; j < dim; ++j) sum[r * dim + j] += centers.row(k)[j];
      ++members[r];
    }
    for (int64_t r = 0; r < count; ++r)
      for (int64_t j = 0; j < dim && members[r]; ++j)
        middles.row(r)[j] = static_cast<float>(sum[r * dim + j] / static_cast<double>(members[r]));
  }
  return middles;
}

// The number of the best score is the region of a point; 0 where scores cannot tell.
void find_regions(const Screen& middles, const std::vector<int64_t>& points, int32_t* region, int threads) {
  std::vector<ScreenScratch> scratch;  // allocated here: an exception must not leave a parallel region
  for (int t = 0; t < threads; ++t) scratch.push_back(middles.make_scratch());
  const auto count = static_cast<int64_t>(points.size());
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t first = 0; first < count; first += middles.block()) {
    const KeepDenormals in_thread;
    ScreenScratch& s = scratch[omp_get_thread_num()];
    const int64_t block = std::min(middles.block(), count - first);
    middles.run(points.data() + first, block, s);
    for (int64_t i = 0; i < block; ++i) {
      const int found = std::max(s.rows[i].found, 0);
      const float* score = s.score.get() + i * kCapacity;
      const int64_t best = std::max_element(score, score + found) - score;
      region[first + i] = found ? s.index.get()[i * kCapacity + best] : 0;
    }
  }
}

}  // namespace

Regions::Regions(const void* x, Float type, const CenterRows& centers, AssignShape shape,
                 const AssignKernel& kernel, int32_t* scratch, int threads)
    : points_(shape.points) {
  std::iota(points_.begin(), points_.end(), 0);
  screens_.emplace_back(x, type, centers, common_origin(centers).data(), shape, kernel, threads);
  const int64_t count =
      std::min({kRegions, shape.clusters / kCentersEach, shape.points / (kPointsPerCenter * shape.clusters)});
  if (count < 2 || !crowded(screens_[0], shape)) {
    add_blocks(0, shape.points, screens_[0]);
    return;
  }

  const CenterRows middles = middles_of(centers, count, kernel);
  const Screen screen(x, type, middles, common_origin(middles).data(), {shape.points, count, shape.dim},
                      kernel.precise ? *kernel.precise : kernel, threads);
  find_regions(screen, points_, scratch, threads);
  screens_.clear();
  for (int64_t r = 0; r < count; ++r)
    screens_.emplace_back(x, type, centers, middles.row(r), shape, kernel, threads);

  for (int64_t first = 0; first < shape.points; first += kStretch) {
    const int64_t last = std::min(first + kStretch, shape.points);
    std::vector<int64_t> end(count + 1);  // of each region, in points_
    end[0] = first;
    for (int64_t i = first; i < last; ++i) ++end[scratch[i] + 1];
    std::partial_sum(end.begin(), end.end(), end.begin());
    for (int64_t i = first; i < last; ++i) points_[end[scratch[i]]++] = i;
    for (int64_t r = 0; r < count; ++r) add_blocks(r ? end[r - 1] : first, end[r], screens_[r]);
  }
}

void Regions::add_blocks(int64_t first, int64_t last, const Screen& screen) {
  for (; first < last; first += block())
    blocks_.push_back({points_.data() + first, std::min(block(), last - first), &screen});
}

}  // namespace rsprune
