#include "texture.h"

#include <omp.h>

#include <algorithm>
#include <vector>

#include "cpu/aligned.h"
#include "cpu/texture_kernel.h"

namespace rsprune {

void texture_cpu(const void* image, Value type, const uint8_t* valid, float* autocorrelation,
                 float* sharpness, TextureShape shape) {
  const TextureKernel& kernel = texture_kernel(isa());
  const int threads = static_cast<int>(std::clamp<int64_t>(shape.images, 1, omp_get_max_threads()));
  std::vector<AlignedBuffer<double>>
      scratch;  // allocated here: an exception must not leave a parallel region
  for (int t = 0; t < threads; ++t) scratch.emplace_back(texture_scratch(shape));
  const int64_t pixels = shape.height * shape.width, values = pixels * shape.channels;

#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t n = 0; n < shape.images; ++n) {
    double* own = scratch[omp_get_thread_num()].get();
    const uint8_t* mask = valid ? valid + n * pixels : nullptr;
    TextureResult result{1, 0};
    if (values == 0) {
    } else if (type == Value::u8) {
      result = kernel.u8(static_cast<const uint8_t*>(image) + n * values, mask, shape, own);
    } else if (type == Value::u16) {
      result = kernel.u16(static_cast<const uint16_t*>(image) + n * values, mask, shape, own);
    } else {
      result = kernel.f32(static_cast<const float*>(image) + n * values, mask, shape, own);
    }
    autocorrelation[n] = static_cast<float>(result.autocorrelation);
    sharpness[n] = static_cast<float>(result.sharpness);
  }
}

void saturated_cpu(const uint8_t* bin, const uint8_t* valid, int64_t* count, TextureShape shape) {
  const TextureKernel& kernel = texture_kernel(isa());
  const int64_t pixels = shape.height * shape.width;
  const int threads = static_cast<int>(std::clamp<int64_t>(shape.images, 1, omp_get_max_threads()));
  std::vector<AlignedBuffer<uint8_t>> scratch;
  for (int t = 0; t < threads; ++t) scratch.emplace_back((shape.channels + 2) * kSaturatedPart);

#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t n = 0; n < shape.images; ++n)
    count[n] = kernel.saturated(bin + n * pixels * shape.channels, valid ? valid + n * pixels : nullptr,
                                pixels, shape.channels, scratch[omp_get_thread_num()].get());
}

}  // namespace rsprune
