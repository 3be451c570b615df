#include "cuda/check.cuh"
#include "device.h"

namespace rsprune {

constexpr int kOldestMajor = 8;  // Ampere: older devices lack instructions that the kernels are made of

const char* cuda_unavailable() {
  int count = 0;
  cudaError_t error = cudaGetDeviceCount(&count);
  bool able = false;
  for (int device = 0; device < count && error == cudaSuccess; ++device) {
    int major = 0;
    error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    able = able || major >= kOldestMajor;
  }
  if (error == cudaSuccess)
    return able        ? nullptr
           : count > 0 ? "no CUDA device of compute capability 8.0 or later"
                       : "no CUDA device";
  cudaGetLastError();  // an answer, not an error: leave none behind
  return cudaGetErrorString(error);
}

DeviceGuard::DeviceGuard(int device) {
  RSPRUNE_CUDA_CHECK(cudaGetDevice(&previous));
  RSPRUNE_CUDA_CHECK(cudaSetDevice(device));
}
DeviceGuard::~DeviceGuard() { cudaSetDevice(previous); }

}  // namespace rsprune
