// Where values lie: tiles in shared memory, and fragments of matrix instructions in registers. Plain C++, so
// that the CPU tests check the same arithmetic that the kernels run.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define RSPRUNE_INLINE __host__ __device__ __forceinline__
#else
#define RSPRUNE_INLINE inline
#endif

namespace rsprune {

constexpr int kSlab = 64;         // dimensions of a shared-memory tile: 128 bytes of 16-bit values a row
constexpr int kRowBytes = 128;    // so that a row is one span of the 128-byte swizzle
constexpr int kChunk = 8;         // 16-bit values in 16 bytes
constexpr int kCenterTile = 128;  // centres of a tile

// Byte offset of 16-byte chunk `chunk` (0..7) of row `row` in a tile with the 128-byte swizzle, as the tensor
// copy engine writes it and wgmma reads it: chunks of a row are permuted by the row's number modulo 8. The
// tile starts at a multiple of 1024 bytes. Eight rows at one logical chunk touch all 32 banks: no conflicts.
RSPRUNE_INLINE constexpr int swizzled(int row, int chunk) {
  return row * kRowBytes + ((chunk ^ (row & 7)) << 4);
}

// Descriptor by which wgmma reads a K-major operand with the 128-byte swizzle: address / 16 in bits 0-13, the
// distance between groups of 8 rows (1024 bytes) / 16 in bits 32-45, swizzle mode 1 in bits 62-63; the field
// in bits 16-29 is not used in this mode. A step of 16 dimensions inside the slab adds 32 bytes to the
// address: the hardware applies the swizzle to the address bits, so the start may lie inside the span.
RSPRUNE_INLINE constexpr uint64_t matrix_descriptor(uint32_t shared_address) {
  return (static_cast<uint64_t>(shared_address & 0x3ffff) >> 4) | uint64_t{1} << 16 |
         uint64_t{8 * kRowBytes >> 4} << 32 | uint64_t{1} << 62;
}

// Accumulators of wgmma m64nN: value i of thread t (0..127) of the warpgroup.
RSPRUNE_INLINE constexpr int wgmma_row(int t, int i) { return t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8; }
RSPRUNE_INLINE constexpr int wgmma_column(int t, int i) { return i / 4 * 8 + t % 4 * 2 + i % 2; }

// mma.sync m16n8k16, lane l: accumulator i.
RSPRUNE_INLINE constexpr int mma_row(int lane, int i) { return lane / 4 + i / 2 * 8; }
RSPRUNE_INLINE constexpr int mma_column(int lane, int i) { return lane % 4 * 2 + i % 2; }

// ldmatrix .x4: the row and chunk (of 8 values) whose address a lane gives, so that register i of every lane
// is fragment i of mma.sync. Operand A: 16 rows x 16 dimensions. Operand B: 16 columns x 16 dimensions;
// registers 0, 1 are the two halves of the first 8 columns, 2, 3 those of the others.
RSPRUNE_INLINE constexpr int load_a_row(int lane) { return lane % 16; }
RSPRUNE_INLINE constexpr int load_a_chunk(int lane) { return lane / 16; }
RSPRUNE_INLINE constexpr int load_b_row(int lane) { return lane / 16 * 8 + lane % 8; }
RSPRUNE_INLINE constexpr int load_b_chunk(int lane) { return lane / 8 % 2; }

// Stage of a ring of shared-memory buffers, and the parity of its barriers' current phase. A consumer waits
// for phase `parity` of "full"; a producer for `parity ^ 1` of "empty", which on a fresh barrier has passed.
struct RingPosition {
  int stage = 0;
  uint32_t parity = 0;
  RSPRUNE_INLINE void advance(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

// Work of a persistent kernel: tiles of rows x groups of centre tiles, the groups of one tile side by side,
// so that blocks that run at the same time read the same rows from L2.
struct WorkItem {
  int64_t row_tile;
  int first_center_tile, last_center_tile;  // [first, last)
  int split;
};
RSPRUNE_INLINE WorkItem work_item(int64_t item, int splits, int center_tiles) {
  const int split = static_cast<int>(item % splits);
  const int64_t tiles = center_tiles;
  return {item / splits, static_cast<int>(tiles * split / splits),
          static_cast<int>(tiles * (split + 1) / splits), split};
}

}  // namespace rsprune
