// Finds, for a block of points, the centres that can be nearest: those whose score x.c - |c|^2 / 2 can be,
// within its error bound, what that of any other is at least (|x|^2 is the same for all centres, so it drops
// out of the argmin). Each centre has a bound of its own: those far away would blur the ones near a point.
#pragma once
#include <vector>

#include "cpu/kmeans_centers.h"

namespace rsprune {

constexpr int kCapacity = 256;  // candidates kept per point

struct Screened {
  float slope;  // the error bound of centre k is slope norms[k] + slacks[k], and margin / 2 for all
  float margin;
  float best;  // the most that a score is at least, but for the margin
  int found;   // candidates, or -1: there are too many, or scores cannot tell
};

struct ScreenScratch {
  FloatBuffer points, scores, row;
  std::vector<Screened> rows;
  AlignedBuffer<int32_t> index;  // [rows, kCapacity] ascending
  FloatBuffer score;             // [rows, kCapacity] the most that they can be
};

class Screen {
 public:
  // Scores are those of points and centers less the origin [centers.dim].
  Screen(const void* x, Float type, const CenterRows& centers, const float* origin, AssignShape shape,
         const AssignKernel& kernel, int threads);
  ScreenScratch make_scratch() const;

  // point [count] are rows of x, count <= block(); results are in s.rows and s.index.
  void run(const int64_t* point, int64_t count, ScreenScratch& s) const;

  // A row of x as float32, padded with zeros to that of the centres.
  void load(int64_t point, float* row) const;

  int64_t block() const { return block_; }

 private:
  int64_t row_bytes() const { return shape_.dim * (type_ == Float::f32 ? 4 : 2); }
  const char* at(int64_t point) const;
  void prefetch(int64_t point) const;
  void pack(const int64_t* point, int64_t count, ScreenScratch& s) const;
  void score(int64_t first_center, int64_t width, int64_t count, ScreenScratch& s) const;
  void collect(int64_t first_center, int64_t width, int64_t count, ScreenScratch& s) const;
  void set_bounds();
  Screened bounds(double norm, double residual) const;

  const void* x_;
  Float type_;
  AssignShape shape_;
  const AssignKernel& kernel_;
  Centers centers_;
  int64_t stride_;        // words between packed points
  int64_t score_stride_;  // floats between rows of scores
  int64_t block_;         // points per block

  FloatBuffer norms_, slacks_;      // [padded clusters] of the error bound
  double rounding_ = 0;             // of a score, relative to its magnitude
  double relative_ = 0, rest_ = 0;  // residual of a centre <= relative_ norm + rest_
  double norm_ = 0, half_ = 0;      // largest of the centres
};

}  // namespace rsprune
