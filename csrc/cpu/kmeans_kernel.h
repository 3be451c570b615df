// What an instruction set provides for the assignment; kmeans.cpp drives it. Packed values travel as 32-bit
// words: one float32, or two bfloat16 of neighbouring dimensions. All row lengths are padded with zeros.
#pragma once
#include <cstdint>

#include "cpu/isa.h"
#include "kmeans.h"

namespace rsprune {

struct AssignKernel {
  int rows;                     // points per register tile
  int lanes;                    // centres per vector
  int vectors;                  // vectors of centres per panel
  int step;                     // dimensions per word
  double unit;                  // largest relative error of one rounding while scores are accumulated
  const AssignKernel* precise;  // the kernel with float32 scores, where this one's are coarser; else null

  // x [n] of type -> out [n]
  void (*to_float)(const void* x, Float type, int64_t n, float* out);

  // row [dim], origin [dim] -> words [dim / step] of row - origin;
  // sums = {|packed|^2, |(row - origin) - packed|^2} in float32, for the error bound.
  void (*pack)(const float* row, const float* origin, int64_t dim, float* words, float* sums);

  // score[p][c] = sum over steps of points[p] . panel[:, c], plus bias[c], or score[p][c] where bias is null.
  // points [groups * rows, point_stride] words, panel [steps, vectors * lanes] words.
  void (*score)(const float* points, int64_t point_stride, int64_t groups, const float* panel, int vectors,
                int64_t steps, const float* bias, float* score, int64_t score_stride);

  // Scores are off by at most slope norm[c] + slack[c]. The largest that a score is at least:
  float (*largest)(const float* score, const float* norm, const float* slack, float slope, int64_t n);

  // Indices of the scores that can be threshold or more, ascending, at most `capacity` of them; returns how
  // many there are.
  int (*select)(const float* score, const float* norm, const float* slack, float slope, int64_t n,
                float threshold, int32_t* index, int capacity);

  // out[p][t] = min(|point p - candidate t|^2, closest[p]).
  // points [n, dim], candidates [dim, kCandidates], out [n, kCandidates].
  void (*closer)(const float* points, int64_t n, int64_t dim, const float* candidates, const float* closest,
                 float* out);

  // |a - b|^2 in float64, and in float32: off by at most rough_error(dim) of it, and by 2^-149 dim.
  double (*squared_distance)(const float* a, const float* b, int64_t dim);
  float (*rough_distance)(const float* a, const float* b, int64_t dim);
};

// A difference is rounded once, which counts twice in its square; a square in its multiply-add (twice without
// one); sums once for each later term of the same lane, and less than 8 times where lanes are added.
constexpr double rough_error(int64_t dim) { return 0x1p-24 * 1.01 * static_cast<double>(dim / 4 + 12); }

extern const AssignKernel kAssignPortable, kAssignAvx2, kAssignAvx512, kAssignAvx512Bf16;

const AssignKernel& assign_kernel(Isa isa);

}  // namespace rsprune
