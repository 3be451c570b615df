// Nearest centre of each point.
//
//   x [points, dim] float32, float16 or bfloat16;  center [clusters, dim] float32
//   -> label [points] int32, distance [points] float32 (squared L2)
//
// The label is the argmin of the squared distance between the given values as real numbers, ties to the lower
// index: scores are computed fast, and wherever their error bound leaves more than one candidate, the
// candidates are compared in float64, and where that cannot tell either, in exact integer arithmetic.
// The distance is accumulated in float64 and rounded once; above 3.4e38 it is inf, and the label is still
// right. A row with a NaN or an infinity has no nearest centre: label -1, distance NaN. A centre with one is
// never chosen; if every centre has one, all labels are -1.
#pragma once
#include <cstdint>

namespace rsprune {

enum class Float { f32, f16, bf16 };

struct AssignShape {
  int64_t points, clusters, dim;
};

// Returns how many rows had more than one candidate.
int64_t kmeans_assign_cpu(const void* x, Float type, const float* center, int32_t* label, float* distance,
                          AssignShape shape);

// On CUDA, `distance` may be nullptr (labels only), and `rechecked` counts on the device, added to what is
// there; nullptr: not counted. `workspace` is memory on the device of kmeans_workspace_cuda bytes, which is 0
// for the simple kernels and else at most 128 MiB (up to 262,144 dimensions) and 2 bytes per value and 4 per
// row of padded centres, at a multiple of 256 bytes. `bounds` [points, 2] float32 from kmeans_bounds_cuda, in
// the same environment, spares a pass over x where the same rows are assigned again and no distances are
// wanted; nullptr: measured on the way.
void kmeans_assign_cuda(const void* x, Float type, const float* center, int32_t* label, float* distance,
                        const float* bounds, int64_t* rechecked, void* workspace, AssignShape shape,
                        void* stream);
int64_t kmeans_workspace_cuda(const void* x, Float type, AssignShape shape);
void kmeans_bounds_cuda(const void* x, Float type, float* bounds, AssignShape shape, void* stream);

// Adds each row of x to its cluster's sum, and 1 to its count, in row order whatever the thread count.
//   x [points, dim], label [points] int32, -1: skip  ->  sum [clusters, dim] float64, count [clusters] int64
void kmeans_sums_cpu(const void* x, Float type, const int32_t* label, double* sum, int64_t* count,
                     AssignShape shape);

// The same on CUDA, where rows are sorted by label first; always the same additions in the same order, but
// not the CPU's. Labels must be from -1 to clusters - 1: they are sorted by the bits that tell these apart,
// and nobody looks for others. Needs kmeans_sums_workspace_cuda bytes.
void kmeans_sums_cuda(const void* x, Float type, const int32_t* label, double* sum, int64_t* count,
                      void* workspace, AssignShape shape, void* stream);
int64_t kmeans_sums_workspace_cuda(AssignShape shape);

// A step of k-means++: the distance of each point to its closest centre, were a candidate added.
//   x [points, dim] float32, candidate [dim, kCandidates] float32 (columns), closest [points] float32
//   -> out [points, kCandidates] float32: min(squared distance, closest); potential [kCandidates] float64:
//   sums
constexpr int kCandidates = 16;
void kmeans_closer_cpu(const float* x, const float* candidate, const float* closest, float* out,
                       double* potential, int64_t points, int64_t dim);

}  // namespace rsprune
