#include "cuda/check.cuh"
#include "device.h"

namespace rsprune {

const char* cuda_unavailable() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess) return count > 0 ? nullptr : "no CUDA device";
  cudaGetLastError();  // an answer, not an error: leave none behind
  return cudaGetErrorString(error);
}

DeviceGuard::DeviceGuard(int device) {
  RSPRUNE_CUDA_CHECK(cudaGetDevice(&previous));
  RSPRUNE_CUDA_CHECK(cudaSetDevice(device));
}
DeviceGuard::~DeviceGuard() { cudaSetDevice(previous); }

}  // namespace rsprune
