// A GPU on the CPU, slow and strict, on which the project's own kernels run in the tests: what is written in
// csrc/cuda is compiled as C++ against this folder, which stands in for the CUDA headers and for ptx.cuh.
//
// Every thread of a block is a fiber; blocks run one after another. Threads are resumed in random order, and
// asynchronous work (copies, tensor copies, wgmma) happens at a random moment between its issue and the wait
// that guarantees it, so a missing barrier or wait shows as a wrong result. A block that can go on no further
// is reported. Layouts of instructions are written from the PTX manual, not from csrc/cuda/layout.h, and
// matrix units cut off bits as the certificate's model allows them to.
//
// What it cannot show: speed, and whether real hardware agrees with this reading of the manual.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "arithmetic.h"

namespace emulated {

struct Index {
  unsigned x = 0;
};

// Threads that meet: the last to arrive does the work for all.
struct Meeting {
  int arrived = 0;
  uint64_t generation = 0;
  std::vector<void*> given = std::vector<void*>(1024);
};

struct Fiber {
  ucontext_t context{};  // to begin; later switches need no system call
  jmp_buf at;
  bool begun = false;
  std::unique_ptr<char[]> stack;
  unsigned index = 0;
  bool done = false;
  std::function<bool()> ready;                            // empty: can run
  std::deque<std::vector<std::function<void()>>> copies;  // committed groups of cp.async
  std::vector<std::function<void()>> open_copies;
};

struct Barrier {  // mbarrier
  int expected = 0, pending = 0;
  int64_t bytes = 0;
  uint32_t phase = 0;
  void settle() {
    if (pending == 0 && bytes == 0) pending = expected, phase ^= 1;
  }
};

struct Wgmma {  // of a warpgroup
  std::vector<std::function<void()>> open;
  std::deque<std::vector<std::function<void()>>> groups;
};

class Machine {
 public:
  static Machine& get() {
    static Machine machine;
    return machine;
  }

  std::mt19937 random{1};
  int capability = 90, multiprocessors = 3;
  Index block, blocks, threads;
  Fiber* fiber = nullptr;
  std::vector<unsigned char> memory;  // dynamic shared memory of the block
  int64_t shared_bytes = 0;
  std::map<const void*, Barrier> barriers;
  std::map<int, Meeting> named, warps, groups;
  std::map<int, Wgmma> wgmma;
  std::vector<std::function<void()>> transfers;  // tensor copies under way
  uint64_t progress = 0;

  static constexpr uint32_t kBase = 1024;  // address of the first aligned byte of shared memory
  unsigned char* shared() {
    const auto at = reinterpret_cast<uintptr_t>(memory.data());
    return memory.data() + (1024 - at % 1024) % 1024;
  }
  unsigned char* at(uint32_t address, int64_t bytes) {
    if (address < kBase || address - kBase + bytes > shared_bytes)
      throw std::runtime_error("access outside of shared memory");
    return shared() + (address - kBase);
  }
  uint32_t address(const void* p) {
    const int64_t offset = static_cast<const unsigned char*>(p) - shared();
    if (offset < 0 || offset >= shared_bytes) throw std::runtime_error("not an address in shared memory");
    return static_cast<uint32_t>(offset) + kBase;
  }

  void yield() {
    if (!_setjmp(fiber->at)) _longjmp(scheduler_at_, 1);
  }
  void wait(std::function<bool()> ready) {
    if (chance(2) && ready()) return;
    fiber->ready = std::move(ready);
    yield();
    if (stop_) throw Stopped{};
  }
  bool chance(unsigned of) { return random() % of == 0; }

  // All `size` threads of a group call this; `work` runs once, on what each has given.
  template <typename Work>
  void meet(Meeting& meeting, int size, int rank, void* given, Work work) {
    meeting.given[rank] = given;
    const uint64_t generation = meeting.generation;
    if (++meeting.arrived == size) {
      work(meeting.given);
      meeting.arrived = 0;
      ++meeting.generation;
      ++progress;
    } else {
      wait([&meeting, generation] { return meeting.generation != generation; });
    }
  }
  template <typename Work>
  void meet_warp(void* given, Work work) {
    meet(warps[fiber->index / 32], 32, fiber->index % 32, given, work);
  }
  template <typename Work>
  void meet_group(void* given, Work work) {
    meet(groups[fiber->index / 128], 128, fiber->index % 128, given, work);
  }
  void arrive(int id, int threads) {
    Meeting& m = named[id];
    if (++m.arrived == threads) m.arrived = 0, ++m.generation, ++progress;
  }
  void sync(int id, int threads) {
    Meeting& m = named[id];
    const uint64_t generation = m.generation;
    arrive(id, threads);
    if (m.generation == generation) wait([&m, generation] { return m.generation != generation; });
  }

  void run(int64_t grid, int block_threads, int shared, std::function<void()> kernel) {
    if (shared > 232448) throw std::runtime_error("more shared memory than a block can have");
    blocks.x = static_cast<unsigned>(grid);
    threads.x = static_cast<unsigned>(block_threads);
    for (unsigned b = 0; b < blocks.x; ++b) {
      block.x = b;
      run_block(block_threads, shared, kernel);
    }
  }

 private:
  struct Stopped {};
  jmp_buf scheduler_at_;

  void resume(Fiber& f) {
    fiber = &f;
    if (_setjmp(scheduler_at_)) return;
    if (f.begun) _longjmp(f.at, 1);
    f.begun = true;
    setcontext(&f.context);
  }
  std::function<void()>* kernel_ = nullptr;
  std::string error_;
  bool stop_ = false;

  static void enter() {
    Machine& m = get();
    try {
      (*m.kernel_)();
    } catch (const Stopped&) {
    } catch (const std::exception& error) {
      if (m.error_.empty()) m.error_ = error.what();
    }
    m.fiber->done = true;
    ++m.progress;
    _longjmp(m.scheduler_at_, 1);
  }

  // Some of the work under way is done now; all of it if nothing else can go on.
  bool advance(bool all) {
    bool any = false;
    for (size_t i = 0; i < transfers.size();) {
      if (all || chance(8)) {
        transfers[i]();
        transfers.erase(transfers.begin() + static_cast<int64_t>(i));
        any = true;
      } else {
        ++i;
      }
    }
    for (auto& [id, w] : wgmma)
      while (!w.groups.empty() && !w.groups.front().empty() && (all || chance(8))) {
        w.groups.front().front()();
        w.groups.front().erase(w.groups.front().begin());
        any = true;
      }
    return any;
  }

  void run_block(int block_threads, int shared, std::function<void()>& kernel) {
    barriers.clear(), named.clear(), warps.clear(), groups.clear(), wgmma.clear(), transfers.clear();
    memory.assign(shared + 1024, 0xff);  // NaN, in every type
    shared_bytes = shared;
    kernel_ = &kernel;
    stop_ = false;
    error_.clear();
    constexpr size_t kStack = 64 << 10;
    std::vector<Fiber> fibers(block_threads);
    for (int i = 0; i < block_threads; ++i) {
      Fiber& f = fibers[i];
      f.index = static_cast<unsigned>(i);
      f.stack.reset(new char[kStack]);
      getcontext(&f.context);
      f.context.uc_stack.ss_sp = f.stack.get();
      f.context.uc_stack.ss_size = kStack;
      f.context.uc_link = nullptr;
      makecontext(&f.context, reinterpret_cast<void (*)()>(&Machine::enter), 0);
    }
    size_t left = fibers.size();
    while (left > 0) {
      bool any = advance(false);
      const size_t first = random() % fibers.size();
      for (size_t i = 0; i < fibers.size(); ++i) {
        Fiber& f = fibers[(first + i) % fibers.size()];
        if (f.done || (!stop_ && f.ready && !f.ready())) continue;
        f.ready = nullptr;
        resume(f);
        any = true;
        left -= f.done;
        stop_ = stop_ || !error_.empty();
      }
      if (!any && !advance(true)) {
        error_ =
            "deadlock: " + std::to_string(left) + " threads of block " + std::to_string(block.x) + " wait";
        stop_ = true;
      }
    }
    if (error_.empty() && !transfers.empty()) error_ = "a block ended with tensor copies under way";
    if (!error_.empty()) throw std::runtime_error(error_);
  }
};

inline Machine& gpu() { return Machine::get(); }

}  // namespace emulated

// ---- the words of CUDA C++

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __grid_constant__

#define threadIdx (emulated::Index{emulated::gpu().fiber->index})
#define blockIdx (emulated::gpu().block)
#define gridDim (emulated::gpu().blocks)
#define blockDim (emulated::gpu().threads)

using std::isfinite;
using std::isnan;
using cudaStream_t = void*;

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __half2float(__half v) { return emulated::half_to_float(v.bits); }
inline float __bfloat162float(__nv_bfloat16 v) { return emulated::bfloat_to_float(v.bits); }
inline __half __float2half_rn(float v) { return {emulated::float_to_half(v)}; }
inline __nv_bfloat16 __float2bfloat16_rn(float v) { return {emulated::float_to_bfloat(v)}; }
inline float __double2float_rn(double v) { return static_cast<float>(v); }
inline float __double2float_ru(double v) {
  const auto f = static_cast<float>(v);
  return f < v ? std::nextafterf(f, INFINITY) : f;
}

struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
template <typename T>
T __ldg(const T* p) {
  return *p;
}
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename T>
T __shfl_xor_sync(unsigned, T v, int offset) {
  T result = v;
  struct Given {
    T value, *result;
  } given{v, &result};
  emulated::gpu().meet_warp(&given, [offset](std::vector<void*>& all) {
    for (int lane = 0; lane < 32; ++lane)
      *static_cast<Given*>(all[lane])->result = static_cast<Given*>(all[lane ^ offset])->value;
  });
  return result;
}
template <typename T>
T __shfl_down_sync(unsigned, T v, int offset) {
  T result = v;
  struct Given {
    T value, *result;
  } given{v, &result};
  emulated::gpu().meet_warp(&given, [offset](std::vector<void*>& all) {
    for (int lane = 0; lane + offset < 32; ++lane)
      *static_cast<Given*>(all[lane])->result = static_cast<Given*>(all[lane + offset])->value;
  });
  return result;
}
inline unsigned __reduce_add_sync(unsigned, unsigned v) {
  unsigned result = v;
  emulated::gpu().meet_warp(&result, [](std::vector<void*>& all) {
    unsigned sum = 0;
    for (int lane = 0; lane < 32; ++lane) sum += *static_cast<unsigned*>(all[lane]);
    for (int lane = 0; lane < 32; ++lane) *static_cast<unsigned*>(all[lane]) = sum;
  });
  return result;
}
inline void __syncwarp() {
  emulated::gpu().meet_warp(nullptr, [](std::vector<void*>&) {});
}
inline void __syncthreads() { emulated::gpu().sync(0, static_cast<int>(emulated::gpu().threads.x)); }

template <typename T>
T atomicAdd(T* to, T v) {
  const T before = *to;
  *to += v;
  return before;
}
inline unsigned atomicMax(unsigned* to, unsigned v) {
  const unsigned before = *to;
  if (v > before) *to = v;
  return before;
}
