#include "cpu/entropy_kernel.h"
namespace rsprune { extern const EntropyKernel kEntropyAvx512; const EntropyKernel kEntropyAvx512 = kEntropyPortable; }
