// Which kernels serve a call. Decided at each call from the device and environment variables, so that
// tests can force every one.
#pragma once
#include <stdexcept>
#include <string>

namespace rsprune {

enum class AssignRoute { simple, mma, wgmma };
enum class EntropyRoute { simple, fast };

// Nothing here has run on a GPU yet, so the plainest kernels are the default. "auto" takes the fastest that
// the device has; once measured, it belongs on these lines.
constexpr const char* kDefaultAssign = "simple";
constexpr const char* kDefaultEntropy = "simple";
constexpr const char* kDefaultOperand = "same";

// capability: 10 x major + minor, as 90 for Hopper. wgmma exists on capability 9.0 only.
inline AssignRoute assign_route(const char* wish, int capability) {
  std::string name = wish && *wish ? wish : kDefaultAssign;
  if (name == "auto") name = capability == 90 ? "wgmma" : capability >= 80 ? "mma" : "simple";
  const auto need = [&](bool able, const char* what) {
    if (!able)
      throw std::invalid_argument("RSPRUNE_CUDA_KERNEL=" + name + " needs a device of compute capability " +
                                  what + ", got " + std::to_string(capability / 10) + "." +
                                  std::to_string(capability % 10));
  };
  if (name == "simple") return AssignRoute::simple;
  if (name == "mma") return need(capability >= 80, "8.0 or later"), AssignRoute::mma;
  if (name == "wgmma") return need(capability == 90, "9.0"), AssignRoute::wgmma;
  throw std::invalid_argument("RSPRUNE_CUDA_KERNEL must be auto, simple, mma or wgmma, got " + name);
}

// Whether bfloat16 rows are scored as float16.
inline bool operand_is_half(const char* wish) {
  const std::string name = wish && *wish ? wish : kDefaultOperand;
  if (name != "same" && name != "half")
    throw std::invalid_argument("RSPRUNE_CUDA_OPERAND must be same or half, got " + name);
  return name == "half";
}

inline EntropyRoute entropy_route(const char* wish, int capability) {
  std::string name = wish && *wish ? wish : kDefaultEntropy;
  if (name == "auto") name = capability >= 80 ? "fast" : "simple";
  if (name == "simple") return EntropyRoute::simple;
  if (name != "fast")
    throw std::invalid_argument("RSPRUNE_CUDA_ENTROPY must be auto, simple or fast, got " + name);
  if (capability < 80)
    throw std::invalid_argument(
        "RSPRUNE_CUDA_ENTROPY=fast needs a device of compute capability 8.0 or later");
  return EntropyRoute::fast;
}

}  // namespace rsprune
