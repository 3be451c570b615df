// Lets a bound function take `Tensor`: any Python object with __dlpack__ (NumPy, PyTorch, CuPy, JAX)
// converts, without a copy, for the duration of the call; a NumPy array through its buffer, which is faster.
// None converts to an absent tensor; arguments that must be there say .none(false).
#pragma once
#include <pybind11/pybind11.h>

#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "tensor.h"

namespace pybind11::detail {

template <>
struct type_caster<rsprune::Tensor> {
  PYBIND11_TYPE_CASTER(rsprune::Tensor, const_name("Tensor"));

  bool load(handle src, bool) {
    if (src.is_none() || load_buffer(src)) return true;
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
  // NumPy arrays, at a tenth of the cost of DLPack; false for what the buffer protocol cannot say.
  bool load_buffer(handle src) {
    if (!PyObject_CheckBuffer(src.ptr()) || !hasattr(src, "__dlpack__")) return false;
    view.reset(new Py_buffer{});
    if (PyObject_GetBuffer(src.ptr(), view.get(), PyBUF_RECORDS_RO) != 0) {
      PyErr_Clear();
      return false;
    }
    const std::string_view format = view->format ? view->format : "B";
    const auto known = std::string_view("?BHILQbhilqefd").find(format);
    if (format.size() != 1 || known == std::string_view::npos) return false;
    const auto code = known == 0 ? kDLBool : known < 6 ? kDLUInt : known < 11 ? kDLInt : kDLFloat;
    strides.assign(view->strides, view->strides + view->ndim);
    for (int64_t& stride : strides) {
      if (stride % view->itemsize) return false;
      stride /= view->itemsize;
    }
    const auto bits = static_cast<uint8_t>(8 * view->itemsize);
    static_assert(sizeof(Py_ssize_t) == sizeof(int64_t));
    auto* shape = reinterpret_cast<int64_t*>(view->shape);
    tensor = {view->buf, {kDLCPU, 0}, view->ndim, {code, bits, 1}, shape, strides.data(), 0};
    value = {&tensor, view->readonly != 0};
    return true;
  }

  template <typename T>
  T* pointer(const char* name) const {
    return PyCapsule_IsValid(owner.ptr(), name) ? static_cast<T*>(PyCapsule_GetPointer(owner.ptr(), name))
                                                : nullptr;
  }
  object owner;

  struct Release {
    void operator()(Py_buffer* view) const {
      PyBuffer_Release(view);  // also of one that was never filled
      delete view;
    }
  };
  std::unique_ptr<Py_buffer, Release> view;
  std::vector<int64_t> strides;
  DLTensor tensor{};
};

}  // namespace pybind11::detail
