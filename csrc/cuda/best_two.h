// The two largest scores of a row, and where the largest is. The column within a thread's part of a tile
// rides in the low bits of the score, so an update is one logical operation, two maxima and a minimum.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda/layout.h"

namespace rsprune {

constexpr int kColumnBits = 5;      // a thread has at most 32 columns of a row in a tile
constexpr float kUnusable = 3e38f;  // half norm of a centre that cannot be chosen: its score stays finite, as
                                    // an infinity with a column in its low bits would be NaN

RSPRUNE_INLINE uint32_t float_bits(float v) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(v);
#else
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
#endif
}
RSPRUNE_INLINE float bits_float(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(bits);
#else
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
#endif
}

// Moves the value by at most 2^kColumnBits - 1 units in the last place: less than 2^(kColumnBits - 23) of it.
RSPRUNE_INLINE float with_column(float score, int column) {
  constexpr uint32_t mask = (1u << kColumnBits) - 1;
#ifdef __CUDA_ARCH__
  uint32_t packed;  // one instruction, for which the compiler would take two
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(packed) : "r"(float_bits(score)), "r"(~mask), "r"(column));
  return bits_float(packed);
#else
  return bits_float((float_bits(score) & ~mask) | static_cast<uint32_t>(column));
#endif
}
RSPRUNE_INLINE int column_of(float packed) {
  return static_cast<int>(float_bits(packed) & ((1u << kColumnBits) - 1));
}

struct BestTwo {
  float best, second;
  RSPRUNE_INLINE static BestTwo none() { return {-INFINITY, -INFINITY}; }
  // Of a NaN and a number maximum and minimum (IEEE 754-2008) give the number: the best stays, and the second
  // becomes as good, so that nothing is proven of that row.
  RSPRUNE_INLINE void add(float packed) {
    second = fmaxf(second, fminf(packed, best));
    best = fmaxf(packed, best);
  }
};

// A row's result while parts of it are brought together; label -1: nothing was scored.
struct Screened {
  float best, second;
  int32_t label;
  RSPRUNE_INLINE void merge(const Screened& other) {
    second = fmaxf(fmaxf(second, other.second), fminf(best, other.best));
    if (other.best > best) best = other.best, label = other.label;
  }
};

}  // namespace rsprune
