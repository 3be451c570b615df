// The CUDA side of the extension on the emulated GPU, for ctypes.
#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "cuda/entropy.cu"
#include "cuda/kmeans.cu"
#include "cuda/kmeans_sums.cu"
#include "cuda/screen_wgmma.cu"

namespace rsprune {

int64_t sort_bytes(int64_t, int) { return 1; }
void sort_by_label(const int32_t* label, const int32_t* row, int32_t* sorted_label, int32_t* sorted_row,
                   int64_t n, int bits, void*, int64_t, cudaStream_t) {
  const auto key = [&](int32_t i) { return static_cast<uint32_t>(label[i]) & ((1u << bits) - 1); };
  std::vector<int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return key(a) < key(b); });
  for (int64_t i = 0; i < n; ++i) sorted_label[i] = label[order[i]], sorted_row[i] = row[order[i]];
}

}  // namespace rsprune

using namespace rsprune;

namespace {

std::string message;

// Memory as an allocator leaves it: not zeroed, and with a guard behind it.
struct Workspace {
  explicit Workspace(int64_t bytes) : bytes(bytes), data(bytes + 512, 0xff) {}
  void* get() { return data.data() + (256 - reinterpret_cast<uintptr_t>(data.data()) % 256) % 256; }
  void check() {
    unsigned char* end = static_cast<unsigned char*>(get()) + bytes;
    if (std::any_of(end, data.data() + data.size(), [](unsigned char v) { return v != 0xff; }))
      throw std::runtime_error("a kernel wrote behind its workspace");
  }
  int64_t bytes;
  std::vector<unsigned char> data;
};

template <typename Work>
const char* guarded(Work work) {
  message.clear();
  try {
    work();
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();  // empty: all went well
}

}  // namespace

extern "C" {

void machine(int capability, int multiprocessors, unsigned seed) {
  emulated::gpu().capability = capability;
  emulated::gpu().multiprocessors = multiprocessors;
  emulated::gpu().random.seed(seed);
}

const char* assign(const void* x, int type, const float* center, int32_t* label, float* distance, int bounded,
                   int64_t* rechecked, int64_t points, int64_t clusters, int64_t dim) {
  return guarded([&] {
    const AssignShape s{points, clusters, dim};
    const auto kind = static_cast<Float>(type);
    Workspace workspace(kmeans_workspace_cuda(x, kind, s));
    std::vector<float> bounds(bounded ? points * 2 : 0);
    if (bounded) kmeans_bounds_cuda(x, kind, bounds.data(), s, nullptr);
    kmeans_assign_cuda(x, kind, center, label, distance, bounded ? bounds.data() : nullptr, rechecked,
                       workspace.get(), s, nullptr);
    workspace.check();
  });
}

const char* sums(const void* x, int type, const int32_t* label, double* sum, int64_t* count, int64_t points,
                 int64_t clusters, int64_t dim) {
  return guarded([&] {
    const AssignShape s{points, clusters, dim};
    Workspace workspace(kmeans_sums_workspace_cuda(s));
    kmeans_sums_cuda(x, static_cast<Float>(type), label, sum, count, workspace.get(), s, nullptr);
    workspace.check();
  });
}

const char* entropy(const void* image, int type, const uint8_t* valid, const uint8_t* lut, float* out,
                    int64_t images, int64_t height, int64_t width, int64_t channels, int64_t patch,
                    int64_t lut_bands) {
  return guarded([&] {
    patch_entropy_cuda(image, static_cast<Pixel>(type), valid, lut, out,
                       {images, height, width, channels, patch, lut_bands}, nullptr);
  });
}

// Scores of single columns, to compare the certificate's bound with: one wgmma or mma dot product.
float accumulate(const float* a, const float* b, int n) {
  float sum = 0;
  for (int k = 0; k < n; k += 16) sum = emulated::accumulate(sum, a + k, b + k, 16);
  return sum;
}
double error_bound(float norm, float residual, float center_norm, float center_residual, int64_t dim) {
  return score_error({norm, residual}, {center_norm, center_residual}, dim);
}

int swizzled_offset(int row, int chunk) { return swizzled(row, chunk); }

// points, clusters, dim, pack, tile rows, slots, resident -> pitch, tiles, chunk, splits, bytes
void plan(const int64_t* in, int64_t* out) {
  const AssignPlan p = assign_plan(in[0], in[1], in[2], in[3] != 0, in[4], in[5], in[6] != 0);
  out[0] = p.pitch, out[1] = p.center_tiles, out[2] = p.chunk, out[3] = p.splits, out[4] = p.bytes;
}

const char* route(const char* wish, int capability) {
  return guarded([&] {
    const AssignRoute r = assign_route(wish, capability);
    throw std::runtime_error(r == AssignRoute::simple ? "= simple"
                             : r == AssignRoute::mma  ? "= mma"
                                                      : "= wgmma");
  });
}
}
