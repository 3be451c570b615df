// Maps by which the tensor copy engine reads a matrix.
#pragma once
#include <cudaTypedefs.h>

#include <string>

#include "cuda/check.cuh"
#include "cuda/layout.h"

namespace rsprune {

// The driver's function is asked for at run time: nothing links libcuda, so the extension loads without it.
inline PFN_cuTensorMapEncodeTiled_v12000 encode_tiled() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  RSPRUNE_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                      cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess)
    throw std::runtime_error(
        "the CUDA driver has no cuTensorMapEncodeTiled; version 12.0 or later is needed");
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
}

// A row-major matrix of 16-bit values at a multiple of 16 bytes, pitch a multiple of 8, read in boxes of
// box_rows x 64 with the 128-byte swizzle; zeros outside.
inline CUtensorMap matrix_map(const void* data, bool half, int64_t rows, int64_t pitch, int box_rows) {
  CUtensorMap map{};
  const cuuint64_t size[] = {static_cast<cuuint64_t>(pitch), static_cast<cuuint64_t>(rows)};
  const cuuint64_t stride[] = {static_cast<cuuint64_t>(pitch) * 2};
  const cuuint32_t box[] = {kSlab, static_cast<cuuint32_t>(box_rows)}, step[] = {1, 1};
  const CUresult result = encode_tiled()(
      &map, half ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2,
      const_cast<void*>(data), size, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw std::runtime_error("cuTensorMapEncodeTiled failed with CUresult " + std::to_string(result));
  return map;
}

}  // namespace rsprune
