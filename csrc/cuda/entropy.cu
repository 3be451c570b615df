#include <cstdlib>

#include "cuda/entropy_fast.cuh"
#include "cuda/entropy_simple.cuh"
#include "cuda/launch.cuh"
#include "cuda/route.h"
#include "entropy.h"

namespace rsprune {
namespace {

struct Call {
  const void* image;
  const uint8_t *valid, *lut;
  float* out;
  EntropyShape shape;
  cudaStream_t stream;
  int64_t patches() const { return shape.images * shape.rows() * shape.cols(); }
  int64_t area() const { return std::min(shape.patch, shape.height) * std::min(shape.patch, shape.width); }
};

template <typename T>
void launch_simple(const Call& c) {
  const auto blocks = std::min<int64_t>(c.patches(), 1 << 12);  // each builds the table
  enqueue(c.stream, blocks, entropy_simple::kThreads, 0, entropy_simple::patch_entropy_kernel<T>,
          static_cast<const T*>(c.image), c.valid, c.lut, c.out, c.shape);
}

template <typename T, int kBands, int kBytes, bool kTable>
void launch_fast(const Call& c, bool whole_pieces) {
  using Block = entropy_fast::Block<kBands>;
  const auto kernel = entropy_fast::patch_entropy_kernel<T, kBands, kBytes, kTable>;
  const int bands = static_cast<int>(c.shape.channels), bytes = Block::shared_bytes(bands, c.area());
  const int64_t per_block = 32 / bands * Block::kWarps, batches = (c.patches() + per_block - 1) / per_block;
  const int64_t blocks = std::min<int64_t>(batches, resident_blocks(kernel, Block::kWarps * 32, bytes));
  enqueue(c.stream, blocks, Block::kWarps * 32, bytes, kernel, static_cast<const T*>(c.image), c.valid, c.lut,
          c.out, c.shape, whole_pieces);
}

// 16 bytes at a time, or 8 where a patch has too few for a warp or its rows start between multiples of 16.
template <typename T, int kBands, bool kTable>
void launch_pieces(const Call& c) {
  const bool sixteen = entropy_fast::fits<T>(c.shape, c.image, 16) &&
                       c.area() * c.shape.channels * static_cast<int64_t>(sizeof(T)) >= 512;
  if (sixteen)
    launch_fast<T, kBands, 16, kTable>(c, true);
  else
    launch_fast<T, kBands, 8, kTable>(c, entropy_fast::fits<T>(c.shape, c.image, 8));
}

void launch_fast(const Call& c, Pixel type) {
  if (type == Pixel::u16)
    return c.shape.channels == 1 ? launch_pieces<uint16_t, 1, true>(c) : launch_pieces<uint16_t, 0, true>(c);
  if (c.lut) return launch_pieces<uint8_t, 0, true>(c);
  switch (c.shape.channels) {
    case 1:
      return launch_pieces<uint8_t, 1, false>(c);
    case 3:
      return launch_pieces<uint8_t, 3, false>(c);
    case 4:
      return launch_pieces<uint8_t, 4, false>(c);
  }
  launch_pieces<uint8_t, 0, false>(c);
}

}  // namespace

void patch_entropy_cuda(const void* image, Pixel type, const uint8_t* valid, const uint8_t* lut, float* out,
                        EntropyShape shape, void* stream) {
  const Call c{image, valid, lut, out, shape, static_cast<cudaStream_t>(stream)};
  if (c.patches() == 0 || shape.channels == 0) return;
  const EntropyRoute route = entropy_route(std::getenv("RSPRUNE_CUDA_ENTROPY"), device_capability());
  if (route == EntropyRoute::fast && c.area() <= entropy_fast::kMostArea &&
      shape.channels <= entropy_fast::kMostBands)
    return launch_fast(c, type);
  type == Pixel::u8 ? launch_simple<uint8_t>(c) : launch_simple<uint16_t>(c);
}

}  // namespace rsprune
