#include "core/knapsack.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <queue>
#include <tuple>

namespace hotset {
namespace {

using Class = std::vector<Alternative>;

// What is left of a class in a node: alternatives [begin, end).
struct Range {
  size_t begin, end;
};

struct Node {
  double bound;
  int64_t number;
  std::vector<Range> ranges;
  size_t cut_class = 0, cut_at = 0;  // its children: the alternatives of that class below cut_at, and from it on

  // Order of the queue: the lowest bound first, the oldest among equals.
  bool operator<(const Node& other) const { return bound != other.bound ? bound > other.bound : number > other.number; }
};

// The alternatives of a range that are the cheapest at some price, ascending in weight, and the price below which the
// next one is cheaper (falling; one less than there are alternatives).
struct Hull {
  std::vector<size_t> index;
  std::vector<double> price;

  // Position in `index` of the lightest alternative that is cheapest at `at`.
  size_t choice(double at) const {
    return static_cast<size_t>(std::partition_point(price.begin(), price.end(), [&](double p) { return p > at; }) -
                               price.begin());
  }
};

double slope(const Alternative& a, const Alternative& b) {
  return (a.cost - b.cost) / static_cast<double>(b.weight - a.weight);
}

Hull hull_of(const Class& points, Range range) {
  Hull out;
  for (size_t i = range.begin; i < range.end; ++i) {
    while (!out.price.empty() && slope(points[out.index.back()], points[i]) >= out.price.back()) {
      out.index.pop_back();
      out.price.pop_back();
    }
    if (!out.index.empty()) out.price.push_back(slope(points[out.index.back()], points[i]));
    out.index.push_back(i);
  }
  return out;
}

// What one node's relaxation gives.
struct Relaxed {
  bool feasible = false;
  double bound = 0;
  std::vector<size_t> chosen;
  double cost = 0;
  bool is_cut = false;  // false: `chosen` costs the bound
  size_t cut_class = 0, cut_at = 0;
};

class Search {
 public:
  Search(const std::vector<Class>& classes, int64_t limit, const KnapsackOptions& options)
      : classes_(classes), limit_(limit), options_(options), hulls_(classes.size()) {}

  KnapsackResult run() {
    std::priority_queue<Node> open;
    Node root{-std::numeric_limits<double>::infinity(), 0, {}};
    for (const Class& each : classes_) root.ranges.push_back({0, each.size()});
    add(open, std::move(root));
    while (!open.empty() && !is_proven(open.top().bound) && result_.n_nodes < options_.max_nodes) {
      const Node node = open.top();
      open.pop();
      for (const bool upper : {false, true}) {
        Node child{node.bound, result_.n_nodes, node.ranges};
        Range& range = child.ranges[node.cut_class];
        (upper ? range.begin : range.end) = node.cut_at;
        add(open, std::move(child));
      }
    }
    result_.bound = std::min(result_.cost, dropped_bound_);
    if (!open.empty()) result_.bound = std::min(result_.bound, open.top().bound);
    return result_;
  }

 private:
  bool is_proven(double bound) const {
    constexpr double kRounding = 1e-12;
    return result_.feasible && bound >= result_.cost - std::max(options_.tolerance, kRounding) * result_.cost;
  }

  // Solves a node's relaxation and keeps it when it may hold something better.
  void add(std::priority_queue<Node>& open, Node node) {
    ++result_.n_nodes;
    const Relaxed relaxed = relax(node.ranges);
    if (!relaxed.feasible) return;
    if (!result_.feasible || relaxed.cost < result_.cost) {
      result_.feasible = true;
      result_.cost = relaxed.cost;
      result_.chosen = relaxed.chosen;
    }
    node.bound = std::max(node.bound, relaxed.bound);  // a part of the parent cannot cost less than the parent
    node.cut_class = relaxed.cut_class, node.cut_at = relaxed.cut_at;
    if (!relaxed.is_cut) return;
    if (is_proven(node.bound))
      dropped_bound_ = std::min(dropped_bound_, node.bound);
    else
      open.push(std::move(node));
  }

  const Hull& hull(size_t which, Range range) {
    const auto [it, is_new] = hulls_[which].try_emplace({range.begin, range.end});
    if (is_new) it->second = hull_of(classes_[which], range);
    return it->second;
  }

  // Weight of the cheapest alternatives at a price.
  int64_t weight_at(const std::vector<const Hull*>& hulls, double price) const {
    int64_t out = 0;
    for (size_t c = 0; c < hulls.size(); ++c) out += classes_[c][hulls[c]->index[hulls[c]->choice(price)]].weight;
    return out;
  }

  // Bisects the prices of all hulls; returns the lowest known price at which the weights fit, and the one below it.
  std::pair<double, double> critical_price(const std::vector<const Hull*>& hulls) const {
    double high = 0;
    for (const Hull* each : hulls)
      if (!each->price.empty()) high = std::max(high, each->price.front());
    double low = 0;
    for (int step = 0; step < 100 && low < high; ++step) {
      const double middle = low + (high - low) / 2;
      if (middle <= low || middle >= high) break;
      (weight_at(hulls, middle) <= limit_ ? high : low) = middle;
    }
    return {high, low};
  }

  Relaxed relax(const std::vector<Range>& ranges) {
    Relaxed out;
    std::vector<const Hull*> hulls;
    int64_t least = 0;
    for (size_t c = 0; c < classes_.size(); ++c) {
      if (ranges[c].begin >= ranges[c].end) return out;
      hulls.push_back(&hull(c, ranges[c]));
      least += classes_[c][ranges[c].begin].weight;
    }
    if (least > limit_) return out;
    out.feasible = true;
    const bool all_fits = weight_at(hulls, 0) <= limit_;
    const auto [price, below] = all_fits ? std::pair{0.0, 0.0} : critical_price(hulls);
    int64_t left = limit_ - weight_at(hulls, price);
    out.bound = -price * static_cast<double>(limit_);
    for (size_t c = 0; c < classes_.size(); ++c) {
      const Class& points = classes_[c];
      const Hull& each = *hulls[c];
      size_t at = each.choice(price);
      out.bound += points[each.index[at]].cost + price * static_cast<double>(points[each.index[at]].weight);
      // At the critical price some classes are as cheap with more weight: they take it one after the other while it
      // fits, and the first for which it does not is the one that the limit cuts.
      for (; !all_fits && at + 1 < each.index.size() && each.price[at] > below; ++at) {
        const int64_t more = points[each.index[at + 1]].weight - points[each.index[at]].weight;
        if (more > left) {
          if (!out.is_cut) out.is_cut = true, out.cut_class = c, out.cut_at = each.index[at + 1];
          break;
        }
        left -= more;
      }
      out.chosen.push_back(each.index[at]);
    }
    fill(ranges, left, out.chosen);
    for (size_t c = 0; c < classes_.size(); ++c) out.cost += classes_[c][out.chosen[c]].cost;
    out.bound = std::min(out.bound, out.cost);  // they may meet but for rounding
    return out;
  }

  // Spends what is left of the limit on what fits, each time where it saves most per weight.
  void fill(const std::vector<Range>& ranges, int64_t left, std::vector<size_t>& chosen) const {
    std::vector<Hull> hulls(classes_.size());  // of what fits each class, from what it has
    std::priority_queue<std::pair<double, size_t>> next;
    const auto look_again = [&](size_t c) {
      hulls[c] = hull_of(classes_[c], {chosen[c], end_of_fitting(c, ranges[c].end, chosen[c], left)});
      if (!hulls[c].price.empty()) next.push({hulls[c].price.front(), c});
    };
    for (size_t c = 0; c < classes_.size(); ++c) look_again(c);
    while (!next.empty()) {
      const size_t c = next.top().second;
      next.pop();
      const size_t to = hulls[c].index[1];
      const int64_t more = classes_[c][to].weight - classes_[c][chosen[c]].weight;
      if (more <= left) {
        left -= more;
        chosen[c] = to;
      }
      look_again(c);
    }
  }

  // Index behind the heaviest alternative that `left` more weight than `chosen` allows.
  size_t end_of_fitting(size_t which, size_t end, size_t chosen, int64_t left) const {
    const Class& points = classes_[which];
    const int64_t most = points[chosen].weight + left;
    const auto begin = points.begin() + static_cast<std::ptrdiff_t>(chosen);
    return static_cast<size_t>(std::partition_point(begin, points.begin() + static_cast<std::ptrdiff_t>(end),
                                                    [&](const Alternative& each) { return each.weight <= most; }) -
                               points.begin());
  }

  const std::vector<Class>& classes_;
  const int64_t limit_;
  const KnapsackOptions options_;
  std::vector<std::map<std::pair<size_t, size_t>, Hull>> hulls_;    // of each class, by range
  double dropped_bound_ = std::numeric_limits<double>::infinity();  // of nodes that were not worth a look
  KnapsackResult result_;
};

}  // namespace

KnapsackResult solve_knapsack(const std::vector<std::vector<Alternative>>& classes, int64_t limit,
                              const KnapsackOptions& options) {
  return Search(classes, limit, options).run();
}

std::vector<size_t> pareto(const std::vector<Alternative>& points) {
  std::vector<size_t> order(points.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::tie(points[a].weight, points[a].cost, a) < std::tie(points[b].weight, points[b].cost, b);
  });
  std::vector<size_t> out;
  for (const size_t i : order)
    if (out.empty() || points[i].cost < points[out.back()].cost) out.push_back(i);
  return out;
}

}  // namespace hotset
