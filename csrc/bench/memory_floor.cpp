// memory_floor RANKS BYTES ITERATIONS: what the memory of this host allows two or more processes
// that average a tensor with their neighbour's, without a protocol.
//
// Each reads the neighbour's tensor right out of shared memory while it writes the average to a
// second buffer; all start and end together. Prints one line of JSON: the median time on rank 0.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <new>
#include <thread>
#include <vector>

#include "core/error.h"
#include "host/system_call.h"

namespace crossover::bench {
namespace {

constexpr size_t kPage = 4096;

/// Of all ranks, in shared memory.
class Meeting {
 public:
  void await(int size) {
    const int target = (arrived_.fetch_add(1) / size + 1) * size;
    while (arrived_.load() < target) std::this_thread::yield();
  }

 private:
  std::atomic<int> arrived_{0};
};

std::byte* share(size_t num_bytes) {
  void* const memory =
      ::mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw DeviceError("no shared memory for the tensors");
  ::madvise(memory, num_bytes, MADV_HUGEPAGE);
  return static_cast<std::byte*>(memory);
}

void average(const float* __restrict own, const float* __restrict other, float* __restrict out,
             size_t numel) {
  for (size_t k = 0; k < numel; ++k) out[k] = 0.5F * (own[k] + other[k]);
}

/// Every rank's tensor twice: what is read and what is written change places each round.
struct Tensors {
  std::byte* memory;
  size_t numel;
  float* at(int rank, int which) const {
    const size_t index = static_cast<size_t>(rank) * 2 + static_cast<size_t>(which);
    return reinterpret_cast<float*>(memory + kPage) + index * numel;
  }
};

double median_round_s(const Tensors& tensors, Meeting& meeting, int rank, int size, int rounds) {
  using Seconds = std::chrono::duration<double>;
  for (const int which : {0, 1}) std::fill_n(tensors.at(rank, which), tensors.numel, 1.0F);
  std::vector<double> times;
  for (int round = 0; round < rounds; ++round) {
    const int from = round % 2;
    meeting.await(size);
    const auto began = std::chrono::steady_clock::now();
    average(tensors.at(rank, from), tensors.at((rank + 1) % size, from), tensors.at(rank, 1 - from),
            tensors.numel);
    meeting.await(size);
    times.push_back(Seconds(std::chrono::steady_clock::now() - began).count());
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

int run(int size, size_t num_bytes, int rounds) {
  if (size < 2 || num_bytes < sizeof(float) || rounds < 1) {
    throw InvalidArgument("usage: memory_floor RANKS BYTES ITERATIONS, RANKS >= 2");
  }
  const size_t numel = num_bytes / sizeof(float);
  const size_t in_memory = kPage + static_cast<size_t>(size) * 2 * numel * sizeof(float);
  const Tensors tensors{share(in_memory), numel};
  Meeting& meeting = *new (tensors.memory) Meeting;
  int rank = 0;
  for (int other = 1; other < size && rank == 0; ++other) {
    if (checked(::fork(), "fork") == 0) rank = other;
  }
  const double median_s = median_round_s(tensors, meeting, rank, size, rounds);
  if (rank != 0) ::_exit(0);
  while (::wait(nullptr) > 0) {
  }
  std::printf("{\"ranks\": %d, \"bytes\": %zu, \"p50_s\": %.9f}\n", size, num_bytes, median_s);
  return 0;
}

}  // namespace
}  // namespace crossover::bench

int main(int argc, char** argv) {
  try {
    const auto argument = [&](int index) { return argc > index ? std::atoll(argv[index]) : 0; };
    return crossover::bench::run(static_cast<int>(argument(1)), static_cast<size_t>(argument(2)),
                                 static_cast<int>(argument(3)));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "memory_floor: %s\n", error.what());
    return 2;
  }
}
