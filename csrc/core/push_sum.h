// Push-sum over column-stochastic graphs, with tensors that always hold the de-biased model.
//
// P (row = receiver, column = source) says which share of its own each rank gives to whom; columns
// sum to 1, rows need not. With x = w z and x' = P x, w' = P w, every rank's z' = x' / w' is
//   w_i' = p_ii w_i + sum_j p_ij w_j
//   z_i' = z_i + sum_j q_ij (m_j - m_i),   q_ij = p_ij w_j / w_i',   m = Q(z)
// which is the difference form of every other schedule. w_j travels with message m_j. sum_i w_i
// stays n; sum_i w_i z_i is kept where Q changes nothing, else to sum_i (w_i' - w_i) (z_i - m_i).
// Source: Kempe, Dobra, Gehrke, FOCS 2003; Assran et al., SGP, arXiv 1811.10792.
#pragma once

#include <span>
#include <vector>

#include "core/program.h"

namespace crossover {

struct PushSumStep {
  double weight = 1.0;          // w_i'
  std::vector<double> factors;  // q_ij of each receive of the phase
};

/// One step of a rank of weight `own` whose `phase` has receives of weight p_ij and keeps p_ii.
/// `peers`: w_j of each receive.
PushSumStep push_sum_step(const Phase& phase, double own, std::span<const double> peers);

}  // namespace crossover
