// The assignment kernel over an instruction set V (see kmeans_avx512.cpp). Everything here has internal
// linkage, so that no function compiled for one instruction set can be linked into the path of another.
#pragma once
#include "cpu/kmeans_kernel.h"

namespace rsprune {
namespace {

inline float float_from_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline float float_from_half(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, magnitude = h & 0x7fff;
  if (magnitude >= 0x7c00) return float_from_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  const float value = float_from_bits(magnitude << 13) * 0x1p112f;  // rebias; denormals come out normal
  return sign ? -value : value;
}

template <class V>
void to_float(const void* x, Float type, int64_t n, float* out) {
  int64_t j = 0;
  if (type == Float::f32) {
    __builtin_memcpy(out, x, n * sizeof(float));
  } else if (type == Float::f16) {
    const auto* half = static_cast<const uint16_t*>(x);
    for (; j + V::kLanes <= n; j += V::kLanes) V::store(out + j, V::load_half(half + j));
    for (; j < n; ++j) out[j] = float_from_half(half[j]);
  } else {
    const auto* bf16 = static_cast<const uint16_t*>(x);
    for (; j < n; ++j) out[j] = float_from_bits(static_cast<uint32_t>(bf16[j]) << 16);
  }
}

template <class V>
void pack(const float* row, const float* origin, int64_t dim, float* words, float* sums) {
  auto norm = V::zero(), residual = V::zero();
  for (int64_t j = 0; j < dim; j += V::kLanes) {
    const auto centred = V::sub(V::load(row + j), V::load(origin + j));
    const auto packed = V::pack(words, j, centred);
    const auto lost = V::sub(centred, packed);
    norm = V::fma(packed, packed, norm);
    residual = V::fma(lost, lost, residual);
  }
  sums[0] = V::sum(norm);
  sums[1] = V::sum(residual);
}

template <class V, int kVectors>
void score_panel(const float* points, int64_t point_stride, int64_t groups, const float* panel, int64_t steps,
                 const float* bias, float* score, int64_t score_stride) {
  constexpr int kWidth = kVectors * V::kLanes;
  for (int64_t g = 0; g < groups; ++g, points += V::kRows * point_stride, score += V::kRows * score_stride) {
    typename V::Reg acc[V::kRows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < V::kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[r][v] = V::zero();

    const float* column = panel;
    for (int64_t s = 0; s < steps; ++s, column += kWidth) {
      typename V::Reg center[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) center[v] = V::load(column + v * V::kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < V::kRows; ++r) {
        const auto point = V::broadcast(points + r * point_stride + s);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) acc[r][v] = V::dot(point, center[v], acc[r][v]);
      }
    }

#pragma GCC unroll 16
    for (int r = 0; r < V::kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        float* to = score + r * score_stride + v * V::kLanes;
        V::store(to, V::add(acc[r][v], V::load(bias ? bias + v * V::kLanes : to)));
      }
  }
}

template <class V>
void score(const float* points, int64_t point_stride, int64_t groups, const float* panel, int vectors,
           int64_t steps, const float* bias, float* out, int64_t out_stride) {
  switch (vectors) {
    case 1:
      return score_panel<V, 1>(points, point_stride, groups, panel, steps, bias, out, out_stride);
    case 2:
      return score_panel<V, 2>(points, point_stride, groups, panel, steps, bias, out, out_stride);
    default:
      return score_panel<V, V::kVectors>(points, point_stride, groups, panel, steps, bias, out, out_stride);
  }
}

template <class V>
float largest(const float* score, const float* norm, const float* slack, float slope, int64_t n) {
  const auto factor = V::broadcast(&slope);
  const auto least = [&](int64_t k) {
    return V::sub(V::load(score + k), V::fma(factor, V::load(norm + k), V::load(slack + k)));
  };
  auto best = least(0);
  for (int64_t k = V::kLanes; k < n; k += V::kLanes) best = V::max(best, least(k));
  return V::largest(best);
}

template <class V>
int select(const float* score, const float* norm, const float* slack, float slope, int64_t n, float threshold,
           int32_t* index, int capacity) {
  const auto factor = V::broadcast(&slope), limit = V::broadcast(&threshold);
  int found = 0;
  for (int64_t k = 0; k < n; k += V::kLanes) {
    const auto most = V::add(V::load(score + k), V::fma(factor, V::load(norm + k), V::load(slack + k)));
    for (unsigned hits = V::at_least(most, limit); hits; hits &= hits - 1) {
      if (found < capacity) index[found] = static_cast<int32_t>(k + __builtin_ctz(hits));
      ++found;
    }
  }
  return found;
}

template <class V>
float rough_distance(const float* a, const float* b, int64_t dim) {  // a multiple of 16
  auto sum = V::zero();
  for (int64_t j = 0; j < dim; j += V::kLanes) {
    const auto d = V::sub(V::load(a + j), V::load(b + j));
    sum = V::fma(d, d, sum);
  }
  return V::sum(sum);
}

template <class V, int kPoints>
void closer_tile(const float* points, int64_t dim, const float* candidates, const float* closest,
                 float* out) {
  constexpr int kWide = kCandidates / V::kLanes;
  typename V::Reg acc[kPoints][kWide];
#pragma GCC unroll 8
  for (int p = 0; p < kPoints; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < kWide; ++v) acc[p][v] = V::zero();
  for (int64_t j = 0; j < dim; ++j, candidates += kCandidates) {
#pragma GCC unroll 8
    for (int p = 0; p < kPoints; ++p) {
      const auto point = V::broadcast(points + p * dim + j);
#pragma GCC unroll 4
      for (int v = 0; v < kWide; ++v) {
        const auto d = V::sub(V::load(candidates + v * V::kLanes), point);
        acc[p][v] = V::fma(d, d, acc[p][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < kPoints; ++p) {
    const auto limit = V::broadcast(closest + p);
#pragma GCC unroll 4
    for (int v = 0; v < kWide; ++v) V::store(out + p * kCandidates + v * V::kLanes, V::min(acc[p][v], limit));
  }
}

template <class V>
void closer(const float* points, int64_t n, int64_t dim, const float* candidates, const float* closest,
            float* out) {
  constexpr int kPoints = 2 * V::kLanes / 4;  // as many as keep the accumulators in registers
  int64_t i = 0;
  for (; i + kPoints <= n; i += kPoints)
    closer_tile<V, kPoints>(points + i * dim, dim, candidates, closest + i, out + i * kCandidates);
  for (; i < n; ++i) closer_tile<V, 1>(points + i * dim, dim, candidates, closest + i, out + i * kCandidates);
}

template <class V>
constexpr AssignKernel make_assign_kernel(const AssignKernel* precise = nullptr) {
  static_assert(V::kVectors <= 3);
  return {V::kRows,
          V::kLanes,
          V::kVectors,
          V::kStep,
          V::kUnit,
          precise,
          to_float<V>,
          pack<V>,
          score<V>,
          largest<V>,
          select<V>,
          closer<V>,
          V::squared_distance,
          rough_distance<V>};
}

}  // namespace
}  // namespace rsprune
