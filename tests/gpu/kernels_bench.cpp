// Bandwidth of pack and mix beside a device-to-device copy of the same tensors.
//
// Reads segments from standard input, one per line: name, tensor type, wire type, then the numbers
// of elements of its tensors. Writes one JSON object per line. Bytes are counted as moved: read and
// written by a copy and a pack, the tensor twice and the message once by a mix.
//
//   echo "head float32 bfloat16 1000000 1000" | gpu_kernels_bench
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "core/error.h"
#include "cuda/cuda_tables.h"
#include "cuda/kernels.h"
#include "cuda/resources.h"

namespace crossover {
namespace {

constexpr int kWarmups = 5;
constexpr int kRuns = 30;
constexpr size_t kWorkingSetBytes = size_t{1} << 30;  // several times any second-level cache

void require(cudaError_t status, const char* call) {
  if (status != cudaSuccess) {
    throw DeviceError(std::string(call) + ": " + cudaGetErrorString(status));
  }
}

struct SegmentShape {
  std::string name;
  Dtype dtype = Dtype::kFloat32;
  Dtype wire = Dtype::kFloat32;
  std::vector<int64_t> numels;
};

SegmentShape parse(const std::string& line) {
  std::istringstream words(line);
  SegmentShape shape;
  std::string dtype;
  std::string wire;
  words >> shape.name >> dtype >> wire;
  shape.dtype = parse_dtype(dtype);
  shape.wire = parse_dtype(wire);
  for (int64_t numel = 0; words >> numel;) shape.numels.push_back(numel);
  return shape;
}

/// One set of tensors with a message; several sets together do not fit into a cache.
class SegmentCopy {
 public:
  SegmentCopy(const std::shared_ptr<CudaRuntime>& runtime, const SegmentShape& shape,
              StreamHandle stream)
      : notes(runtime, 0, shape.numels, stream), shape_(shape) {
    const int64_t numel = notes.layout().numel();
    const size_t bytes = static_cast<size_t>(numel) * dtype_bytes(shape.wire);
    message = std::make_unique<CudaMemory>(*runtime, CudaMemoryKind::kDevice, bytes);
    runtime->fill(message->data(), 0, bytes, stream);
    for (const int64_t tensor_numel : shape.numels) {
      const size_t tensor_bytes = static_cast<size_t>(tensor_numel) * dtype_bytes(shape.dtype);
      tensors.push_back(
          std::make_unique<CudaMemory>(*runtime, CudaMemoryKind::kDevice, tensor_bytes));
      if (tensor_bytes > 0) runtime->fill(tensors.back()->data(), 0, tensor_bytes, stream);
      addresses.push_back(tensors.back()->data());
    }
  }

  BoundTensors bind(StreamHandle stream) {
    const TensorList list{shape_.dtype, addresses, shape_.numels, &notes};
    return bind_noted(list, {0, notes.layout().numel()}, notes.for_packs(), stream);
  }

  CudaNotes notes;
  std::vector<std::unique_ptr<CudaMemory>> tensors;
  std::vector<void*> addresses;
  std::unique_ptr<CudaMemory> message;

 private:
  const SegmentShape& shape_;
};

PackLaunch pack_of(SegmentCopy& copy, const SegmentShape& shape, StreamHandle stream) {
  const BoundTensors bound = copy.bind(stream);
  PackLaunch launch;
  launch.table = bound.table;
  launch.tiles = bound.tiles;
  launch.slice = {0, copy.notes.layout().numel()};
  launch.out = copy.message->data();
  launch.from = shape.dtype;
  launch.to = shape.wire;
  return launch;
}

MixLaunch mix_of(SegmentCopy& copy, const SegmentShape& shape, StreamHandle stream) {
  const BoundTensors bound = copy.bind(stream);
  MixLaunch launch;
  launch.table = bound.table;
  launch.tiles = bound.tiles;
  launch.slice = {0, copy.notes.layout().numel()};
  launch.tensor = shape.dtype;
  launch.own = launch.message = shape.wire;
  launch.num_messages = 1;
  launch.messages[0] = {copy.message->data(), launch.slice, 0.5};
  return launch;
}

/// Median milliseconds of one call; call k is given the index of the set it shall use.
double median_ms(StreamHandle stream, size_t num_sets, const std::function<void(size_t)>& call) {
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  require(cudaEventCreate(&begin), "cudaEventCreate");
  require(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<float> times;
  for (int run = 0; run < kWarmups + kRuns; ++run) {
    require(cudaEventRecord(begin, reinterpret_cast<cudaStream_t>(stream)), "cudaEventRecord");
    call(static_cast<size_t>(run) % num_sets);
    require(cudaEventRecord(end, reinterpret_cast<cudaStream_t>(stream)), "cudaEventRecord");
    require(cudaEventSynchronize(end), "cudaEventSynchronize");
    float time_ms = 0.0F;
    require(cudaEventElapsedTime(&time_ms, begin, end), "cudaEventElapsedTime");
    if (run >= kWarmups) times.push_back(time_ms);
  }
  require(cudaEventDestroy(begin), "cudaEventDestroy");
  require(cudaEventDestroy(end), "cudaEventDestroy");
  std::nth_element(times.begin(), times.begin() + kRuns / 2, times.end());
  return times[kRuns / 2];
}

double gigabytes_per_s(double bytes, double ms) { return bytes / ms / 1e6; }

void measure(const SegmentShape& shape) {
  const auto runtime = cudart_runtime();
  const CudaStream stream(*runtime);
  int64_t numel = 0;
  for (const int64_t tensor : shape.numels) numel += tensor;
  const double x_bytes = static_cast<double>(numel) * dtype_bytes(shape.dtype);
  const double m_bytes = static_cast<double>(numel) * dtype_bytes(shape.wire);
  const auto num_sets =
      std::max<size_t>(1, kWorkingSetBytes / static_cast<size_t>(x_bytes + m_bytes + 1));
  std::vector<std::unique_ptr<SegmentCopy>> sets;
  std::vector<PackLaunch> packs;
  std::vector<MixLaunch> mixes;
  for (size_t k = 0; k < num_sets; ++k) {
    sets.push_back(std::make_unique<SegmentCopy>(runtime, shape, stream.get()));
    packs.push_back(pack_of(*sets[k], shape, stream.get()));
    mixes.push_back(mix_of(*sets[k], shape, stream.get()));
  }
  const CudaMemory from(*runtime, CudaMemoryKind::kDevice, static_cast<size_t>(x_bytes));
  const CudaMemory to(*runtime, CudaMemoryKind::kDevice, static_cast<size_t>(x_bytes));
  const double copy_ms = median_ms(stream.get(), 1, [&](size_t) {
    require(cudaMemcpyAsync(to.data(), from.data(), from.size_bytes(), cudaMemcpyDeviceToDevice,
                            reinterpret_cast<cudaStream_t>(stream.get())),
            "cudaMemcpyAsync");
  });
  const double pack_ms =
      median_ms(stream.get(), num_sets, [&](size_t k) { runtime->launch(packs[k], stream.get()); });
  const double mix_ms =
      median_ms(stream.get(), num_sets, [&](size_t k) { runtime->launch(mixes[k], stream.get()); });
  std::printf(
      "{\"segment\": \"%s\", \"dtype\": \"%s\", \"wire\": \"%s\", \"num_tensors\": %zu, "
      "\"numel\": %lld, \"copy_ms\": %.5f, \"pack_ms\": %.5f, \"mix_ms\": %.5f, "
      "\"copy_gb_s\": %.1f, \"pack_gb_s\": %.1f, \"mix_gb_s\": %.1f}\n",
      shape.name.c_str(), std::string(dtype_name(shape.dtype)).c_str(),
      std::string(dtype_name(shape.wire)).c_str(), shape.numels.size(),
      static_cast<long long>(numel), copy_ms, pack_ms, mix_ms,
      gigabytes_per_s(2 * x_bytes, copy_ms), gigabytes_per_s(x_bytes + m_bytes, pack_ms),
      gigabytes_per_s(2 * x_bytes + m_bytes, mix_ms));
  std::fflush(stdout);
}

}  // namespace
}  // namespace crossover

int main() {
  try {
    for (std::string line; std::getline(std::cin, line);) {
      if (!line.empty()) crossover::measure(crossover::parse(line));
    }
  } catch (const crossover::CrossoverError& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
