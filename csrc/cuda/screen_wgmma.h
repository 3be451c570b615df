#pragma once
#include <cuda_runtime.h>

#include "cuda/plan.h"
#include "cuda/screened.cuh"

namespace rsprune::screen_wgmma {

constexpr int kRows = 256;         // of a block
constexpr int kResidentDim = 128;  // up to here, rows stay in shared memory

// x [rows, pitch], center [padded, pitch], both float16 (`half`) or both bfloat16, at multiples of 16 bytes.
// Compiled for sm_90a only; throws where the driver has no tensor maps.
void launch(const void* x, const void* center, bool half, const float* half_norm, ScreenedRows screened,
            const AssignPlan& plan, cudaStream_t stream);

}  // namespace rsprune::screen_wgmma
