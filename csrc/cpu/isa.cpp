#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>

#include "tensor.h"

namespace rsprune {

const char* isa_name(Isa isa) {
  constexpr const char* names[] = {"portable", "avx2", "avx512", "avx512bf16"};
  return names[static_cast<int>(isa)];
}

Isa isa() {
  static const Isa best = best_isa();
  const char* wanted = std::getenv("RSPRUNE_ISA");
  if (!wanted || !*wanted) return best;
  for (Isa each : {Isa::portable, Isa::avx2, Isa::avx512, Isa::avx512bf16}) {
    if (std::strcmp(wanted, isa_name(each)) != 0) continue;
    RSPRUNE_CHECK(each <= best, "RSPRUNE_ISA is ", wanted, ", but this machine has no more than ",
                  isa_name(best));
    return each;
  }
  fail("RSPRUNE_ISA must be portable, avx2, avx512 or avx512bf16, got ", wanted);
}

}  // namespace rsprune
