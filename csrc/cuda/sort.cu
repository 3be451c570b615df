#include <cub/device/device_radix_sort.cuh>

#include "cuda/check.cuh"
#include "cuda/sort.h"

namespace rsprune {

int64_t sort_bytes(int64_t n, int bits) {
  size_t bytes = 0;
  RSPRUNE_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(
      nullptr, bytes, static_cast<const uint32_t*>(nullptr), static_cast<uint32_t*>(nullptr),
      static_cast<const int32_t*>(nullptr), static_cast<int32_t*>(nullptr), static_cast<int>(n), 0, bits));
  return static_cast<int64_t>(bytes);
}

void sort_by_label(const int32_t* label, const int32_t* row, int32_t* sorted_label, int32_t* sorted_row,
                   int64_t n, int bits, void* memory, int64_t bytes, cudaStream_t stream) {
  size_t size = static_cast<size_t>(bytes);
  RSPRUNE_CUDA_CHECK(cub::DeviceRadixSort::SortPairs(memory, size, reinterpret_cast<const uint32_t*>(label),
                                                     reinterpret_cast<uint32_t*>(sorted_label), row,
                                                     sorted_row, static_cast<int>(n), 0, bits, stream));
}

}  // namespace rsprune
