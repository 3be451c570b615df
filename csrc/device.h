#pragma once

namespace rsprune {

// Why CUDA kernels cannot run here, in words; nullptr when they can. Never throws.
const char* cuda_unavailable();

// Makes `device` current for this scope (CUDA builds only).
struct DeviceGuard {
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  const int own;
  int previous = 0;
};

}  // namespace rsprune
