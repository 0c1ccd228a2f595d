// The ranks of a benchmark: processes with a pipe to each other, without Python and rendezvous.
//
// The connections are not authenticated: for measurements among one's own machines.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/pipe.h"
#include "host/unique_fd.h"

namespace crossover::bench {

enum class Medium { kSharedMemory, kTcp };

/// One rank's connections.
struct Rank {
  int rank = 0;
  int size = 1;
  std::vector<std::unique_ptr<Pipe>> pipes;  // by peer, null for itself; taken by a transport
  std::vector<UniqueFd> control;  // rank 0: a socket to each peer; others: to rank 0 only
};

/// Forks `size` ranks on this host; each runs `body` and ends. Returns 0 once all ended well; ends
/// the others and returns 1 when one has failed. The caller has no threads.
int run_forked(int size, Medium medium, const std::function<void(Rank)>& body);

/// True if RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set, as torchrun and its like do.
bool launched();

/// Joins the ranks that the environment names, over TCP. Throws InvalidArgument for a variable that
/// is no number, TransportError if a rank is not there within 30 s.
Rank join_launched();

/// Rank 0 gets everybody's numbers in order of rank, the others nothing; every rank gives as many.
std::vector<double> gather(const Rank& rank, const std::vector<double>& own);

/// Returns when every rank has called it.
void barrier(const Rank& rank);

}  // namespace crossover::bench
