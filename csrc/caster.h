// Lets a bound function take `Tensor`: any Python object with __dlpack__ (NumPy, PyTorch, CuPy, JAX)
// converts, without a copy, for the duration of the call. None converts to an absent tensor; arguments that
// must be there say .none(false).
#pragma once
#include <pybind11/pybind11.h>

#include <utility>

#include "tensor.h"

namespace pybind11::detail {

template <>
struct type_caster<rsprune::Tensor> {
  PYBIND11_TYPE_CASTER(rsprune::Tensor, const_name("Tensor"));

  bool load(handle src, bool) {
    if (src.is_none()) return true;
    if (!hasattr(src, "__dlpack__") || !hasattr(src, "__dlpack_device__")) return false;
    const auto device = src.attr("__dlpack_device__")().cast<std::pair<int, int>>();
    dict kwargs;
    kwargs["max_version"] = make_tuple(1, 0);
    // -1: we launch on the caller's own stream, so the producer need not synchronise.
    if (device.first == kDLCUDA || device.first == kDLCUDAManaged) kwargs["stream"] = -1;
    try {
      owner = src.attr("__dlpack__")(**kwargs);
    } catch (error_already_set& error) {
      if (!error.matches(PyExc_TypeError)) throw;
      kwargs.attr("pop")("max_version");  // producer predates DLPack 1.0
      owner = src.attr("__dlpack__")(**kwargs);
    }
    // We never rename the capsule to "used_*", so its own destructor frees the tensor with `owner`.
    if (auto* m = pointer<DLManagedTensorVersioned>("dltensor_versioned")) {
      value = {&m->tensor, (m->flags & kDLFlagReadOnly) != 0};
    } else if (auto* m = pointer<DLManagedTensor>("dltensor")) {
      value = {&m->tensor, false};
    } else {
      return false;
    }
    return true;
  }

 private:
  template <typename T>
  T* pointer(const char* name) const {
    return PyCapsule_IsValid(owner.ptr(), name) ? static_cast<T*>(PyCapsule_GetPointer(owner.ptr(), name))
                                                : nullptr;
  }
  object owner;
};

}  // namespace pybind11::detail
