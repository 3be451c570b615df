// Launches of the assignment. The simple route needs two kernels and no memory; those on matrix units score
// in 16 bits (screen_mma.cuh, screen_wgmma.cuh), prove what they can (certify.cuh) and decide the rest.
#include <cstdlib>
#include <string>

#include "cuda/certify.cuh"
#include "cuda/kmeans_simple.cuh"
#include "cuda/launch.cuh"
#include "cuda/plan.h"
#include "cuda/route.h"
#include "cuda/screen_mma.cuh"
#include "cuda/screen_wgmma.h"
#include "kmeans.h"

namespace rsprune {
namespace {

bool bfloat_as_half() { return operand_is_half(std::getenv("RSPRUNE_CUDA_OPERAND")); }

// float32 rows are scored as float16, which keeps three more significand bits than bfloat16; a row out of its
// range is decided in float32. bfloat16 rows can be too: that costs a copy of them, and proves more labels.
bool packs(Float type) { return type == Float::f32 || (type == Float::bf16 && bfloat_as_half()); }

AssignRoute route() { return assign_route(std::getenv("RSPRUNE_CUDA_KERNEL"), device_capability()); }

AssignPlan make_plan(AssignRoute route, const void* x, Float type, AssignShape s) {
  const bool wgmma = route == AssignRoute::wgmma;
  const bool pack = packs(type) || s.dim % kChunk != 0 || reinterpret_cast<uintptr_t>(x) % 16 != 0;
  return assign_plan(s.points, s.clusters, s.dim, pack, wgmma ? screen_wgmma::kRows : mma::kRows,
                     multiprocessors() * (wgmma ? 1 : 2), wgmma && s.dim <= screen_wgmma::kResidentDim);
}

template <typename T>
void launch_simple(const T* x, const float* center, int32_t* label, float* distance, int64_t* rechecked,
                   AssignShape s, cudaStream_t stream) {
  enqueue(stream, (s.points + simple::kTile - 1) / simple::kTile, simple::kThreads, 0,
          simple::score_kernel<T>, x, center, label, s);
  enqueue(stream, blocks_for(s.points, simple::kThreads / 32), simple::kThreads, 0, simple::decide_kernel<T>,
          x, center, label, distance, rechecked, s);
}

template <typename H>
void screen(AssignRoute route, mma::Operands<H> operands, const float* half_norm, ScreenedRows screened,
            const AssignPlan& p, cudaStream_t stream) {
  if (route == AssignRoute::wgmma)
    return screen_wgmma::launch(operands.x, operands.center, std::is_same_v<H, __half>, half_norm, screened,
                                p, stream);
  const int64_t items = (screened.rows + mma::kRows - 1) / mma::kRows * p.splits;
  enqueue(stream, blocks_for(items, 1), mma::kThreads, mma::kScreenBytes, mma::screen_kernel<H>, operands,
          half_norm, screened, p.center_tiles);
}

template <typename T, typename H>
void launch_matrix(AssignRoute route, const T* x, Float type, const float* center, int32_t* label,
                   float* distance, const RowBounds* bounds, int64_t* rechecked, char* workspace,
                   AssignShape s, cudaStream_t stream) {
  const AssignPlan p = make_plan(route, x, type, s);
  auto* center_bounds = reinterpret_cast<CenterBounds*>(workspace + p.zeroed);
  auto* count = reinterpret_cast<uint32_t*>(workspace + p.zeroed + 128);
  auto* packed_centers = reinterpret_cast<H*>(workspace + p.centers);
  auto* half_norm = reinterpret_cast<float*>(workspace + p.half_norm);
  auto* packed_rows = reinterpret_cast<H*>(workspace + p.rows);
  const bool pack = p.rows < p.bytes;
  const unsigned workers = multiprocessors() * 8;

  RSPRUNE_CUDA_CHECK(cudaMemsetAsync(center_bounds, 0, sizeof *center_bounds, stream));
  enqueue(stream, blocks_for(p.padded_clusters(), 8), 256, 0, pack_centers_kernel<H>, center, packed_centers,
          half_norm, center_bounds, s, p.padded_clusters(), p.pitch);

  for (int64_t first = 0; first < s.points; first += p.chunk) {
    const int64_t rows = std::min(p.chunk, s.points - first);
    const T* from = x + first * s.dim;
    float* measured = distance ? distance + first : nullptr;
    const H* operand;
    if (pack) {
      enqueue(stream, blocks_for(rows * p.pitch, 2048), 256, 0, pack_rows_kernel<T, H>, from, packed_rows,
              rows, s.dim, p.pitch);
      operand = packed_rows;
    } else {
      operand = reinterpret_cast<const H*>(from);
    }
    const mma::Operands<H> operands{operand, packed_centers, p.pitch};
    const ScreenedRows screened{reinterpret_cast<float*>(workspace + p.best),
                                reinterpret_cast<float*>(workspace + p.second),
                                reinterpret_cast<int32_t*>(workspace + p.label), rows, p.splits};
    const UnprovenRows unproven{reinterpret_cast<int32_t*>(workspace + p.unproven),
                                reinterpret_cast<float*>(workspace + p.threshold), count};
    RSPRUNE_CUDA_CHECK(cudaMemsetAsync(count, 0, sizeof *count, stream));
    screen<H>(route, operands, half_norm, screened, p, stream);
    if (bounds && !distance)
      enqueue(stream, blocks_for(rows, 256), 256, 0, certify_kernel, screened, bounds + first, center_bounds,
              s.dim, label + first, unproven);
    else
      enqueue(stream, blocks_for(rows, 8), 256, 0, certify_rows_kernel<H, T>, from, center, screened,
              center_bounds, s.dim, label + first, measured, unproven);
    enqueue(stream, std::min(workers, blocks_for(rows, mma::kRows)), mma::kThreads, mma::kRecheckBytes,
            mma::recheck_kernel<H, T>, from, center, operands, half_norm, unproven, s, p.center_tiles,
            label + first, measured, rechecked);
  }
}

template <typename T, typename H = T>
void launch(const void* x, Float type, const float* center, int32_t* label, float* distance,
            const float* bounds, int64_t* rechecked, void* workspace, AssignShape s, cudaStream_t stream) {
  const auto* rows = static_cast<const T*>(x);
  const AssignRoute chosen = route();
  if (chosen == AssignRoute::simple)
    launch_simple(rows, center, label, distance, rechecked, s, stream);
  else
    launch_matrix<T, H>(chosen, rows, type, center, label, distance,
                        reinterpret_cast<const RowBounds*>(bounds), rechecked, static_cast<char*>(workspace),
                        s, stream);
}

template <typename T, typename H = T>
void launch_bounds(const void* x, float* bounds, AssignShape s, cudaStream_t stream) {
  enqueue(stream, blocks_for(s.points, 8), 256, 0, row_bounds_kernel<H, T>, static_cast<const T*>(x),
          reinterpret_cast<RowBounds*>(bounds), s.points, s.dim);
}

}  // namespace

int64_t kmeans_workspace_cuda(const void* x, Float type, AssignShape shape) {
  const AssignRoute chosen = route();
  return chosen == AssignRoute::simple || shape.points == 0 ? 0 : make_plan(chosen, x, type, shape).bytes;
}

void kmeans_bounds_cuda(const void* x, Float type, float* bounds, AssignShape shape, void* stream) {
  if (shape.points == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  switch (type) {
    case Float::f32:
      return launch_bounds<float, __half>(x, bounds, shape, on);
    case Float::f16:
      return launch_bounds<__half>(x, bounds, shape, on);
    case Float::bf16:
      if (packs(type)) return launch_bounds<__nv_bfloat16, __half>(x, bounds, shape, on);
      return launch_bounds<__nv_bfloat16>(x, bounds, shape, on);
  }
}

void kmeans_assign_cuda(const void* x, Float type, const float* center, int32_t* label, float* distance,
                        const float* bounds, int64_t* rechecked, void* workspace, AssignShape shape,
                        void* stream) {
  if (shape.points == 0) return;
  const auto on = static_cast<cudaStream_t>(stream);
  switch (type) {
    case Float::f32:
      return launch<float, __half>(x, type, center, label, distance, bounds, rechecked, workspace, shape, on);
    case Float::f16:
      return launch<__half>(x, type, center, label, distance, bounds, rechecked, workspace, shape, on);
    case Float::bf16:
      if (packs(type))
        return launch<__nv_bfloat16, __half>(x, type, center, label, distance, bounds, rechecked, workspace,
                                             shape, on);
      return launch<__nv_bfloat16>(x, type, center, label, distance, bounds, rechecked, workspace, shape, on);
  }
}

}  // namespace rsprune
