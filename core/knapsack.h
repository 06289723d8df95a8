// The multiple-choice knapsack: one alternative of every class, least total cost within a limit on total weight.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace hotset {

// One alternative. Both are 0 or more.
struct Alternative {
  int64_t weight = 0;
  double cost = 0;
};

struct KnapsackOptions {
  double tolerance = 1e-4;  // proven relative gap at which the search ends; 0 = until the best is proven
  int64_t max_nodes = 400;  // nodes after which it ends in any case
};

struct KnapsackResult {
  bool feasible = false;
  std::vector<size_t> chosen;  // index of the alternative of each class
  double cost = 0;
  double bound = 0;  // no choice within the limit costs less; at most `cost`
  int64_t n_nodes = 0;
};

// Alternatives of a class come ascending in weight and strictly falling in cost, at least one. Costs are finite.
//
// For a price per weight every class takes its cheapest alternative by itself, one on its lower convex hull; the price
// at which the weights just fit (found by bisection) gives a lower bound (Lagrange), and the alternatives of that
// price, with what is left of the limit spent where it saves most per weight, a choice. Branch and bound on the class
// that the limit cuts between two alternatives closes the gap, best bound first. Deterministic: the search is limited
// by nodes, not by time. Source of the bound: Sinha and Zoltners, The multiple-choice knapsack problem, 1979.
KnapsackResult solve_knapsack(const std::vector<std::vector<Alternative>>& classes, int64_t limit,
                              const KnapsackOptions& options = {});

// Keeps of `points` those that no other one beats in both weight and cost, in the order that solve_knapsack wants; the
// result holds indices into `points`. Among equals the first one stays.
std::vector<size_t> pareto(const std::vector<Alternative>& points);

}  // namespace hotset
