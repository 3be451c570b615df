#include "cpu/entropy_kernel.h"
#include "cpu/isa.h"
#include "cpu/kmeans_kernel.h"
#include "cpu/texture_kernel.h"

namespace rsprune {

Isa best_isa() { return Isa::portable; }
const AssignKernel& assign_kernel(Isa) { return kAssignPortable; }
const EntropyKernel& entropy_kernel(Isa) { return kEntropyPortable; }
const TextureKernel& texture_kernel(Isa) { return kTexturePortable; }

}  // namespace rsprune
