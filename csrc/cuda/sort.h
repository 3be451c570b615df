#pragma once
#include <cuda_runtime.h>

#include <cstdint>

namespace rsprune {

// Stable sort of rows by the low `bits` bits of their labels; `memory` is of sort_bytes bytes on the device.
int64_t sort_bytes(int64_t n, int bits);
void sort_by_label(const int32_t* label, const int32_t* row, int32_t* sorted_label, int32_t* sorted_row,
                   int64_t n, int bits, void* memory, int64_t bytes, cudaStream_t stream);

}  // namespace rsprune
