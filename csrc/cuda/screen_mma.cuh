// Scores on matrix units through mma.sync (sm_80 and later): blocks of 128 rows against tiles of 128 centres,
// in slabs of 64 dimensions that cp.async brings while the previous one is multiplied. Two kernels use it:
// one keeps the best two scores of every row, the other collects the candidates of unproven rows and decides
// them.
#pragma once
#include "cuda/exact_rows.cuh"
#include "cuda/ptx.cuh"
#include "cuda/screened.cuh"
#include "kmeans.h"

namespace rsprune::mma {

constexpr int kThreads = 256;  // 4 x 2 warps of 32 rows x 64 centres
constexpr int kRows = 128;
constexpr int kTileBytes = 128 * kRowBytes;
constexpr int kStages = 2;
constexpr int kStageBytes = 2 * kTileBytes;  // rows, centres
constexpr int kScreenBytes = kStages * kStageBytes + 1024;

constexpr int kWarpColumns = 64, kGroups = kWarpColumns / 8;  // of 8 centres, one accumulator fragment each
using Scores = float[2][kGroups][4];                          // 32 rows x 64 centres of a warp

// [*, pitch] matrices in 16 bits; pitch is a multiple of 8, addresses of 16 bytes.
template <typename H>
struct Operands {
  const H *x, *center;
  int64_t pitch;
};

struct Place {  // of a thread
  int lane = threadIdx.x % 32;
  int row = threadIdx.x / 32 % 4 * 32;            // first of its warp
  int column = threadIdx.x / 128 * kWarpColumns;  // likewise
};

// 128 rows x 64 dimensions from `at` on; row_of gives the source row, or -1 for zeros.
template <typename H, typename RowOf>
__device__ __forceinline__ void load_tile(unsigned char* to, const H* from, int64_t pitch, int64_t at,
                                          RowOf row_of) {
#pragma unroll
  for (int i = 0; i < kRows * 8 / kThreads; ++i) {
    const int id = threadIdx.x + i * kThreads, row = id / 8, chunk = id % 8;
    const int64_t source = row_of(row), dim = at + chunk * kChunk;
    const bool valid = source >= 0 && dim < pitch;
    ptx::copy16(to + swizzled(row, chunk), from + (valid ? source * pitch + dim : 0), valid);
  }
}

template <typename H>
__device__ __forceinline__ void multiply_slab(const unsigned char* rows, const unsigned char* centers,
                                              const Place& place, Scores& scores) {
#pragma unroll
  for (int k = 0; k < kSlab / 16; ++k) {
    uint32_t a[2][4];
#pragma unroll
    for (int m = 0; m < 2; ++m)
      ptx::load_matrices(a[m], rows + swizzled(place.row + m * 16 + load_a_row(place.lane),
                                               k * 2 + load_a_chunk(place.lane)));
#pragma unroll
    for (int pair = 0; pair < kGroups / 2; ++pair) {
      uint32_t b[4];
      ptx::load_matrices(b, centers + swizzled(place.column + pair * 16 + load_b_row(place.lane),
                                               k * 2 + load_b_chunk(place.lane)));
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        ptx::mma<H>(scores[m][pair * 2], a[m], b[0], b[1]);
        ptx::mma<H>(scores[m][pair * 2 + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// Calls on_tile(tile, scores) with the products of the block's rows and each tile of centres in turn.
template <typename H, typename RowOf, typename OnTile>
__device__ __forceinline__ void score_rows(unsigned char* shared, const Operands<H>& operands, int first_tile,
                                           int last_tile, RowOf row_of, OnTile on_tile) {
  const Place place;
  const int slabs = static_cast<int>((operands.pitch + kSlab - 1) / kSlab);
  const int64_t steps = static_cast<int64_t>(last_tile - first_tile) * slabs;
  const auto load = [&](int64_t step) {
    if (step < steps) {
      unsigned char* stage = shared + step % kStages * kStageBytes;
      const int64_t center = (first_tile + step / slabs) * kCenterTile, at = step % slabs * kSlab;
      load_tile(stage, operands.x, operands.pitch, at, row_of);
      load_tile(stage + kTileBytes, operands.center, operands.pitch, at,
                [center](int row) { return center + row; });
    }
    ptx::commit_copies();  // an empty group at the end, so that waiting for all but one stays right
  };

  Scores scores = {};
  int slab = 0, tile = first_tile;
  load(0);
  for (int64_t step = 0; step < steps; ++step) {
    load(step + 1);
    ptx::wait_copies<1>();
    __syncthreads();
    const unsigned char* stage = shared + step % kStages * kStageBytes;
    multiply_slab<H>(stage, stage + kTileBytes, place, scores);
    if (++slab == slabs) {
      on_tile(tile, scores);
#pragma unroll
      for (auto& row : scores)
#pragma unroll
        for (auto& group : row)
#pragma unroll
          for (float& v : group) v = 0;
      slab = 0;
      ++tile;
    }
    __syncthreads();  // the next load writes to this stage
  }
}

// half_norm [padded], of 8 columns; a thread's two are neighbours.
__device__ __forceinline__ float2 half_norms(const float* half_norm, int tile, int column, int group,
                                             int lane) {
  const int at = tile * kCenterTile + column + group * 8 + mma_column(lane, 0);
  return __ldg(reinterpret_cast<const float2*>(half_norm + at));
}

template <typename H>
__global__ void __launch_bounds__(kThreads, 2)
    screen_kernel(Operands<H> operands, const float* __restrict__ half_norm, ScreenedRows screened,
                  int center_tiles) {
  unsigned char* shared = ptx::dynamic_shared();
  const Place place;
  const int64_t items = (screened.rows + kRows - 1) / kRows * screened.splits;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const WorkItem work = work_item(item, screened.splits, center_tiles);
    const int64_t first = work.row_tile * kRows;
    BestTwo two[2][2];
    int best_tile[2][2];
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) two[m][half] = BestTwo::none(), best_tile[m][half] = -1;

    const auto row_of = [&](int row) { return first + row < screened.rows ? first + row : -1; };
    score_rows(shared, operands, work.first_center_tile, work.last_center_tile, row_of,
               [&](int tile, const Scores& scores) {
                 float before[2][2];
#pragma unroll
                 for (int i = 0; i < 4; ++i) before[i / 2][i % 2] = two[i / 2][i % 2].best;
#pragma unroll
                 for (int group = 0; group < kGroups; ++group) {
                   const float2 half = half_norms(half_norm, tile, place.column, group, place.lane);
#pragma unroll
                   for (int m = 0; m < 2; ++m)
#pragma unroll
                     for (int i = 0; i < 4; ++i)
                       two[m][i / 2].add(
                           with_column(scores[m][group][i] - (i % 2 ? half.y : half.x), group * 2 + i % 2));
                 }
#pragma unroll
                 for (int i = 0; i < 4; ++i)
                   if (two[i / 2][i % 2].best > before[i / 2][i % 2]) best_tile[i / 2][i % 2] = tile;
               });

    // Four lanes share a row, and so do the two warps side by side.
    auto* other = reinterpret_cast<Screened*>(shared);  // score_rows ends with a barrier
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int p = column_of(two[m][half].best), tile = best_tile[m][half];
        const int column = place.column + p / 2 * 8 + mma_column(place.lane, p % 2);
        Screened s{two[m][half].best, two[m][half].second, tile < 0 ? -1 : tile * kCenterTile + column};
#pragma unroll
        for (int offset = 1; offset < 4; offset *= 2)
          s.merge({__shfl_xor_sync(~0u, s.best, offset), __shfl_xor_sync(~0u, s.second, offset),
                   __shfl_xor_sync(~0u, s.label, offset)});
        const int row = place.row + m * 16 + half * 8 + place.lane / 4;
        if (place.column > 0 && place.lane % 4 == 0) other[row] = s;
        __syncthreads();
        if (place.column == 0 && place.lane % 4 == 0 && first + row < screened.rows) {
          s.merge(other[row]);
          screened.set(first + row, work.split, s);
        }
      }
    __syncthreads();
  }
}

constexpr int kCandidates = 16;  // kept per row; with more, all centres are compared

struct Recheck {  // in shared memory, after the stages
  int32_t row[kRows];
  float threshold[kRows];
  int32_t found[kRows];
  int32_t candidate[kRows][kCandidates];
};
constexpr int kRecheckBytes = kScreenBytes + static_cast<int>(sizeof(Recheck));

// x and center as given, for the decision; operands in 16 bits, to find candidates. Not on the hot path.
template <typename H, typename T>
__global__ void __launch_bounds__(kThreads)
    recheck_kernel(const T* __restrict__ x, const float* __restrict__ center, Operands<H> operands,
                   const float* __restrict__ half_norm, UnprovenRows unproven, AssignShape s,
                   int center_tiles, int32_t* __restrict__ label, float* __restrict__ distance,
                   int64_t* __restrict__ rechecked) {
  unsigned char* shared = ptx::dynamic_shared();
  auto& list = *reinterpret_cast<Recheck*>(shared + kStages * kStageBytes);
  const Place place;
  const int64_t count = *unproven.count;
  if (rechecked && blockIdx.x == 0 && threadIdx.x == 0)
    atomicAdd(reinterpret_cast<unsigned long long*>(rechecked), static_cast<unsigned long long>(count));

  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kRows; first < count;
       first += static_cast<int64_t>(gridDim.x) * kRows) {
    if (threadIdx.x < kRows) {
      const int64_t at = first + threadIdx.x;
      list.row[threadIdx.x] = at < count ? unproven.row[at] : -1;
      list.threshold[threadIdx.x] = at < count ? unproven.threshold[at] : INFINITY;
      list.found[threadIdx.x] = 0;
    }
    __syncthreads();
    score_rows(
        shared, operands, 0, center_tiles, [&](int row) { return static_cast<int64_t>(list.row[row]); },
        [&](int tile, const Scores& scores) {
#pragma unroll
          for (int group = 0; group < kGroups; ++group) {
            const float2 half = half_norms(half_norm, tile, place.column, group, place.lane);
#pragma unroll
            for (int m = 0; m < 2; ++m)
#pragma unroll
              for (int i = 0; i < 4; ++i) {
                const int row = place.row + m * 16 + mma_row(place.lane, i);
                if (!(scores[m][group][i] - (i % 2 ? half.y : half.x) >= list.threshold[row])) continue;
                const int at = atomicAdd(&list.found[row], 1);
                if (at < kCandidates)
                  list.candidate[row][at] =
                      tile * kCenterTile + place.column + group * 8 + mma_column(place.lane, i);
              }
          }
        });
    for (int row = threadIdx.x / 32; row < kRows; row += kThreads / 32) {  // score_rows ends with a barrier
      const int64_t i = list.row[row];
      if (i < 0) continue;
      Nearest nearest;
      const int found = list.found[row];
      if (list.threshold[row] > -INFINITY && found <= kCandidates) {
        for (int at = 0; at < found; ++at)
          if (list.candidate[row][at] < s.clusters)
            consider(x + i * s.dim, center, s.dim, list.candidate[row][at], nearest);
      } else {
        for (int64_t k = 0; k < s.clusters; ++k)
          consider(x + i * s.dim, center, s.dim, static_cast<int32_t>(k), nearest);
      }
      if (place.lane == 0) {
        label[i] = nearest.label;
        if (distance) distance[i] = static_cast<float>(nearest.distance);
      }
    }
    __syncthreads();
  }
}

}  // namespace rsprune::mma
