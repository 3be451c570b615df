// Emulation of csrc/cuda/ptx.cuh; layouts from the PTX manual's sections on mma, ldmatrix, wgmma, swizzling.
#pragma once
#include <array>

#include "gpu.h"

struct CUtensorMap {
  const uint16_t* data;
  int64_t rows, pitch;
  int box_rows;
};

namespace rsprune::ptx {

using emulated::gpu;

inline unsigned char* dynamic_shared() { return gpu().shared(); }
inline uint32_t shared_address(const void* p) { return gpu().address(p); }

template <typename T>
float to_float(uint16_t bits) {
  return std::is_same_v<T, __half> ? emulated::half_to_float(bits) : emulated::bfloat_to_float(bits);
}

inline void copy16(void* to, const void* from, bool valid) {
  const uint32_t address = shared_address(to);
  if (address % 16 != 0 || (valid && reinterpret_cast<uintptr_t>(from) % 16 != 0))
    throw std::runtime_error("a copy of 16 bytes that is not aligned");
  gpu().at(address, 16);
  std::memset(to, 0xff, 16);
  gpu().fiber->open_copies.push_back(
      [to, from, valid] { valid ? std::memcpy(to, from, 16) : std::memset(to, 0, 16); });
}
inline void commit_copies() {
  gpu().fiber->copies.push_back(std::move(gpu().fiber->open_copies));
  gpu().fiber->open_copies.clear();
}
template <int kPending>
void wait_copies() {
  auto& groups = gpu().fiber->copies;
  while (static_cast<int>(groups.size()) > kPending) {
    for (auto& copy : groups.front()) copy();
    groups.pop_front();
  }
}

inline void load_matrices(uint32_t (&r)[4], const void* row) {
  struct Given {
    const unsigned char* row;
    uint32_t* r;
  } given{gpu().at(shared_address(row), 16), r};
  gpu().meet_warp(&given, [](std::vector<void*>& all) {
    for (int lane = 0; lane < 32; ++lane)
      for (int matrix = 0; matrix < 4; ++matrix) {  // addresses of matrix m come from lanes 8m..8m+7
        const auto* from = static_cast<Given*>(all[matrix * 8 + lane / 4])->row + lane % 4 * 4;
        std::memcpy(static_cast<Given*>(all[lane])->r + matrix, from, 4);
      }
  });
}

template <typename T>
void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Given {
    float* d;
    uint16_t a[8], b[4];
  } given{d, {}, {}};
  std::memcpy(given.a, a, 16);
  std::memcpy(given.b, &b0, 4);
  std::memcpy(given.b + 2, &b1, 4);
  gpu().meet_warp(&given, [](std::vector<void*>& all) {
    float a[16][16], b[8][16];  // b by column
    for (int lane = 0; lane < 32; ++lane) {
      const auto& g = *static_cast<Given*>(all[lane]);
      const int group = lane >> 2, in_group = lane % 4;
      for (int i = 0; i < 8; ++i) {
        const int row = (i < 2 || (i >= 4 && i < 6)) ? group : group + 8;
        const int column = in_group * 2 + (i & 1) + (i < 4 ? 0 : 8);
        a[row][column] = to_float<T>(g.a[i]);
      }
      for (int i = 0; i < 4; ++i) b[group][in_group * 2 + (i & 1) + (i < 2 ? 0 : 8)] = to_float<T>(g.b[i]);
    }
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) {
        float& d = static_cast<Given*>(all[lane])->d[i];
        const int row = i < 2 ? lane >> 2 : (lane >> 2) + 8, column = lane % 4 * 2 + (i & 1);
        d = emulated::accumulate(d, a[row], b[column], 16);
      }
  });
}

inline void barrier_init(uint64_t* barrier, uint32_t arrivals) {
  shared_address(barrier);
  gpu().barriers[barrier] = {static_cast<int>(arrivals), static_cast<int>(arrivals), 0, 0};
}
inline void barrier_init_fence() {}
inline emulated::Barrier& known_barrier(uint64_t* barrier) {
  const auto found = gpu().barriers.find(barrier);
  if (found == gpu().barriers.end()) throw std::runtime_error("a barrier that was not initialised");
  return found->second;
}
inline void arrive(emulated::Barrier& b) {
  if (b.pending == 0) throw std::runtime_error("one arrival too many at a barrier");
  --b.pending;
  b.settle();
  ++gpu().progress;
}
inline void barrier_arrive(uint64_t* barrier) { arrive(known_barrier(barrier)); }
inline void barrier_arrive_expecting(uint64_t* barrier, uint32_t bytes) {
  emulated::Barrier& b = known_barrier(barrier);
  b.bytes += bytes;
  arrive(b);
}
inline void barrier_wait(uint64_t* barrier, uint32_t parity) {
  emulated::Barrier& b = known_barrier(barrier);
  gpu().wait([&b, parity] { return b.phase != parity; });
}

inline void copy_tile(void* to, const CUtensorMap* map, int column, int row, uint64_t* barrier) {
  const uint32_t address = shared_address(to);
  const int bytes = map->box_rows * 128;
  if (address % 1024 != 0) throw std::runtime_error("a swizzled tile that is not at a multiple of 1024");
  std::memset(gpu().at(address, bytes), 0xff, bytes);  // whoever still reads what was there reads NaN
  emulated::Barrier& b = known_barrier(barrier);
  gpu().transfers.push_back([=, copy = *map, &b] {
    for (int r = 0; r < copy.box_rows; ++r)
      for (int j = 0; j < 64; ++j) {
        const bool inside = row + r < copy.rows && column + j < copy.pitch;
        const uint16_t v = inside ? copy.data[(row + r) * copy.pitch + column + j] : 0;
        const uint32_t linear = address + r * 128 + j * 2;
        std::memcpy(gpu().at(linear ^ ((linear >> 7 & 7) << 4), 2), &v, 2);
      }
    b.bytes -= bytes;
    b.settle();
    ++gpu().progress;
  });
}
inline void prefetch_map(const CUtensorMap*) {}

inline void group_sync(int id, int threads) { gpu().sync(id, threads); }
inline void group_arrive(int id, int threads) { gpu().arrive(id, threads); }

template <int>
void give_registers() {}
template <int>
void take_registers() {}

inline emulated::Wgmma& own_wgmma() { return gpu().wgmma[gpu().fiber->index / 128]; }
inline void wgmma_fence() {
  gpu().meet_group(nullptr, [](std::vector<void*>&) {});
}
inline void wgmma_commit() {
  gpu().meet_group(nullptr, [](std::vector<void*>&) {
    own_wgmma().groups.push_back(std::move(own_wgmma().open));
    own_wgmma().open.clear();
  });
}
template <int kPending>
void wgmma_wait() {
  auto& groups = own_wgmma().groups;
  gpu().meet_group(nullptr, [&](std::vector<void*>&) {
    while (static_cast<int>(groups.size()) > kPending) {
      for (auto& work : groups.front()) work();
      groups.pop_front();
    }
  });
}

// Value (row, k) of an operand: rows of 128 bytes in groups of 8, address bits 4-6 permuted by bits 7-9.
template <typename T>
float operand(uint64_t descriptor, int row, int k) {
  if (descriptor >> 62 != 1 || (descriptor >> 49 & 7) != 0)
    throw std::runtime_error("not a 128-byte swizzle");
  const auto start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const auto stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  const uint32_t linear = start + row / 8 * stride + row % 8 * 128 + k * 2;
  uint16_t bits;
  std::memcpy(&bits, gpu().at(linear ^ ((linear >> 7 & 7) << 4), 2), 2);
  return to_float<T>(bits);
}

template <typename T>
void wgmma(float (&d)[64], uint64_t a, uint64_t b, int accumulate) {
  gpu().meet_group(d, [=](std::vector<void*>& all) {
    std::array<float*, 128> to;
    for (int t = 0; t < 128; ++t) to[t] = static_cast<float*>(all[t]);
    own_wgmma().open.push_back([=] {
      static float left[64][16], right[128][16];
      for (int row = 0; row < 64; ++row)
        for (int k = 0; k < 16; ++k) left[row][k] = operand<T>(a, row, k);
      for (int row = 0; row < 128; ++row)
        for (int k = 0; k < 16; ++k) right[row][k] = operand<T>(b, row, k);
      for (int t = 0; t < 128; ++t)
        for (int i = 0; i < 64; ++i) {
          const int row = t / 32 * 16 + t % 32 / 4 + (i % 4 < 2 ? 0 : 8),
                    column = i / 4 * 8 + t % 4 * 2 + i % 2;
          to[t][i] = emulated::accumulate(accumulate ? to[t][i] : 0.0f, left[row], right[column], 16);
        }
    });
  });
}

}  // namespace rsprune::ptx
