// Small numbers as they are: a process may have its processor take those below 2^-126 for 0
// (torch.set_flush_denormal, or a library built with -ffast-math), and distances are exact with them only.
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace rsprune {

// For this scope and thread; a thread that is begun inside has to say so itself. Elsewhere than on x86 it
// does nothing.
struct KeepDenormals {
#if defined(__x86_64__)
  KeepDenormals() { _mm_setcsr(before & ~kFlush); }
  ~KeepDenormals() { _mm_setcsr(before); }
  static constexpr unsigned kFlush = 0x8040;  // results, and operands
  const unsigned before = _mm_getcsr();
#else
  KeepDenormals() {}
  ~KeepDenormals() {}
#endif
  KeepDenormals(const KeepDenormals&) = delete;
  KeepDenormals& operator=(const KeepDenormals&) = delete;
};

}  // namespace rsprune
