#pragma once
#include <cstdint>
#include <memory>
#include <new>

namespace rsprune {

// Uninitialised values on a cache line boundary.
template <typename T>
class AlignedBuffer {
 public:
  explicit AlignedBuffer(int64_t size = 0) : data_(size ? new (std::align_val_t(64)) T[size] : nullptr) {}
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete[](p, std::align_val_t(64)); }
  };
  std::unique_ptr<T[], Free> data_;
};

}  // namespace rsprune
