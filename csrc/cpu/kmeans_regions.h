// The first screening of all points. Where centres lie in crowds, as those of images do, coarse scores cannot
// tell the members of a crowd apart: their error grows with the distance of points and centres from the
// origin. There the centres are put into a few regions, each point goes to that with the nearest middle, and
// this is the origin about which it is screened.
#pragma once
#include <vector>

#include "cpu/kmeans_screen.h"

namespace rsprune {

struct Block {
  const int64_t* point;
  int64_t count;  // at most screen->block()
  const Screen* screen;
};

class Regions {
 public:
  // scratch [points] is overwritten.
  Regions(const void* x, Float type, const CenterRows& centers, AssignShape shape, const AssignKernel& kernel,
          int32_t* scratch, int threads);

  const std::vector<Block>& blocks() const { return blocks_; }  // all points
  ScreenScratch make_scratch() const { return screens_[0].make_scratch(); }
  int64_t block() const { return screens_[0].block(); }

 private:
  void add_blocks(int64_t first, int64_t last, const Screen& screen);

  std::vector<int64_t> points_;  // in stretches of x, in which one region comes after another
  std::vector<Screen> screens_;  // of each region
  std::vector<Block> blocks_;
};

}  // namespace rsprune
