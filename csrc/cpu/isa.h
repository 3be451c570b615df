// Which instruction set the CPU kernels use: the best this machine has, or RSPRUNE_ISA, read at each call.
#pragma once

namespace rsprune {

enum class Isa { portable, avx2, avx512, avx512bf16 };

// Throws std::invalid_argument if RSPRUNE_ISA names an unknown set or one that this machine lacks.
Isa isa();
const char* isa_name(Isa isa);

// The best set of this machine among those compiled in (isa_x86.cpp or isa_other.cpp).
Isa best_isa();

}  // namespace rsprune
