#include "cpu/texture_image.h"

namespace rsprune {

extern const TextureKernel kTexturePortable = {texture<float, uint8_t>, texture<double, uint16_t>,
                                               texture<double, float>, saturated};

}  // namespace rsprune
