// A borrowed tensor. Kernels see raw pointers; this is what the bindings validate before they hand
// those pointers over. Every message names the argument, what it must be and what it was.
#pragma once
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "dlpack.h"

namespace rsprune {

template <typename... Args>
[[noreturn]] void fail(Args&&... parts) {
  std::string message;
  ((message +=
    [](auto&& p) {
      if constexpr (std::is_arithmetic_v<std::decay_t<decltype(p)>>)
        return std::to_string(p);
      else
        return std::string(p);
    }(parts)),
   ...);
  throw std::invalid_argument(message);
}
#define RSPRUNE_CHECK(condition, ...)               \
  do {                                              \
    if (!(condition)) ::rsprune::fail(__VA_ARGS__); \
  } while (0)

struct Tensor {
  const DLTensor* t = nullptr;
  bool readonly = false;

  explicit operator bool() const { return t != nullptr; }
  int64_t size(int i) const { return t->shape[i]; }
  int ndim() const { return t->ndim; }
  bool is_cuda() const { return t->device.type == kDLCUDA || t->device.type == kDLCUDAManaged; }
  bool is_host() const { return t->device.type == kDLCPU || t->device.type == kDLCUDAHost; }
  bool is(DLDataTypeCode code, int bits) const {
    return t->dtype.code == code && t->dtype.bits == bits && t->dtype.lanes == 1;
  }

  bool contiguous() const {
    if (!t->strides) return true;
    int64_t expected = 1;
    for (int i = 0; i < ndim(); ++i)
      if (t->shape[i] == 0) return true;
    for (int i = ndim() - 1; i >= 0; --i) {
      if (t->shape[i] != 1 && t->strides[i] != expected) return false;
      expected *= t->shape[i];
    }
    return true;
  }

  std::string shape_text() const {
    std::string text = "[";
    for (int i = 0; i < ndim(); ++i) text += (i ? ", " : "") + std::to_string(t->shape[i]);
    return text + "]";
  }
  std::string dtype_text() const {
    const char* kind = t->dtype.code == kDLInt      ? "int"
                       : t->dtype.code == kDLUInt   ? "uint"
                       : t->dtype.code == kDLFloat  ? "float"
                       : t->dtype.code == kDLBfloat ? "bfloat"
                                                    : nullptr;
    if (t->dtype.code == kDLBool) return "bool";
    return kind ? kind + std::to_string(t->dtype.bits) : "type code " + std::to_string(t->dtype.code);
  }
  std::string device_text() const {
    if (is_host()) return "cpu";
    if (is_cuda()) return "cuda:" + std::to_string(t->device.id);
    return "device type " + std::to_string(t->device.type);
  }

  // Address of the first element; the caller has checked the dtype.
  const void* data(const char* name) const {
    RSPRUNE_CHECK(contiguous(), name, " must be C-contiguous, got a strided array of shape ", shape_text());
    return static_cast<const char*>(t->data) + t->byte_offset;
  }
  void* mutable_data(const char* name) const {
    RSPRUNE_CHECK(!readonly, name, " must be writable, got a read-only array");
    return const_cast<void*>(data(name));
  }
};

inline void check_shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> want) {
  std::string text = "[";
  bool equal = tensor.ndim() == static_cast<int>(want.size());
  int i = 0;
  for (int64_t n : want) {
    equal = equal && tensor.size(i) == n;
    text += (i++ ? ", " : "") + std::to_string(n);
  }
  RSPRUNE_CHECK(equal, name, " must have shape ", text, "], got ", tensor.shape_text());
}

inline void check_dtype(const char* name, const Tensor& tensor, DLDataTypeCode code, int bits,
                        const char* want) {
  RSPRUNE_CHECK(tensor.is(code, bits), name, " must be ", want, ", got ", tensor.dtype_text());
}

inline void check_same_device(std::initializer_list<std::pair<const char*, const Tensor*>> tensors) {
  const auto& [first, a] = *tensors.begin();
  for (const auto& [name, b] : tensors) {
    RSPRUNE_CHECK(b->is_host() || b->is_cuda(), name, " must be on the CPU or a CUDA device, got ",
                  b->device_text());
    const bool same = a->is_cuda() ? b->is_cuda() && a->t->device.id == b->t->device.id : b->is_host();
    RSPRUNE_CHECK(same, name, " must be on the same device as ", first, ", ", a->device_text(), ", got ",
                  b->device_text());
  }
}

}  // namespace rsprune
