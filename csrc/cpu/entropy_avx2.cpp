#include "cpu/entropy_kernel.h"
namespace rsprune { extern const EntropyKernel kEntropyAvx2; const EntropyKernel kEntropyAvx2 = kEntropyPortable; }
