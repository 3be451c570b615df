// Bands of interleaved pixels apart, in a form that compilers vectorise. Internal linkage: see kmeans_tile.h.
#pragma once
#ifdef __AVX512VBMI__
#include <immintrin.h>
#endif

#include <cstdint>

namespace rsprune {
namespace {

#ifdef __AVX512VBMI__
// Three bands, 64 pixels at a time; returns how many pixels it did.
inline int64_t split_rgb(const uint8_t* pixels, int64_t count, uint8_t* planes) {
  __m512i from[3];  // band -> where in 192 bytes its 64 are
  for (int c = 0; c < 3; ++c) {
    alignas(64) uint8_t at[64];
    for (int i = 0; i < 64; ++i) at[i] = static_cast<uint8_t>(3 * i + c);
    from[c] = _mm512_load_si512(at);
  }
  int64_t i = 0;
  for (; i + 64 <= count; i += 64, pixels += 192) {
    const __m512i a = _mm512_loadu_si512(pixels), b = _mm512_loadu_si512(pixels + 64);
    const __m512i c = _mm512_loadu_si512(pixels + 128);
    for (int band = 0; band < 3; ++band) {
      const __m512i early = _mm512_permutex2var_epi8(a, from[band], b);
      const __mmask64 late = _mm512_movepi8_mask(from[band]);  // 128 and more
      _mm512_storeu_si512(planes + band * count + i,
                          _mm512_mask_permutexvar_epi8(early, late, from[band], c));
    }
  }
  return i;
}
#else
inline int64_t split_rgb(const uint8_t*, int64_t, uint8_t*) { return 0; }
#endif

template <int64_t kChannels>
void split_known(const uint8_t* __restrict__ pixels, int64_t first, int64_t count,
                 uint8_t* __restrict__ planes) {
  for (int64_t i = first; i < count; ++i)
    for (int64_t c = 0; c < kChannels; ++c) planes[c * count + i] = pixels[i * kChannels + c];
}

// pixels [count, channels] -> planes [channels, count]
inline void split(const uint8_t* pixels, int64_t count, int64_t channels, uint8_t* planes) {
  switch (channels) {
    case 3:
      return split_known<3>(pixels, split_rgb(pixels, count, planes), count, planes);
    case 4:
      return split_known<4>(pixels, 0, count, planes);
  }
  for (int64_t c = 0; c < channels; ++c, planes += count)
    for (int64_t i = 0; i < count; ++i) planes[i] = pixels[i * channels + c];
}

}  // namespace
}  // namespace rsprune
