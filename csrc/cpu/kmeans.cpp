// Points go through in blocks, first with the fastest scores there are (kmeans_regions.h). A point with one
// candidate is proven; the distances to few candidates are compared in float32, then in float64, and exactly
// if need be. Points with many candidates wait for a second screening with float32 scores, where the fast
// ones are coarser than that.
#include "kmeans.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "cpu/denormals.h"
#include "cpu/kmeans_regions.h"
#include "exact.h"

namespace rsprune {
namespace {

constexpr int kSkips = 15;  // blocks that go without a fast screening after one that decided too little

constexpr float kNever = std::numeric_limits<float>::infinity();

struct Nearest {
  int32_t label = -1;
  double distance = std::numeric_limits<double>::quiet_NaN();
};

int compare_exactly(const float* x, const float* a, const float* b, int64_t dim) {
  ExactSum sum;
  for (int64_t j = 0; j < dim; ++j) add_distance_difference(sum, x[j], a[j], b[j]);
  return sum.sign();
}

// Candidates come in ascending order, so that an exact tie leaves the lower index.
void consider(const CenterRows& centers, const AssignKernel& kernel, const float* x, int32_t k,
              Nearest& nearest) {
  const double distance = kernel.squared_distance(x, centers.row(k), centers.dim);
  if (nearest.label >= 0) {
    // Each term and the sum of them are off by less than (dim + 4) 2^-53 of the distance.
    const double error = 0x1p-52 * static_cast<double>(centers.dim + 4);
    if (distance * (1 - error) > nearest.distance * (1 + error)) return;
    if (distance * (1 + error) >= nearest.distance * (1 - error) &&
        compare_exactly(x, centers.row(k), centers.row(nearest.label), centers.dim) >= 0)
      return;
  }
  nearest = {k, distance};
}

struct Assigner {
  const AssignKernel& kernel;
  const CenterRows& centers;
  int32_t* label;
  float* distance;
  Regions regions;
  std::optional<Screen> precise;  // where the kernel's scores are coarser than float32
  int few;                        // candidates that are cheaper to compare than to screen again

  struct Worker {  // what a thread owns
    ScreenScratch first, second;
    std::vector<int64_t> waiting;  // for the precise screening
    int skips = 0;
    int64_t rechecked = 0;
  };

  Assigner(const void* x, Float type, const CenterRows& centers, int32_t* label, float* distance,
           AssignShape s, const AssignKernel& kernel, int threads)
      : kernel(kernel),
        centers(centers),
        label(label),
        distance(distance),
        regions(x, type, centers, s, kernel, label, threads),
        few(static_cast<int>(std::clamp<int64_t>(s.clusters / 4, 2, kCapacity))) {
    if (kernel.precise)
      precise.emplace(x, type, centers, common_origin(centers).data(), s, *kernel.precise, threads);
  }

  Worker make_worker() const {
    Worker w;
    w.first = regions.make_scratch();
    if (precise) {
      w.second = precise->make_scratch();
      w.waiting.reserve(regions.block() + precise->block());
    }
    return w;
  }

  // The point is number `at` of those just screened.
  void decide(int64_t point, const Screen& screen, ScreenScratch& s, int64_t at, Worker& w) const {
    const Screened& screened = s.rows[at];
    const int32_t* index = s.index.get() + at * kCapacity;
    float* row = s.row.get();
    screen.load(point, row);
    w.rechecked += screened.found != 1;
    Nearest nearest;
    if (screened.found >= 0) {
      float rough[kCapacity], limit = kNever;
      if (screened.found > 1) {
        float least = kNever;
        for (int i = 0; i < screened.found; ++i) {
          rough[i] = kernel.rough_distance(row, centers.row(index[i]), centers.dim);
          least = std::min(least, rough[i]);
        }
        // What is above it is farther than the least, whatever the rounding of both.
        const double error = rough_error(centers.dim);
        limit = static_cast<float>(least * (1 + 3 * error) + 0x1p-146 * static_cast<double>(centers.dim));
      }
      for (int i = 0; i < screened.found; ++i)
        if (screened.found == 1 || !(rough[i] > limit)) consider(centers, kernel, row, index[i], nearest);
    } else if (std::all_of(row, row + centers.dim, [](float v) { return std::isfinite(v); })) {
      for (int64_t k = 0; k < centers.clusters; ++k)
        if (centers.usable[k]) consider(centers, kernel, row, static_cast<int32_t>(k), nearest);
    }
    label[point] = nearest.label;
    distance[point] = static_cast<float>(nearest.distance);
  }

  void run_precise(const int64_t* point, int64_t count, Worker& w) const {
    precise->run(point, count, w.second);
    for (int64_t i = 0; i < count; ++i) decide(point[i], *precise, w.second, i, w);
  }

  void run_first(const Block& b, Worker& w) const {
    b.screen->run(b.point, b.count, w.first);
    const size_t before = w.waiting.size();
    for (int64_t i = 0; i < b.count; ++i) {
      const int found = w.first.rows[i].found;
      if (precise && (found < 0 || found > few))
        w.waiting.push_back(b.point[i]);
      else
        decide(b.point[i], *b.screen, w.first, i, w);
    }
    // A coarse screening costs half a precise one.
    if (static_cast<int64_t>(w.waiting.size() - before) > b.count / 2) w.skips = kSkips;
  }

  void run(const Block& b, Worker& w) const {
    if (w.skips == 0) {
      run_first(b, w);
    } else {
      --w.skips;
      w.waiting.insert(w.waiting.end(), b.point, b.point + b.count);
    }
    while (precise && static_cast<int64_t>(w.waiting.size()) >= precise->block()) {
      const size_t rest = w.waiting.size() - precise->block();
      run_precise(w.waiting.data() + rest, precise->block(), w);
      w.waiting.resize(rest);
    }
  }

  void finish(Worker& w) const {
    if (precise) run_precise(w.waiting.data(), static_cast<int64_t>(w.waiting.size()), w);
    w.waiting.clear();
  }
};

}  // namespace

int64_t kmeans_assign_cpu(const void* x, Float type, const float* center, int32_t* label, float* distance,
                          AssignShape shape) {
  if (shape.points == 0) return 0;
  const KeepDenormals here;
  const CenterRows centers(center, shape);
  if (!centers.any_usable) {
    std::fill(label, label + shape.points, -1);
    std::fill(distance, distance + shape.points, std::numeric_limits<float>::quiet_NaN());
    return 0;
  }
  const int threads = omp_get_max_threads();
  const Assigner assigner(x, type, centers, label, distance, shape, assign_kernel(isa()), threads);
  std::vector<Assigner::Worker> workers;  // allocated here: an exception must not leave a parallel region
  for (int t = 0; t < threads; ++t) workers.push_back(assigner.make_worker());
  const std::vector<Block>& blocks = assigner.regions.blocks();

#pragma omp parallel num_threads(threads)
  {
    const KeepDenormals in_thread;
    Assigner::Worker& worker = workers[omp_get_thread_num()];
#pragma omp for schedule(dynamic)
    for (size_t b = 0; b < blocks.size(); ++b) assigner.run(blocks[b], worker);
    assigner.finish(worker);
  }
  int64_t rechecked = 0;
  for (const auto& worker : workers) rechecked += worker.rechecked;
  return rechecked;
}

}  // namespace rsprune
