// Pipes between ranks that are threads of one process, with faults to inject.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/pipe.h"

namespace crossover {

/// Faults of one network of local pipes, seeded so that a run can be repeated.
struct LocalFaults {
  uint64_t seed = 0;
  /// Probability that a fill() brings nothing this time although bytes are there: reorders the
  /// arrival between peers and splits messages at odd places.
  double delay_probability = 0.0;
  /// Most bytes that one fill() brings; 0 = all.
  size_t max_fill_bytes = 0;
};

/// All pipes among `size` ranks of one process. The pipes of one rank are used by one thread; each
/// rank may have its own. The network may be destroyed before its pipes. All methods: any thread.
class LocalNetwork {
 public:
  /// `ring_bytes` in each direction of each pair: a power of two, >= the page size, else
  /// InvalidArgument.
  LocalNetwork(int size, size_t ring_bytes, const LocalFaults& faults);
  ~LocalNetwork();

  /// The pipes of `rank`, one per peer, null for itself. Once per rank.
  std::vector<std::unique_ptr<Pipe>> take_pipes(int rank);

  /// Ends every pipe of `rank` as kill -9 would: peers read what is left, then the end.
  void kill(int rank);
  /// Bytes from and to `rank` stop moving, connections stay open: as kill -STOP.
  void freeze(int rank, bool frozen);
  /// Writes bytes into the stream from one rank to another, after a commit: garbage between frames.
  void inject(int from, int to, std::vector<unsigned char> bytes);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace crossover
