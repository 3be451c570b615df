#pragma once
#include "cuda/ptx.cuh"

namespace rsprune {

inline CUtensorMap matrix_map(const void* data, bool, int64_t rows, int64_t pitch, int box_rows) {
  if (reinterpret_cast<uintptr_t>(data) % 16 != 0 || pitch % 8 != 0 || box_rows > 256)
    throw std::runtime_error("a tensor map that the driver would refuse");
  return {static_cast<const uint16_t*>(data), rows, pitch, box_rows};
}

}  // namespace rsprune
