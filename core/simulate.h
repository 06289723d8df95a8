// The time that a plan would take on a machine that need not be at hand: its lanes as a simulation of events, on a
// clock that bytes and rates drive.
#pragma once

#include <cstdint>
#include <vector>

#include "core/placement.h"

namespace hotset {

struct Plan;

// What a placement's problem does not say about a machine and a step.
struct SimulatedCosts {
  double to_host_gbps = 0, to_device_gbps = 0;  // the bus; above 0 where something crosses it
  double flag_seconds = 0;                      // from a Signal until the lane that waits goes on: half of a hand-off
  double copy_seconds = 0;                      // of any crossing of the bus, beside its bytes
  double host_step_seconds = 0, device_step_seconds = 0;  // of any operation, beside what it reads: phases, launches
  int64_t n_positions = 0;                                // whose keys and values the step attends to
};

// Seconds of a path through the lanes, by what they go to.
struct PathTime {
  double host = 0, device = 0;  // operations
  double bus = 0;               // what crosses it
  double flags = 0;             // between lanes

  double seconds() const { return host + device + bus + flags; }
};

struct Simulation {
  double seconds = 0;                     // of a decode step of one row
  double host_busy = 0, device_busy = 0;  // seconds of each lane's operations; a lane waits for the rest
  // What the step's time consists of: the longest path, from the last event back to whatever was waited for.
  std::vector<PathTime> layers;
  PathTime rest;  // embedding and head
};

// Runs a plan's lanes against each other. An operation takes what it reads over its lane's rate in the layer of the
// problem (outside of layers, the first one's): weights dense, units of a list gathered at their expected density as
// ReadRate::seconds has it. Lists hold the expected number of their slots' frequencies; of n slots the device's are the
// first ones, the host's the last. A Copy, and a list that the device writes for the host, take their bytes over the
// bus, lists as long as expected. Arithmetic and activations take nothing.
//
// A layer of the problem with a predictor, in a plan that does not predict, stands for one that does, with the same
// two lanes: Detect takes the predictor's bytes, and lists' detect rows are read for candidates.
//
// At least predict_seconds() of the same problem without a hand-off, and with it where attention is on the device in
// all layers. Throws std::invalid_argument for a problem that is not the plan's, rates that are not positive where they
// are used, and lanes that wait for each other.
Simulation simulate(const Plan& plan, const PlacementProblem& problem, const SimulatedCosts& costs);

// Lists differ from token to token, and a join waits for the longer side: on average it takes longer than with lists of
// average length.
struct SimulatedSpread {
  double mean_seconds = 0, standard_error = 0;  // of the mean
  double p95_seconds = 0;
};

// Simulates n_samples (at least 2) tokens whose units fire independently of each other, so that the length of a list is
// about normal. Equal seeds give equal tokens. Units of real text fire together: the true spread is larger.
SimulatedSpread simulate_firing(const Plan& plan, const PlacementProblem& problem, const SimulatedCosts& costs,
                                int64_t n_samples, uint64_t seed = 1);

}  // namespace hotset
