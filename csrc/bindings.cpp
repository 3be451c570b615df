// Everything Python can call. Each function checks its arguments, picks a backend by device, and
// releases the GIL; the kernels below this line see raw pointers and sizes.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>

#include "caster.h"
#include "cpu/isa.h"
#include "device.h"
#include "entropy.h"
#include "kmeans.h"
#include "texture.h"

namespace py = pybind11;
using namespace rsprune;

namespace {

// CPU kernels ignore `stream`; only a CUDA build takes CUDA arrays.
bool on_cuda(const char* name, const Tensor& tensor) {
  const auto type = tensor.t->device.type;
#ifdef RSPRUNE_WITH_CUDA
  if (tensor.is_cuda()) return true;
#endif
  RSPRUNE_CHECK(type == kDLCPU || type == kDLCUDAHost, name, " must be on a device of this build, got ",
                tensor.device_text());
  return false;
}

void check_optional_bytes(const char* name, const Tensor& tensor) {
  RSPRUNE_CHECK(tensor.is(kDLUInt, 8) || tensor.is(kDLBool, 8), name, " must be bool or uint8, got ",
                tensor.dtype_text());
}

void patch_entropy(const Tensor& images, const Tensor& valid, const Tensor& lut, const Tensor& out,
                   int64_t patch, uintptr_t stream) {
  RSPRUNE_CHECK(images.ndim() == 3 || images.ndim() == 4,
                "images must have shape [N, H, W] or [N, H, W, C], got ", images.shape_text());
  RSPRUNE_CHECK(images.is(kDLUInt, 8) || images.is(kDLUInt, 16), "images must be uint8 or uint16, got ",
                images.dtype_text());
  RSPRUNE_CHECK(patch >= 1, "patch must be at least 1 pixel, got ", patch);
  const auto type = images.is(kDLUInt, 8) ? Pixel::u8 : Pixel::u16;
  RSPRUNE_CHECK(lut || type == Pixel::u8, "scale must be given for uint16 images, got None");
  EntropyShape s{
      images.size(0), images.size(1), images.size(2), images.ndim() == 4 ? images.size(3) : 1, patch, 1};
  if (images.ndim() == 4)
    check_shape("out", out, {s.images, s.rows(), s.cols(), s.channels});
  else
    check_shape("out", out, {s.images, s.rows(), s.cols()});
  check_dtype("out", out, kDLFloat, 32, "float32");
  check_same_device({{"images", &images}, {"out", &out}});
  if (valid) {
    check_shape("valid", valid, {s.images, s.height, s.width});
    check_optional_bytes("valid", valid);
    check_same_device({{"images", &images}, {"valid", &valid}});
  }
  if (lut) {
    RSPRUNE_CHECK(lut.ndim() == 2 && (lut.size(0) == 1 || lut.size(0) == s.channels),
                  "scale must have one pair, or one for each of ", s.channels, " bands, got shape ",
                  lut.shape_text());
    s.lut_bands = lut.size(0);
    check_shape("lut", lut, {s.lut_bands, type == Pixel::u8 ? 256 : 65536});
    check_dtype("lut", lut, kDLUInt, 8, "uint8");
    check_same_device({{"images", &images}, {"lut", &lut}});
  }
  RSPRUNE_CHECK(std::min(s.patch, s.height) * std::min(s.patch, s.width) < int64_t{1} << 32,
                "patch must have fewer than 2^32 pixels, got ", s.patch, " x ", s.patch, " of images of ",
                s.height, " x ", s.width);
  const void* source = images.data("images");
  const auto* mask = valid ? static_cast<const uint8_t*>(valid.data("valid")) : nullptr;
  const auto* bins = lut ? static_cast<const uint8_t*>(lut.data("lut")) : nullptr;
  auto* to = static_cast<float*>(out.mutable_data("out"));
  const bool cuda = on_cuda("images", images);

  py::gil_scoped_release nogil;
#ifdef RSPRUNE_WITH_CUDA
  if (cuda) {
    DeviceGuard guard(images.t->device.id);
    return patch_entropy_cuda(source, type, mask, bins, to, s, reinterpret_cast<void*>(stream));
  }
#endif
  static_cast<void>(cuda), static_cast<void>(stream);
  patch_entropy_cpu(source, type, mask, bins, to, s);
}

TextureShape texture_shape(const char* name, const Tensor& images, const Tensor& valid) {
  RSPRUNE_CHECK(images.ndim() == 4, name, " must have shape [N, H, W, C], got ", images.shape_text());
  RSPRUNE_CHECK(!on_cuda(name, images), name, " must be on the cpu, got ", images.device_text());
  if (valid) {
    check_shape("valid", valid, {images.size(0), images.size(1), images.size(2)});
    check_optional_bytes("valid", valid);
    check_same_device({{name, &images}, {"valid", &valid}});
  }
  return {images.size(0), images.size(1), images.size(2), images.size(3)};
}

void texture(const Tensor& images, const Tensor& valid, const Tensor& autocorrelation,
             const Tensor& sharpness) {
  const TextureShape s = texture_shape("images", images, valid);
  const Value type = images.is(kDLUInt, 8) ? Value::u8 : images.is(kDLUInt, 16) ? Value::u16 : Value::f32;
  RSPRUNE_CHECK(type != Value::f32 || images.is(kDLFloat, 32),
                "images must be uint8, uint16 or float32, got ", images.dtype_text());
  check_shape("autocorrelation", autocorrelation, {s.images});
  check_dtype("autocorrelation", autocorrelation, kDLFloat, 32, "float32");
  check_shape("sharpness", sharpness, {s.images});
  check_dtype("sharpness", sharpness, kDLFloat, 32, "float32");
  check_same_device({{"images", &images}, {"autocorrelation", &autocorrelation}, {"sharpness", &sharpness}});
  const void* source = images.data("images");
  const auto* mask = valid ? static_cast<const uint8_t*>(valid.data("valid")) : nullptr;
  auto* correlation = static_cast<float*>(autocorrelation.mutable_data("autocorrelation"));
  auto* sharp = static_cast<float*>(sharpness.mutable_data("sharpness"));

  py::gil_scoped_release nogil;
  texture_cpu(source, type, mask, correlation, sharp, s);
}

void saturated(const Tensor& bins, const Tensor& valid, const Tensor& counts) {
  const TextureShape s = texture_shape("bins", bins, valid);
  check_dtype("bins", bins, kDLUInt, 8, "uint8");
  check_shape("counts", counts, {s.images});
  check_dtype("counts", counts, kDLInt, 64, "int64");
  check_same_device({{"bins", &bins}, {"counts", &counts}});
  const auto* bin = static_cast<const uint8_t*>(bins.data("bins"));
  const auto* mask = valid ? static_cast<const uint8_t*>(valid.data("valid")) : nullptr;
  auto* count = static_cast<int64_t*>(counts.mutable_data("counts"));

  py::gil_scoped_release nogil;
  saturated_cpu(bin, mask, count, s);
}

Float float_type(const char* name, const Tensor& tensor) {
  if (tensor.is(kDLFloat, 32)) return Float::f32;
  if (tensor.is(kDLFloat, 16)) return Float::f16;
  if (tensor.is(kDLBfloat, 16)) return Float::bf16;
  fail(name, " must be float32, float16 or bfloat16, got ", tensor.dtype_text());
}

#ifdef RSPRUNE_WITH_CUDA
// Memory that a CUDA kernel works in, of at least `bytes` bytes; absent where it needs none.
void* check_workspace(const Tensor& workspace, int64_t bytes, const Tensor& x) {
  if (bytes == 0) return nullptr;
  RSPRUNE_CHECK(workspace && workspace.is(kDLUInt, 8) && workspace.ndim() == 1 && workspace.size(0) >= bytes,
                "workspace must be uint8 of at least ", bytes, " bytes, got ",
                workspace ? workspace.dtype_text() + " " + workspace.shape_text() : "None");
  check_same_device({{"x", &x}, {"workspace", &workspace}});
  void* memory = workspace.mutable_data("workspace");
  RSPRUNE_CHECK(reinterpret_cast<uintptr_t>(memory) % 256 == 0, "workspace must start at a multiple of 256");
  return memory;
}
#endif

AssignShape assign_shape(const Tensor& x, const Tensor& centers) {
  RSPRUNE_CHECK(x.ndim() == 2, "x must have shape [N, D], got ", x.shape_text());
  RSPRUNE_CHECK(centers.ndim() == 2 && centers.size(1) == x.size(1), "centers must have shape [K, ",
                x.size(1), "], got ", centers.shape_text());
  RSPRUNE_CHECK(x.size(1) >= 1, "x must have at least one feature, got ", x.shape_text());
  RSPRUNE_CHECK(centers.size(0) >= 1 && centers.size(0) <= INT32_MAX,
                "centers must have between 1 and 2147483647 rows, got ", centers.shape_text());
  return {x.size(0), centers.size(0), x.size(1)};
}

// Returns how many rows needed a second look, or None on CUDA, where that is added to `rechecked`.
std::optional<int64_t> kmeans_assign(const Tensor& x, const Tensor& centers, const Tensor& labels,
                                     const Tensor& distances, uintptr_t stream, const Tensor& workspace,
                                     const Tensor& bounds, const Tensor& rechecked) {
  const AssignShape s = assign_shape(x, centers);
  const auto type = float_type("x", x);
  check_dtype("centers", centers, kDLFloat, 32, "float32");
  check_shape("labels", labels, {s.points});
  check_dtype("labels", labels, kDLInt, 32, "int32");
  check_same_device({{"x", &x}, {"centers", &centers}, {"labels", &labels}});
  const bool cuda = on_cuda("x", x);
  RSPRUNE_CHECK(distances || cuda, "distances must be given on the cpu, got None");
  if (distances) {
    check_shape("distances", distances, {s.points});
    check_dtype("distances", distances, kDLFloat, 32, "float32");
    check_same_device({{"x", &x}, {"distances", &distances}});
  }
  if (bounds) {
    check_shape("bounds", bounds, {s.points, 2});
    check_dtype("bounds", bounds, kDLFloat, 32, "float32");
    check_same_device({{"x", &x}, {"bounds", &bounds}});
  }
  if (rechecked) {
    check_shape("rechecked", rechecked, {1});
    check_dtype("rechecked", rechecked, kDLInt, 64, "int64");
    check_same_device({{"x", &x}, {"rechecked", &rechecked}});
  }
  const void* points = x.data("x");
  const auto* center = static_cast<const float*>(centers.data("centers"));
  auto* label = static_cast<int32_t*>(labels.mutable_data("labels"));
  auto* distance = distances ? static_cast<float*>(distances.mutable_data("distances")) : nullptr;
  const auto* known = bounds ? static_cast<const float*>(bounds.data("bounds")) : nullptr;
  auto* count = rechecked ? static_cast<int64_t*>(rechecked.mutable_data("rechecked")) : nullptr;

#ifdef RSPRUNE_WITH_CUDA
  if (cuda) {
    DeviceGuard guard(x.t->device.id);
    void* memory = check_workspace(workspace, kmeans_workspace_cuda(points, type, s), x);
    py::gil_scoped_release nogil;
    kmeans_assign_cuda(points, type, center, label, distance, known, count, memory, s,
                       reinterpret_cast<void*>(stream));
    return std::nullopt;
  }
#endif
  static_cast<void>(workspace), static_cast<void>(stream), static_cast<void>(known);
  py::gil_scoped_release nogil;
  const int64_t found = kmeans_assign_cpu(points, type, center, label, distance, s);
  if (count) *count += found;
  return found;
}

// Bytes of workspace that kmeans_assign needs for these arguments.
int64_t kmeans_workspace(const Tensor& x, const Tensor& centers) {
  const AssignShape s = assign_shape(x, centers);
  const auto type = float_type("x", x);
#ifdef RSPRUNE_WITH_CUDA
  if (on_cuda("x", x)) {
    DeviceGuard guard(x.t->device.id);
    return kmeans_workspace_cuda(x.data("x"), type, s);
  }
#endif
  static_cast<void>(s), static_cast<void>(type);
  return 0;
}

// What a certificate needs to know of the rows; only CUDA kernels take it from outside.
void kmeans_bounds(const Tensor& x, const Tensor& bounds, uintptr_t stream) {
  RSPRUNE_CHECK(x.ndim() == 2, "x must have shape [N, D], got ", x.shape_text());
  const auto type = float_type("x", x);
  check_shape("bounds", bounds, {x.size(0), 2});
  check_dtype("bounds", bounds, kDLFloat, 32, "float32");
  check_same_device({{"x", &x}, {"bounds", &bounds}});
  RSPRUNE_CHECK(on_cuda("x", x), "x must be on a CUDA device, got ", x.device_text());
#ifdef RSPRUNE_WITH_CUDA
  const void* points = x.data("x");
  auto* to = static_cast<float*>(bounds.mutable_data("bounds"));
  const AssignShape s{x.size(0), 0, x.size(1)};
  py::gil_scoped_release nogil;
  DeviceGuard guard(x.t->device.id);
  kmeans_bounds_cuda(points, type, to, s, reinterpret_cast<void*>(stream));
#endif
  static_cast<void>(type), static_cast<void>(stream);
}

void kmeans_sums(const Tensor& x, const Tensor& labels, const Tensor& sums, const Tensor& counts,
                 uintptr_t stream, const Tensor& workspace) {
  RSPRUNE_CHECK(x.ndim() == 2, "x must have shape [N, D], got ", x.shape_text());
  RSPRUNE_CHECK(sums.ndim() == 2, "sums must have shape [K, D], got ", sums.shape_text());
  const AssignShape s{x.size(0), sums.size(0), x.size(1)};
  const auto type = float_type("x", x);
  check_shape("labels", labels, {s.points});
  check_dtype("labels", labels, kDLInt, 32, "int32");
  check_shape("sums", sums, {s.clusters, s.dim});
  check_dtype("sums", sums, kDLFloat, 64, "float64");
  check_shape("counts", counts, {s.clusters});
  check_dtype("counts", counts, kDLInt, 64, "int64");
  check_same_device({{"x", &x}, {"labels", &labels}, {"sums", &sums}, {"counts", &counts}});
  const void* points = x.data("x");
  const auto* label = static_cast<const int32_t*>(labels.data("labels"));
  auto* sum = static_cast<double*>(sums.mutable_data("sums"));
  auto* count = static_cast<int64_t*>(counts.mutable_data("counts"));
  const bool cuda = on_cuda("x", x);

#ifdef RSPRUNE_WITH_CUDA
  if (cuda) {
    DeviceGuard guard(x.t->device.id);
    void* memory = check_workspace(workspace, kmeans_sums_workspace_cuda(s), x);
    py::gil_scoped_release nogil;
    return kmeans_sums_cuda(points, type, label, sum, count, memory, s, reinterpret_cast<void*>(stream));
  }
#endif
  static_cast<void>(cuda), static_cast<void>(stream), static_cast<void>(workspace);
  py::gil_scoped_release nogil;
  for (int64_t i = 0; i < s.points; ++i)
    RSPRUNE_CHECK(label[i] < s.clusters, "labels must be below ", s.clusters, ", got ", label[i]);
  kmeans_sums_cpu(points, type, label, sum, count, s);
}

// Bytes of workspace that kmeans_sums needs for these arguments.
int64_t kmeans_sums_workspace(const Tensor& x, const Tensor& sums) {
  RSPRUNE_CHECK(x.ndim() == 2, "x must have shape [N, D], got ", x.shape_text());
  RSPRUNE_CHECK(sums.ndim() == 2, "sums must have shape [K, D], got ", sums.shape_text());
#ifdef RSPRUNE_WITH_CUDA
  if (on_cuda("x", x)) {
    DeviceGuard guard(x.t->device.id);
    return kmeans_sums_workspace_cuda({x.size(0), sums.size(0), x.size(1)});
  }
#endif
  return 0;
}

void kmeans_closer(const Tensor& x, const Tensor& candidates, const Tensor& closest, const Tensor& out,
                   const Tensor& potential) {
  RSPRUNE_CHECK(x.ndim() == 2, "x must have shape [N, D], got ", x.shape_text());
  const int64_t n = x.size(0), dim = x.size(1);
  check_shape("candidates", candidates, {dim, kCandidates});
  check_shape("closest", closest, {n});
  check_shape("out", out, {n, kCandidates});
  check_shape("potential", potential, {kCandidates});
  check_dtype("x", x, kDLFloat, 32, "float32");
  check_dtype("candidates", candidates, kDLFloat, 32, "float32");
  check_dtype("closest", closest, kDLFloat, 32, "float32");
  check_dtype("out", out, kDLFloat, 32, "float32");
  check_dtype("potential", potential, kDLFloat, 64, "float64");
  for (const auto& [name, tensor] : {std::pair{"x", &x},
                                     {"candidates", &candidates},
                                     {"closest", &closest},
                                     {"out", &out},
                                     {"potential", &potential}})
    RSPRUNE_CHECK(!on_cuda(name, *tensor), name, " must be on the cpu, got ", tensor->device_text());
  const auto* points = static_cast<const float*>(x.data("x"));
  const auto* columns = static_cast<const float*>(candidates.data("candidates"));
  const auto* before = static_cast<const float*>(closest.data("closest"));
  auto* after = static_cast<float*>(out.mutable_data("out"));
  auto* sums = static_cast<double*>(potential.mutable_data("potential"));

  py::gil_scoped_release nogil;
  kmeans_closer_cpu(points, columns, before, after, sums, n, dim);
}

}  // namespace

PYBIND11_MODULE(_C, m, py::mod_gil_not_used()) {
  const auto array = [](const char* name) { return py::arg(name).none(false); };
  m.doc() = "rsprune kernels: CPU (OpenMP) and CUDA.";
#ifdef RSPRUNE_WITH_CUDA
  m.def("cuda_unavailable", &cuda_unavailable);
#else
  m.def("cuda_unavailable", [] { return "rsprune was built without CUDA"; });
#endif
  m.def("isa", [] { return isa_name(isa()); });
  m.def("best_isa", [] { return isa_name(best_isa()); });
  m.def("patch_entropy", &patch_entropy, array("images"), py::arg("valid").none(true),
        py::arg("lut").none(true), array("out"), py::arg("patch"), py::arg("stream") = 0);
  m.def("texture", &texture, array("images"), py::arg("valid").none(true), array("autocorrelation"),
        array("sharpness"));
  m.def("saturated", &saturated, array("bins"), py::arg("valid").none(true), array("counts"));
  m.def("kmeans_assign", &kmeans_assign, array("x"), array("centers"), array("labels"),
        py::arg("distances").none(true), py::arg("stream") = 0, py::arg("workspace") = py::none(),
        py::arg("bounds") = py::none(), py::arg("rechecked") = py::none());
  m.def("kmeans_workspace", &kmeans_workspace, array("x"), array("centers"));
  m.def("kmeans_bounds", &kmeans_bounds, array("x"), array("bounds"), py::arg("stream") = 0);
  m.def("kmeans_sums", &kmeans_sums, array("x"), array("labels"), array("sums"), array("counts"),
        py::arg("stream") = 0, py::arg("workspace") = py::none());
  m.def("kmeans_sums_workspace", &kmeans_sums_workspace, array("x"), array("sums"));
  m.def("kmeans_closer", &kmeans_closer, array("x"), array("candidates"), array("closest"), array("out"),
        array("potential"));
}
