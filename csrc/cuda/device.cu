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

// Making a device current makes a context on it, so nothing is set that is current already.
DeviceGuard::DeviceGuard(int device) : own(device) {
  RSPRUNE_CUDA_CHECK(cudaGetDevice(&previous));
  if (previous != own) RSPRUNE_CUDA_CHECK(cudaSetDevice(own));
}
DeviceGuard::~DeviceGuard() {
  // A device that cannot be made current again is for whoever uses it next to say.
  if (previous != own && cudaSetDevice(previous) != cudaSuccess) cudaGetLastError();
}

}  // namespace rsprune
