// Scores on Hopper's matrix units (sm_90a): 256 rows x 128 centres a tile. One warp keeps the tensor copy
// engine busy; two warpgroups of 128 rows each multiply by wgmma straight from shared memory and keep the
// best two scores of every row. Persistent: a block takes work items (rows x group of centres) in turn.
//
// Two forms. Resident, up to 128 dimensions: the rows stay in shared memory while all centres of the group
// stream by, and the next item's rows arrive meanwhile; the warpgroups take turns at the matrix units, so
// that one searches its scores for the best two while the other multiplies. Streaming: rows and centres come
// in slabs of 64 dimensions; the second warpgroup starts two slabs behind, and stays behind, so that the
// searches do not meet either.
#pragma once
#include "cuda/ptx.cuh"
#include "cuda/screened.cuh"

namespace rsprune::wgmma {

constexpr int kGroupThreads = 128;  // a warpgroup
constexpr int kConsumers = 2;       // warpgroups that multiply; the third one copies
constexpr int kThreads = (kConsumers + 1) * kGroupThreads;
constexpr int kGroupRows = 128;  // two wgmma of 64 rows
constexpr int kRows = kConsumers * kGroupRows;
constexpr int kRowSlabBytes = kRows * kRowBytes;                  // 32 KB
constexpr int kCenterSlabBytes = kCenterTile * kRowBytes;         // 16 KB
constexpr int kResidentSlabs = 2;                                 // 128 dimensions
constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;  // 40 + 2 x 232 <= 3 x 168

template <bool kResident>
struct Form {
  static constexpr int kStages = kResident ? 5 : 4;
  static constexpr int kStageBytes = kCenterSlabBytes + (kResident ? 0 : kRowSlabBytes);
  static constexpr int kRowBuffers = kResident ? 2 : 0;
  static constexpr int kRowBufferBytes = kResidentSlabs * kRowSlabBytes;
  static constexpr int kBarriers = 2 * (kStages + kRowBuffers);
  static constexpr int kBytes = kStages * kStageBytes + kRowBuffers * kRowBufferBytes + kBarriers * 8 + 1024;
};
static_assert(Form<true>::kBytes <= 232448 && Form<false>::kBytes <= 232448,
              "what a block of sm_90 can have");
// A warpgroup may run a whole tile ahead of the other, which then still holds the slabs of its own.
static_assert(Form<true>::kStages >= 2 * kResidentSlabs, "the turns would wait for each other");

// Named barriers; 0 is __syncthreads.
constexpr int kTurn = 1;  // and 2: whose turn at the matrix units it is
constexpr int kLag = 3;   // the first warpgroup has two slabs behind it

// A warpgroup's part of multiplying a slab: 128 rows x 128 centres x 64 dimensions.
template <typename H>
__device__ __forceinline__ void multiply_slab(float (&scores)[2][64], uint32_t rows, uint32_t centers,
                                              bool first) {
  ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < kSlab / 16; ++k)
#pragma unroll
    for (int m = 0; m < 2; ++m)
      ptx::wgmma<H>(scores[m], matrix_descriptor(rows + m * 64 * kRowBytes + k * 32),
                    matrix_descriptor(centers + k * 32), k > 0 || !first);
  ptx::wgmma_commit();
}

// maps: x [rows, pitch] in boxes of 256 x 64, centres [padded, pitch] in boxes of 128 x 64, zeros outside.
template <typename H, bool kResident>
__global__ void __launch_bounds__(kThreads, 1)
    screen_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ CUtensorMap center_map,
                  const float* __restrict__ half_norm, ScreenedRows screened, int center_tiles, int slabs) {
  using F = Form<kResident>;
  unsigned char* shared = ptx::dynamic_shared();
  unsigned char* row_buffers = shared + F::kStages * F::kStageBytes;
  auto* full = reinterpret_cast<uint64_t*>(row_buffers + F::kRowBuffers * F::kRowBufferBytes);
  uint64_t *empty = full + F::kStages, *rows_full = empty + F::kStages,
           *rows_empty = rows_full + F::kRowBuffers;

  const int group = threadIdx.x / kGroupThreads, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    ptx::prefetch_map(&x_map);
    ptx::prefetch_map(&center_map);
    for (int i = 0; i < F::kStages; ++i) {
      ptx::barrier_init(full + i, 1);
      ptx::barrier_init(empty + i, kConsumers * kGroupThreads / 32);  // one arrival per warp
    }
    for (int i = 0; i < F::kRowBuffers; ++i) {
      ptx::barrier_init(rows_full + i, 1);
      ptx::barrier_init(rows_empty + i, kConsumers * kGroupThreads / 32);
    }
    ptx::barrier_init_fence();
  }
  __syncthreads();
  const int64_t items = (screened.rows + kRows - 1) / kRows * screened.splits;

  if (group == kConsumers) {
    ptx::give_registers<kProducerRegisters>();
    if (threadIdx.x == kConsumers * kGroupThreads) {
      RingPosition ring, buffer;
      for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
        const WorkItem work = work_item(item, screened.splits, center_tiles);
        const int first = static_cast<int>(work.row_tile * kRows);
        if constexpr (kResident) {
          ptx::barrier_wait(rows_empty + buffer.stage, buffer.parity ^ 1);
          ptx::barrier_arrive_expecting(rows_full + buffer.stage, slabs * kRowSlabBytes);
          for (int slab = 0; slab < slabs; ++slab)
            ptx::copy_tile(row_buffers + buffer.stage * F::kRowBufferBytes + slab * kRowSlabBytes, &x_map,
                           slab * kSlab, first, rows_full + buffer.stage);
          buffer.advance(F::kRowBuffers);
        }
        for (int tile = work.first_center_tile; tile < work.last_center_tile; ++tile)
          for (int slab = 0; slab < slabs; ++slab) {
            unsigned char* stage = shared + ring.stage * F::kStageBytes;
            ptx::barrier_wait(empty + ring.stage, ring.parity ^ 1);
            ptx::barrier_arrive_expecting(full + ring.stage, F::kStageBytes);
            ptx::copy_tile(stage, &center_map, slab * kSlab, tile * kCenterTile, full + ring.stage);
            if constexpr (!kResident)
              ptx::copy_tile(stage + kCenterSlabBytes, &x_map, slab * kSlab, first, full + ring.stage);
            ring.advance(F::kStages);
          }
      }
    }
  } else {
    ptx::take_registers<kConsumerRegisters>();
    const int thread = threadIdx.x % kGroupThreads;
    const uint32_t stages = ptx::shared_address(shared);
    const uint32_t own_rows = group * kGroupRows * kRowBytes;  // within a slab of rows
    RingPosition ring, buffer;
    float scores[2][64];
    if (kResident && group == 1) ptx::group_arrive(kTurn, kConsumers * kGroupThreads);  // group 0 begins
    bool lagging = !kResident;  // only before the first tile

    for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
      const WorkItem work = work_item(item, screened.splits, center_tiles);
      const bool last_item = item + gridDim.x >= items;
      BestTwo two[4];  // rows 0, 8 of the first 64, then of the second
      int best_tile[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) two[i] = BestTwo::none(), best_tile[i] = -1;
      if constexpr (kResident) ptx::barrier_wait(rows_full + buffer.stage, buffer.parity);

      for (int tile = work.first_center_tile; tile < work.last_center_tile; ++tile) {
        if constexpr (kResident) ptx::group_sync(kTurn + group, kConsumers * kGroupThreads);
        int previous = -1;
        for (int slab = 0; slab < slabs; ++slab) {
          if (lagging && group == 1 && slab == 0) ptx::group_sync(kLag, kConsumers * kGroupThreads);
          ptx::barrier_wait(full + ring.stage, ring.parity);
          const uint32_t stage = stages + ring.stage * F::kStageBytes;
          const uint32_t rows = kResident ? stages + F::kStages * F::kStageBytes +
                                                buffer.stage * F::kRowBufferBytes + slab * kRowSlabBytes
                                          : stage + kCenterSlabBytes;
          multiply_slab<H>(scores, rows + own_rows, stage, slab == 0);
          if (lagging && group == 0 && slab == 1) ptx::group_arrive(kLag, kConsumers * kGroupThreads);
          if (previous >= 0) {  // one slab stays in flight; the one before it has been read
            ptx::wgmma_wait<1>();
            if (lane == 0) ptx::barrier_arrive(empty + previous);
          }
          previous = ring.stage;
          ring.advance(F::kStages);
        }
        lagging = false;
        const bool last = last_item && tile + 1 == work.last_center_tile;
        if (kResident && !(last && group == 1))  // nobody waits for the last turn
          ptx::group_arrive(kTurn + (group ^ 1), kConsumers * kGroupThreads);
        ptx::wgmma_wait<0>();
        if (lane == 0) ptx::barrier_arrive(empty + previous);

        float before[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) before[i] = two[i].best;
        const float* half_norms = half_norm + tile * kCenterTile + wgmma_column(thread, 0);
#pragma unroll
        for (int i = 0; i < 64; i += 4) {  // two columns of two rows
          const float2 half = __ldg(reinterpret_cast<const float2*>(half_norms + i * 2));
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            two[m * 2].add(with_column(scores[m][i] - half.x, i / 2));
            two[m * 2].add(with_column(scores[m][i + 1] - half.y, i / 2 + 1));
            two[m * 2 + 1].add(with_column(scores[m][i + 2] - half.x, i / 2));
            two[m * 2 + 1].add(with_column(scores[m][i + 3] - half.y, i / 2 + 1));
          }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (two[i].best > before[i]) best_tile[i] = tile;
      }
      if constexpr (kResident) {
        if (lane == 0) ptx::barrier_arrive(rows_empty + buffer.stage);
        buffer.advance(F::kRowBuffers);
      }

#pragma unroll
      for (int i = 0; i < 4; ++i) {  // four lanes share a row
        const int p = column_of(two[i].best);
        const int column = p / 2 * 8 + wgmma_column(thread, p % 2);
        Screened s{two[i].best, two[i].second, best_tile[i] < 0 ? -1 : best_tile[i] * kCenterTile + column};
#pragma unroll
        for (int offset = 1; offset < 4; offset *= 2)
          s.merge({__shfl_xor_sync(~0u, s.best, offset), __shfl_xor_sync(~0u, s.second, offset),
                   __shfl_xor_sync(~0u, s.label, offset)});
        const int64_t row =
            work.row_tile * kRows + group * kGroupRows + i / 2 * 64 + wgmma_row(thread, i % 2 * 2);
        if (lane % 4 == 0 && row < screened.rows) screened.set(row, work.split, s);
      }
    }
  }
}

}  // namespace rsprune::wgmma
