// How an assignment on matrix units is cut up, and what memory it needs beside its inputs and outputs. Plain
// arithmetic, tested on the CPU.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cuda/layout.h"

namespace rsprune {

constexpr int64_t kRowMemory = int64_t{128} << 20;  // bytes for what is kept per row of x
constexpr int64_t kMostRows = int64_t{1} << 22;     // of a chunk
constexpr int64_t kRowStep = 256;                   // a chunk is a multiple of it
constexpr int64_t kL2Share = int64_t{16} << 20;     // bytes of rows that blocks at work may read at once

// For points x clusters x dim; `pack`: rows are copied to 16 bits first.
struct AssignPlan {
  int64_t pitch;  // values from one row to the next, of packed rows and centres
  int center_tiles;
  int64_t chunk;  // rows at a time, a multiple of kRowStep
  int splits;     // groups of centres that different blocks score
  // Offsets in the workspace, bytes; all multiples of 256. `zeroed` begins with what starts as zeros.
  int64_t zeroed, centers, half_norm, best, second, label, unproven, threshold, rows, bytes;

  int64_t padded_clusters() const { return static_cast<int64_t>(center_tiles) * kCenterTile; }
};

// tile_rows: rows of a block; slots: blocks that run at once; resident: rows are read from L2 only once.
inline AssignPlan assign_plan(int64_t points, int64_t clusters, int64_t dim, bool pack, int64_t tile_rows,
                              int64_t slots, bool resident) {
  AssignPlan p{};
  p.pitch = (dim + kChunk - 1) / kChunk * kChunk;
  p.center_tiles = static_cast<int>((clusters + kCenterTile - 1) / kCenterTile);

  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const auto splits_for = [&](int64_t rows) {
    const int64_t fill = ceil_div(2 * slots, std::max<int64_t>(ceil_div(rows, tile_rows), 1));
    const int64_t local = resident ? 1 : ceil_div(slots * tile_rows * p.pitch * 2, kL2Share);
    const int64_t wish = rows < 2 * slots * tile_rows ? std::max(fill, local) : local;
    return std::clamp<int64_t>(wish, 1, p.center_tiles);
  };
  // More splits than these go with few rows only.
  const int64_t row_bytes = 12 * splits_for(INT64_MAX / 4) + 8 + (pack ? p.pitch * 2 : 0);
  const int64_t most = std::min(kRowMemory / row_bytes, kMostRows) / kRowStep * kRowStep;
  p.chunk = std::max(std::min(ceil_div(points, kRowStep) * kRowStep, most), kRowStep);
  p.splits = static_cast<int>(splits_for(std::min(points, p.chunk)));

  int64_t at = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t begin = at;
    at += ceil_div(bytes, 256) * 256;
    return begin;
  };
  p.zeroed = take(256);  // bounds of the centres, 8 bytes; count of unproven rows at 128
  p.centers = take(p.padded_clusters() * p.pitch * 2);
  p.half_norm = take(p.padded_clusters() * 4);
  p.best = take(p.chunk * p.splits * 4);
  p.second = take(p.chunk * p.splits * 4);
  p.label = take(p.chunk * p.splits * 4);
  p.unproven = take(p.chunk * 4);
  p.threshold = take(p.chunk * 4);
  p.rows = take(pack ? p.chunk * p.pitch * 2 : 0);
  p.bytes = at;
  return p;
}

}  // namespace rsprune
