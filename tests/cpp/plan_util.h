// Steps of plans as tests look at them.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "core/plan.h"

namespace hotset::test {

// A step's line of the dump, without its lane.
inline std::string dump_of(const Plan& plan, size_t step) {
  Plan one = plan;
  one.steps = {plan.steps[step]};
  const std::string line = dump(one);
  return line.substr(8, line.size() - 9);
}

// Every operand of an op, to be changed in place.
inline std::vector<BufferId*> buffers_of(Op& any) {
  struct Visitor {
    std::vector<BufferId*> operator()(op::Embed& o) { return {&o.out}; }
    std::vector<BufferId*> operator()(op::EmbedPosition& o) { return {&o.x}; }
    std::vector<BufferId*> operator()(op::Norm& o) { return {&o.in, &o.out}; }
    std::vector<BufferId*> operator()(op::HeadNorm& o) { return {&o.x}; }
    std::vector<BufferId*> operator()(op::MatMul& o) { return {&o.in, &o.out}; }
    std::vector<BufferId*> operator()(op::RopeAngles& o) { return {&o.out}; }
    std::vector<BufferId*> operator()(op::Rope& o) { return {&o.angles, &o.x}; }
    std::vector<BufferId*> operator()(op::StoreKv& o) { return {&o.k, &o.v}; }
    std::vector<BufferId*> operator()(op::Attention& o) { return {&o.q, &o.out}; }
    std::vector<BufferId*> operator()(op::Activate& o) { return {&o.gate, &o.up, &o.out}; }
    std::vector<BufferId*> operator()(op::Predict& o) { return {&o.in, &o.out}; }
    std::vector<BufferId*> operator()(op::Detect& o) {
      if (o.units) return {&o.in, &o.units, &o.out};
      return {&o.in, &o.out};
    }
    std::vector<BufferId*> operator()(op::SelectUnits& o) {
      if (o.among) return {&o.in, &o.among, &o.out};
      return {&o.in, &o.out};
    }
    std::vector<BufferId*> operator()(op::SparseFfn& o) {
      if (o.units) return {&o.detected, &o.units, &o.in, &o.out};
      return {&o.in, &o.out};
    }
    std::vector<BufferId*> operator()(op::JoinUnits& o) { return {&o.hot, &o.cold, &o.out}; }
    std::vector<BufferId*> operator()(op::Observe& o) { return {&o.in, &o.detected, &o.h}; }
    std::vector<BufferId*> operator()(op::MergeSums& o) { return {&o.a, &o.b, &o.out}; }
    std::vector<BufferId*> operator()(op::Add& o) { return {&o.a, &o.b, &o.out}; }
    std::vector<BufferId*> operator()(op::SoftCap& o) { return {&o.x}; }
    std::vector<BufferId*> operator()(op::SelectRows& o) { return {&o.in, &o.out}; }
    std::vector<BufferId*> operator()(op::Copy& o) { return {&o.from, &o.to}; }
    std::vector<BufferId*> operator()(op::Fetch&) { return {}; }
    std::vector<BufferId*> operator()(op::Signal&) { return {}; }
    std::vector<BufferId*> operator()(op::Wait&) { return {}; }
  };
  return std::visit(Visitor{}, any);
}

inline Plan without_step(Plan plan, size_t step) {
  plan.steps.erase(plan.steps.begin() + static_cast<std::ptrdiff_t>(step));
  return plan;
}

}  // namespace hotset::test
