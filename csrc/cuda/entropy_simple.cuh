// Plain kernel for every shape, and the reference for the fast one.
#pragma once
#include "cuda/entropy_term.cuh"

namespace rsprune::entropy_simple {

constexpr int kThreads = 256;  // one per bin when a histogram is summed
constexpr int kWarps = kThreads / 32;
constexpr int kCopies = 4;  // histograms that warps share, so that fewer atomics meet
constexpr int64_t kTable = 4097;

// One block per patch, its bands in turn.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    patch_entropy_kernel(const T* __restrict__ image, const uint8_t* __restrict__ valid,
                         const uint8_t* __restrict__ lut, float* __restrict__ out, EntropyShape s) {
  constexpr int64_t kValues = int64_t{1} << (8 * sizeof(T));
  __shared__ uint32_t histogram[kCopies][kThreads];
  __shared__ uint32_t table[kTable];  // T[c]: 2^32 is above 4096 log2 4096 2^16
  __shared__ uint64_t sums[kWarps];
  __shared__ uint32_t counts[kWarps];
  const int bin = threadIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  const int64_t area = min(s.patch, s.height) * min(s.patch, s.width);
  for (int64_t c = threadIdx.x; c < min(kTable, area + 1); c += kThreads)
    table[c] = static_cast<uint32_t>(entropy_term(c));

  const int64_t rows = s.rows(), cols = s.cols();
  const int64_t patches = s.images * rows * cols;
  for (int64_t p = blockIdx.x; p < patches; p += gridDim.x) {
    const int64_t n = p / (rows * cols), y = p / cols % rows * s.patch, x = p % cols * s.patch;
    const int height = static_cast<int>(min(s.patch, s.height - y));
    const int width = static_cast<int>(min(s.patch, s.width - x));
    const int64_t first = (n * s.height + y) * s.width + x;
    for (int c = 0; c < s.channels; ++c) {
      const uint8_t* bins = lut ? lut + (s.lut_bands == 1 ? 0 : c * kValues) : nullptr;
      for (int i = 0; i < kCopies; ++i) histogram[i][bin] = 0;
      __syncthreads();
      for (int row = warp; row < height; row += kWarps) {
        const int64_t pixel = first + row * s.width;
        for (int i = lane; i < width; i += 32) {
          if (valid && !valid[pixel + i]) continue;
          const T value = image[(pixel + i) * s.channels + c];
          atomicAdd(&histogram[warp % kCopies][bins ? bins[value] : value & 255], 1u);
        }
      }
      __syncthreads();

      uint32_t count = 0;
      for (int i = 0; i < kCopies; ++i) count += histogram[i][bin];
      uint64_t sum = count < kTable ? table[count] : entropy_term(count);
      for (int offset = 16; offset; offset /= 2) {
        sum += __shfl_down_sync(~0u, sum, offset);
        count += __shfl_down_sync(~0u, count, offset);
      }
      if (lane == 0) sums[warp] = sum, counts[warp] = count;
      __syncthreads();
      if (threadIdx.x == 0) {
        uint64_t total = 0;
        int64_t counted = 0;
        for (int w = 0; w < kWarps; ++w) total += sums[w], counted += counts[w];
        const double scale = static_cast<double>(counted) * kEntropyScale;
        out[p * s.channels + c] =
            counted ? static_cast<float>(static_cast<double>(entropy_term(counted) - total) / scale)
                    : nanf("");
      }
    }
  }
}

}  // namespace rsprune::entropy_simple
