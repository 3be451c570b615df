#include "cpu/entropy_kernel.h"
#include "cpu/isa.h"
#include "cpu/kmeans_kernel.h"
#include "cpu/texture_kernel.h"

namespace rsprune {

Isa best_isa() {
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bitalg") &&
                      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("gfni");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return Isa::avx512bf16;
  if (avx512) return Isa::avx512;
  return avx2 ? Isa::avx2 : Isa::portable;
}

const AssignKernel& assign_kernel(Isa isa) {
  switch (isa) {
    case Isa::avx512bf16:
      return kAssignAvx512Bf16;
    case Isa::avx512:
      return kAssignAvx512;
    case Isa::avx2:
      return kAssignAvx2;
    default:
      return kAssignPortable;
  }
}

const EntropyKernel& entropy_kernel(Isa isa) {
  switch (isa) {
    case Isa::avx512bf16:
    case Isa::avx512:
      return kEntropyAvx512;
    case Isa::avx2:
      return kEntropyAvx2;
    default:
      return kEntropyPortable;
  }
}

const TextureKernel& texture_kernel(Isa isa) {
  switch (isa) {
    case Isa::avx512bf16:
    case Isa::avx512:
      return kTextureAvx512;
    case Isa::avx2:
      return kTextureAvx2;
    default:
      return kTexturePortable;
  }
}

}  // namespace rsprune
