// What rounds of the engine must come to, element by element.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "core/schedule.h"
#include "engine_world.h"
#include "scalar_reference.h"

namespace crossover::testing {

inline std::vector<Replica> random_replicas(const SegmentPlan& plan, int size, uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<Replica> replicas;
  for (int rank = 0; rank < size; ++rank) {
    Replica& replica = replicas.emplace_back(plan);
    for (auto& tensor : replica.tensors) {
      for (float& value : tensor) value = normal(generator) + static_cast<float>(rank);
    }
  }
  return replicas;
}

/// Replicas hold their own addresses: a copy needs new ones.
inline std::vector<Replica> copy(const SegmentPlan& plan, const std::vector<Replica>& from) {
  std::vector<Replica> made;
  for (const Replica& replica : from) {
    Replica& target = made.emplace_back(plan);
    for (size_t i = 0; i < replica.tensors.size(); ++i) {
      std::copy(replica.tensors[i].begin(), replica.tensors[i].end(), target.tensors[i].begin());
    }
  }
  return made;
}

inline float round_to(Dtype wire, float value) {
  if (wire == Dtype::kFloat32) return value;
  uint32_t bits = std::bit_cast<uint32_t>(value);
  bits += 0x7FFF + ((bits >> 16) & 1);
  return std::bit_cast<float>(bits & 0xFFFF0000u);
}

/// Q(x) of a segment's elements.
inline std::vector<float> quantized(Dtype wire, const std::vector<float>& x) {
  std::vector<float> sent(x.size());
  if (wire == Dtype::kInt8Blocks) {
    const std::vector<double> wide(x.begin(), x.end());
    std::ranges::copy(reference::quantized(wire, wide), sent.begin());
  } else {
    std::ranges::transform(x, sent.begin(), [&](float value) { return round_to(wire, value); });
  }
  return sent;
}

/// x_i <- x_i + sum_j w_ij (m_j - m_i), m = Q(x), element by element.
inline void reference_round(const SegmentPlan& plan, const PeerSchedule& schedule, uint64_t round,
                            std::vector<Replica>& replicas) {
  const std::vector<Replica> before = copy(plan, replicas);
  for (uint32_t s = 0; s < plan.segments().size(); ++s) {
    const std::vector<PeerRow> rows = schedule.rows({round, s});
    for (size_t rank = 0; rank < replicas.size(); ++rank) {
      for (size_t t = 0; t < plan.segment(s).numels.size(); ++t) {
        const size_t index = plan.first_tensor(s) + t;
        for (size_t k = 0; k < replicas[rank].tensors[index].size(); ++k) {
          float acc = before[rank].tensors[index][k];
          const float own = round_to(plan.wire(s), acc);
          for (const WeightedPeer& entry : rows[rank]) {
            const float theirs = round_to(plan.wire(s), before[entry.peer].tensors[index][k]);
            acc = std::fma(static_cast<float>(entry.weight), theirs - own, acc);
          }
          replicas[rank].tensors[index][k] = acc;
        }
      }
    }
  }
}

inline void expect_equal(const std::vector<Replica>& a, const std::vector<Replica>& b) {
  for (size_t rank = 0; rank < a.size(); ++rank) {
    for (size_t t = 0; t < a[rank].tensors.size(); ++t) {
      ASSERT_TRUE(a[rank].tensors[t] == b[rank].tensors[t]) << "rank " << rank << ", tensor " << t;
    }
  }
}

using Flat = std::vector<std::vector<float>>;  // per rank, the elements of one segment

/// One phase on every rank: from what they hold in `work` to what they hold after it.
inline Flat reference_phase(const std::vector<Program>& programs, size_t phase, Dtype wire,
                            const Flat& work) {
  Flat sent;
  for (const auto& own : work) sent.push_back(quantized(wire, own));
  Flat start = work;
  for (size_t rank = 0; rank < programs.size(); ++rank) {
    if (phase >= programs[rank].phases.size()) continue;
    for (const Receive& r : programs[rank].phases[phase].receives) {
      if (r.peer != static_cast<int>(rank)) continue;
      for (int64_t k = r.slice.begin; k < r.slice.end; ++k) {
        float& value = start[rank][k];
        value = std::fma(static_cast<float>(r.weight), value - sent[rank][k], value);
      }
    }
  }
  Flat after = start;
  for (size_t rank = 0; rank < programs.size(); ++rank) {
    if (phase >= programs[rank].phases.size()) continue;
    const std::vector<float> own = quantized(wire, start[rank]);
    for (const Receive& r : programs[rank].phases[phase].receives) {
      if (r.peer == static_cast<int>(rank)) continue;
      for (int64_t k = r.slice.begin; k < r.slice.end; ++k) {
        const float theirs = sent[r.peer][k];
        const auto weight = static_cast<float>(r.weight);
        float& sum = after[rank][k];
        sum = weight == 1.0f ? (sum - own[k]) + theirs : std::fma(weight, theirs - own[k], sum);
      }
    }
  }
  return after;
}

/// One segment by its programs: m = Q(x), the phases on m, and x <- x - m + what they left. A rank
/// with one phase mixes into x itself.
inline void reference_segment(const std::vector<Program>& programs, Dtype wire, Flat& x) {
  Flat work;
  for (const auto& own : x) work.push_back(quantized(wire, own));
  const Flat sent = work;
  const Flat direct = reference_phase(programs, 0, wire, x);
  size_t num_phases = 0;
  for (const Program& program : programs) num_phases = std::max(num_phases, program.phases.size());
  for (size_t phase = 0; phase < num_phases; ++phase) {
    work = reference_phase(programs, phase, wire, work);
  }
  for (size_t rank = 0; rank < x.size(); ++rank) {
    if (programs[rank].phases.size() <= 1) {
      x[rank] = direct[rank];
      continue;
    }
    for (size_t k = 0; k < x[rank].size(); ++k) {
      x[rank][k] = (x[rank][k] - sent[rank][k]) + work[rank][k];
    }
  }
}

/// A round of any schedule; returns how many bytes each rank sends.
inline std::vector<uint64_t> reference_programs(const SegmentPlan& plan, const Schedule& schedule,
                                                uint64_t round, std::vector<Replica>& replicas) {
  std::vector<uint64_t> sent_bytes(replicas.size());
  for (uint32_t s = 0; s < plan.segments().size(); ++s) {
    std::vector<Program> programs;
    Dtype wire = plan.wire(s);
    Flat x(replicas.size());
    const size_t first = plan.first_tensor(s);
    const size_t end = first + plan.segment(s).numels.size();
    for (size_t rank = 0; rank < replicas.size(); ++rank) {
      const int64_t numel = plan.segment(s).numel();
      programs.push_back(schedule.program({round, s}, numel, static_cast<int>(rank)));
      const bool too_coarse = wire == Dtype::kInt8Blocks && programs.back().same_bits;
      if (too_coarse) wire = Dtype::kBfloat16;
      for (const Phase& phase : programs.back().phases) {
        for (const Send& send : phase.sends) {
          sent_bytes[rank] += packed_bytes(wire, send.slice.numel());
        }
      }
      for (size_t t = first; t < end; ++t) {
        const auto& tensor = replicas[rank].tensors[t];
        x[rank].insert(x[rank].end(), tensor.begin(), tensor.end());
      }
    }
    reference_segment(programs, wire, x);
    for (size_t rank = 0; rank < replicas.size(); ++rank) {
      auto from = x[rank].begin();
      for (size_t t = first; t < end; ++t) {
        auto& tensor = replicas[rank].tensors[t];
        std::copy_n(from, tensor.size(), tensor.begin());
        from += static_cast<ptrdiff_t>(tensor.size());
      }
    }
  }
  return sent_bytes;
}

}  // namespace crossover::testing
