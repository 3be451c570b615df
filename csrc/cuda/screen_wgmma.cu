#include "cuda/launch.cuh"
#include "cuda/screen_wgmma.cuh"
#include "cuda/screen_wgmma.h"
#include "cuda/tensor_map.cuh"

namespace rsprune::screen_wgmma {
namespace {

static_assert(kRows == wgmma::kRows && kResidentDim == wgmma::kResidentSlabs * kSlab);

template <typename H, bool kResident>
void launch_form(const void* x, const void* center, const float* half_norm, ScreenedRows screened,
                 const AssignPlan& plan, cudaStream_t stream) {
  constexpr bool half = std::is_same_v<H, __half>;
  const int64_t items = (screened.rows + kRows - 1) / kRows * plan.splits;
  const int64_t slabs = (plan.pitch + kSlab - 1) / kSlab;
  enqueue(stream, std::min<int64_t>(items, multiprocessors()), wgmma::kThreads,
          wgmma::Form<kResident>::kBytes, wgmma::screen_kernel<H, kResident>,
          matrix_map(x, half, screened.rows, plan.pitch, kRows),
          matrix_map(center, half, plan.padded_clusters(), plan.pitch, kCenterTile), half_norm, screened,
          plan.center_tiles, slabs);
}

}  // namespace

void launch(const void* x, const void* center, bool half, const float* half_norm, ScreenedRows screened,
            const AssignPlan& plan, cudaStream_t stream) {
  const bool resident = plan.pitch <= kResidentDim;
  if (half && resident) return launch_form<__half, true>(x, center, half_norm, screened, plan, stream);
  if (half) return launch_form<__half, false>(x, center, half_norm, screened, plan, stream);
  if (resident) return launch_form<__nv_bfloat16, true>(x, center, half_norm, screened, plan, stream);
  launch_form<__nv_bfloat16, false>(x, center, half_norm, screened, plan, stream);
}

}  // namespace rsprune::screen_wgmma
