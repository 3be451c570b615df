// One warp per patch, its own histogram of each band in shared memory, and one read of the pixels in pieces
// of 16 or 8 bytes. Adding 1 to a shared counter is one instruction that counts equal bins of a warp together
// (ATOMS.POPC.INC), so constant and smooth patches are not slower than noise. For patches of at most 4096
// pixels: sums of T then fit 32 bits.
#pragma once
#include "cuda/entropy_term.cuh"
#include "cuda/layout.h"
#include "cuda/ptx.cuh"

namespace rsprune::entropy_fast {

constexpr int kBins = 256;
constexpr int kMostArea = 4096;
constexpr int kMostBands = 16;

// A histogram is 1024 bytes at a multiple of 1024, so a counter's address is bits of the value and bits of
// the base put together: one shift and one logical operation. Band b's counters are permuted by b, so that
// bands of equal values are not in one bank; the sum over all counters does not mind.
constexpr uint32_t kHistogramBytes = kBins * 4;
RSPRUNE_INLINE uint32_t histogram_base(int first, int band) {
  return static_cast<uint32_t>(first + band) * kHistogramBytes | (static_cast<uint32_t>(band) * 32 & 0x3e0);
}

// kBands: bands of the image, or 0: read at run time, up to kMostBands.
template <int kBands>
struct Block {
  static constexpr int kWarps = kBands ? 8 : 4;
  static int shared_bytes(int bands, int64_t area) {
    return static_cast<int>(1024 + kWarps * bands * int64_t{kHistogramBytes} + (area + 1) * 4);
  }
};

// Rows of all whole patches start at multiples of kBytes and are multiples of it long.
template <typename T>
inline bool fits(EntropyShape s, const void* image, int bytes) {
  const int64_t pixel = s.channels * static_cast<int64_t>(sizeof(T));
  return reinterpret_cast<uintptr_t>(image) % bytes == 0 && s.patch % bytes * pixel % bytes == 0 &&
         s.width * pixel % bytes == 0;
}

template <typename T, int kBands, int kBytes, bool kTable>
__global__ void __launch_bounds__(Block<kBands>::kWarps * 32, 4)
    patch_entropy_kernel(const T* __restrict__ image, const uint8_t* __restrict__ valid,
                         const uint8_t* __restrict__ lut, float* __restrict__ out, EntropyShape s,
                         bool whole_pieces) {
  constexpr int kWarps = Block<kBands>::kWarps;
  constexpr int kWords = kBytes / 4, kValues = kBytes / sizeof(T);  // of a piece
  struct alignas(kBytes) Piece {
    uint32_t word[kWords];
  };
  unsigned char* shared = ptx::dynamic_shared();
  const int bands = kBands ? kBands : static_cast<int>(s.channels);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, own = warp * bands;
  const int area = static_cast<int>(min(s.patch, s.height) * min(s.patch, s.width));
  auto* table = reinterpret_cast<uint32_t*>(shared + kWarps * bands * kHistogramBytes);
  auto* histogram = reinterpret_cast<uint32_t*>(shared) + own * kBins;

  for (int c = threadIdx.x; c <= area; c += kWarps * 32) table[c] = static_cast<uint32_t>(entropy_term(c));
  for (int i = lane; i < bands * kBins; i += 32) histogram[i] = 0;
  __syncthreads();

  const auto add = [&](uint32_t four_bins, uint32_t base) {  // 4 x bin in bits 2-9, anything in the others
    atomicAdd(reinterpret_cast<uint32_t*>(shared + ((four_bins & 0x3fc) ^ base)), 1u);
  };
  const auto add_value = [&](T value, int band) {
    uint32_t bin = value;
    if constexpr (kTable)
      bin = __ldg(lut + (s.lut_bands == 1 ? 0 : band) * (int64_t{1} << 8 * sizeof(T)) + value);
    add(bin << 2, histogram_base(own, band));
  };

  const int64_t rows = s.rows(), cols = s.cols();
  const int64_t patches = s.images * rows * cols;
  const int turns = 32 / bands;  // patches of a warp whose results its lanes hold until they are written
  const int64_t per_block = static_cast<int64_t>(turns) * kWarps;
  for (int64_t base = blockIdx.x * per_block; base < patches; base += gridDim.x * per_block) {
    uint32_t own_sum = 0, own_count = 0;
    int64_t p = base + warp;  // warps have neighbours at the same time: they share cache lines
    int64_t patch_row = p / cols, col = p % cols, n = patch_row / rows;
    patch_row -= n * rows;
    for (int turn = 0; turn < turns && p < patches; ++turn, p += kWarps) {
      const int64_t y = patch_row * s.patch, x = col * s.patch;
      const int height = static_cast<int>(min(s.patch, s.height - y));
      const int width = static_cast<int>(min(s.patch, s.width - x));
      const int64_t first = (n * s.height + y) * s.width + x;
      for (col += kWarps; col >= cols; col -= cols)  // of the next turn; a division would take longer
        if (++patch_row == rows) patch_row = 0, ++n;

      if (whole_pieces && width == s.patch) {
        const int per_row = width * bands / kValues;
        int row = lane / per_row, piece = lane % per_row;
        const int row_step = 32 / per_row, piece_step = 32 % per_row;
        const auto load = [&] {
          return *reinterpret_cast<const Piece*>(image + (first + row * s.width) * bands + piece * kValues);
        };
        Piece next{};
        if (row < height) next = load();
        while (row < height) {
          const Piece values = next;
          const int64_t pixel = first + row * s.width;
          const int at = piece * kValues;
          row += row_step;
          piece += piece_step;
          if (piece >= per_row) piece -= per_row, ++row;
          if (row < height) next = load();  // on its way while these are counted

          if (valid) {
#pragma unroll 1
            for (int i = at; i < at + kValues; ++i)
              if (valid[pixel + i / bands]) add_value(image[pixel * bands + i], i % bands);
          } else {
            int band = at % bands;
            uint32_t base[kBands ? kBands : 1];  // of the bands in the order in which the piece has them
#pragma unroll
            for (int i = 0; i < kBands; ++i) base[i] = histogram_base(own, (band + i) % bands);
#pragma unroll
            for (int i = 0; i < kValues; ++i) {
              constexpr int kPerWord = 4 / sizeof(T);
              const uint32_t word = values.word[i / kPerWord];
              const int bit = i % kPerWord * 8 * static_cast<int>(sizeof(T));
              if constexpr (kTable)
                add_value(static_cast<T>(word >> bit), band);
              else
                add(bit < 2 ? word << 2 : word >> (bit - 2),
                    kBands ? base[i % (kBands ? kBands : 1)] : histogram_base(own, band));
              band = band + 1 == bands ? 0 : band + 1;
            }
          }
        }
      } else {
        for (int i = lane; i < height * width; i += 32) {
          const int64_t pixel = first + i / width * s.width + i % width;
          if (valid && !valid[pixel]) continue;
          for (int band = 0; band < bands; ++band) add_value(image[pixel * bands + band], band);
        }
      }
      __syncwarp();

      for (int band = 0; band < bands; ++band) {
        uint32_t sum = 0, counted = 0;
#pragma unroll
        for (int i = 0; i < kBins; i += 32) {
          uint32_t* bin = histogram + band * kBins + i + lane;
          counted += *bin;
          sum += table[*bin];
          *bin = 0;
        }
        sum = __reduce_add_sync(~0u, sum);
        counted = __reduce_add_sync(~0u, counted);
        if (lane == turn * bands + band) own_sum = sum, own_count = counted;
      }
      __syncwarp();
    }
    const int turn = lane / bands;
    p = base + turn * kWarps + warp;
    if (turn < turns && p < patches) {
      const double scale = static_cast<double>(own_count) * kEntropyScale;
      out[p * bands + lane % bands] =
          own_count ? static_cast<float>(static_cast<double>(table[own_count] - own_sum) / scale) : nanf("");
    }
  }
}

}  // namespace rsprune::entropy_fast
