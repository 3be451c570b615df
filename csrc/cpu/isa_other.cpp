#include "cpu/entropy_kernel.h"
#include "cpu/isa.h"
#include "cpu/kmeans_kernel.h"

namespace rsprune {

Isa best_isa() { return Isa::portable; }
const AssignKernel& assign_kernel(Isa) { return kAssignPortable; }
const EntropyKernel& entropy_kernel(Isa) { return kEntropyPortable; }

}  // namespace rsprune
