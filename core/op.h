// The operations a plan is made of: the only contract between the planner and the devices.
//
// Operands are numbers: a BufferId names an activation buffer of the plan, a WeightId a weight. Activations are
// float32, (n_rows, n_cols) row by row, where n_rows is the step's number of rows unless said otherwise. An op reads
// its inputs completely before it writes, per row; `out` may equal an input only where that is said. Operands called
// optional may be absent (index -1). A bias is F32 and added to the finished product.
#pragma once

#include <cstdint>
#include <variant>

#include "core/kinds.h"

namespace hotset {

struct BufferId {
  int32_t index = -1;
  explicit operator bool() const { return index >= 0; }
  bool operator==(const BufferId& other) const { return index == other.index; }
};

struct WeightId {
  int32_t index = -1;
  explicit operator bool() const { return index >= 0; }
};

// Names a word through which one lane tells another that it has come to a point of the step (core/handoff.h).
struct FlagId {
  int32_t index = -1;
  bool operator==(const FlagId& other) const { return index == other.index; }
};

namespace op {

// out (n_embd) = row `token` of table (n_embd, n_vocab), widened exactly, times scale.
struct Embed {
  WeightId table;
  BufferId out;
  float scale = 1;
};

// x (n_embd) += row `position` of table (n_embd, n_positions).
struct EmbedPosition {
  WeightId table;
  BufferId x;
};

// kRms: out (n_embd) = in / rms(in) * weight. kLayer: out = (in - mean(in)) / deviation(in) * weight + bias.
// out may equal in.
struct Norm {
  NormKind kind;
  WeightId weight;  // (n_embd) F32
  WeightId bias;    // (n_embd) F32, kLayer only, optional
  float eps;
  BufferId in, out;
};

// Norms each of n_head heads of x (n_head * head_dim) on its own, in place: head / rms(head) * weight.
struct HeadNorm {
  WeightId weight;  // (head_dim) F32
  int64_t n_head;
  float eps;
  BufferId x;
};

// out (n_out) = weight (n_in, n_out) times in (n_in) + bias (n_out).
struct MatMul {
  WeightId weight;
  WeightId bias;  // optional
  BufferId in, out;
};

// out (n_rot) = cos of the n_rot / 2 angles of the row's position, then their sines, all times Plan::rope_magnitude.
// Frequencies: Plan::rope_freqs, or rope_freqs_local.
struct RopeAngles {
  BufferId out;
  bool is_local = false;
};

// Rotates each of n_head heads of x (n_head * head_dim) in place by `angles`; elements from n_rot on are left alone.
struct Rope {
  RopeLayout layout;
  int64_t n_head, head_dim, n_rot;
  BufferId angles;
  BufferId x;
};

// Writes k and v (n_head_kv * head_dim) of each row to the row's position in its sequence's KV pages.
struct StoreKv {
  int64_t layer;
  BufferId k, v;
};

// out (n_head * head_dim) = softmax(softcap(scale * q . K)) V over positions [0, row's position] of the row's sequence,
// or with a window over the last `window` of them. softcap(s) = cap * tanh(s / cap), or s when softcap is 0.
// Head h reads KV head h / (n_head / n_head_kv). Reads what StoreKv of the same layer wrote.
struct Attention {
  int64_t layer;
  int64_t n_head;
  float scale;
  BufferId q, out;
  float softcap = 0;
  int64_t window = 0;  // 0: all positions
};

// out (n_ff) = act(gate) * up, or act(up) without a gate. out may equal gate or up.
struct Activate {
  Activation activation;
  BufferId gate;  // optional
  BufferId up, out;
  float threshold = 0;  // kFatRelu: what passes is this more (core/kinds.h)
};

// out (n_ff) = the margin of each unit: its detect value estimated from the bit planes of the detect matrix
// (core/bit_planes.h), plus its share of slack for the estimate's error, which is z deviations where inputs are like
// noise: bias + sum over columns of (low + step * code) * in + z * error * norm2(in). A unit whose margin is not <= 0
// may be active. `in` is read as its 8-bit blocks. `out` may have more columns.
struct Predict {
  int32_t n_bits;           // 1 to kMaxPlaneBits
  float z;                  // may be infinite: every unit, or none
  WeightId planes;          // (plane_row_bytes(n_bits, n_embd), n_ff) I8, rows as encode_planes writes them
  WeightId low, step;       // (n_ff) F32
  WeightId error;           // (n_ff) F32, PlaneFit::error / sqrt(n_embd)
  WeightId bias;            // (n_ff) F32, that of the detect matrix, optional
  BufferId in, out;
};

// out (n_ff) = the products whose sign decides which units are active: weight times in + bias for every unit. The
// weight is ffn_gate where there is one, else ffn_up; or the last factor of a predictor, for margins. With a list only
// its units are computed and the others are +0, as if they did not fire. `out` may have more columns.
struct Detect {
  WeightId weight;  // (n_in, n_ff)
  WeightId bias;    // optional
  BufferId in, out;
  BufferId units{};  // the candidates, optional
};

// out (a unit list) = the units of each row whose value is not <= 0 (NaN counts), in ascending order; of those in
// `among` where there is one. With detect values these are the active units: all others add exactly nothing to a ReLU
// network of finite weights. It looks at n_units columns of `in` from first_unit on, and lists them by their distance
// from it: the hot units are one list, the cold ones another.
struct SelectUnits {
  BufferId in;   // from Detect, or margins
  BufferId out;  // a buffer of kind kUnits, or kActive, which gets the values too
  BufferId among{};  // a unit list by columns of `in`, optional
  UnitSet set = UnitSet::kActive;
  int64_t first_unit = 0;
  int64_t n_units = 0;  // 0 = all columns from first_unit on
  int64_t tally = -1;   // where the rows that list a unit are counted (Program::add_tallies): of the first; -1 = nowhere
};

// The feed-forward network over units stored as rows: out (n_embd) = sum over the listed units u of h_u * down_t_u,
// plus down_bias, where h_u = act(gate_u . in) * (up_u . in) or, without a gate, act(up_u . in). A unit left out counts
// as h_u = 0. Without `units` every unit is summed, and h of all units can be had as well. Where `out` is of kind kSums
// it gets the sums as they are, to be merged with another's.
struct SparseFfn {
  Activation activation;
  WeightId gate, gate_bias;  // (n_embd, n_ff) and (n_ff); both optional, absent with a list of kind kActive, whose
                             // values are the gate's products, or without `up` those of the up rows
  WeightId up, up_bias;      // (n_embd, n_ff) and (n_ff); the bias optional
  WeightId down_t;           // (n_embd, n_ff): a unit's outgoing weights are one row
  WeightId down_bias;        // (n_embd), optional
  BufferId detected;  // the detect values of all units, and perhaps of more, from Detect; optional
  BufferId units;     // the list of those to compute; optional, asks for `detected` unless it is of kind kActive
  BufferId in, out;
  BufferId h{};  // (n_ff, perhaps more columns) what weighs each unit's down row; optional, only without `units`
  BufferId onto{};  // kSums, that the units' sums are added to; optional, only where `out` is kSums, which may equal it
  float threshold = 0;  // as Activate::threshold
};

// out = the sums of a and b (kSums) as floats, plus bias.
struct MergeSums {
  BufferId a;
  BufferId b;     // optional
  WeightId bias;  // optional
  BufferId out;
};

// out (n_ff) = values of all units of a layer, each in the column of its unit, from those that two devices have in
// order of slots: hot (n_hot, and perhaps more columns), cold (the others). Slot s holds unit unit_of_slot[s].
struct JoinUnits {
  int64_t n_hot;
  BufferId hot;           // absent when n_hot is 0
  BufferId cold;          // absent when all units are hot
  WeightId unit_of_slot;  // (n_ff) I32, a permutation; optional: slots are units
  BufferId out;
};

// Shows a layer's FFN to StepParams::observer, row by row: its input (n_embd), the detect values of all units (n_ff),
// their h (n_ff) and, where units are predicted, their margins (n_ff). Does nothing when nobody observes.
struct Observe {
  int64_t layer;
  BufferId in, detected, h;
  BufferId margins{};  // optional
};

// out = a + b. out may equal a or b.
struct Add {
  BufferId a, b, out;
};

// x = cap * tanh(x / cap), in place.
struct SoftCap {
  float cap;
  BufferId x;
};

// out (n_output_rows, n_cols) = the rows of `in` whose logits are asked for (StepParams::output_rows).
struct SelectRows {
  BufferId in, out;
};

// to = from, of the same kind and columns. One of them is shared (kSharedLane), the other a device's own: so a device
// hands work to the host and takes the results. Always on the device's lane; the host reads and writes shared buffers
// as its own. Of a list only what it holds is moved.
struct Copy {
  BufferId from, to;
};

// to = from. `from` is in host memory; `to`, of the same shape, is a piece of the device's memory that several weights
// take turns in: its steps read a weight after its Fetch and before the next one into the same place. Of kCopyLane alone.
struct Fetch {
  WeightId from, to;
};

// Everything that this lane has done before is seen by the lane that waits for the flag. A flag has one Signal and one
// Wait, on different lanes.
struct Signal {
  FlagId flag;
};
struct Wait {
  FlagId flag;
};

}  // namespace op

// Units are summed as int64 in units of 2^-kSumBits (cpu/kernels.h, "sum of units"), so that their order and partition
// do not matter. INT64_MIN stands for a sum that is none: it becomes NaN.
constexpr int32_t kSumBits = 36;
constexpr int64_t kNoSum = INT64_MIN;

// A closed set: a device that lacks an op does not compile.
using Op =
    std::variant<op::Embed, op::EmbedPosition, op::Norm, op::HeadNorm, op::MatMul, op::RopeAngles, op::Rope,
                 op::StoreKv, op::Attention, op::Activate, op::Predict, op::Detect, op::SelectUnits, op::SparseFfn, op::MergeSums,
                 op::JoinUnits, op::Observe, op::Add, op::SoftCap, op::SelectRows, op::Copy,
                 op::Fetch, op::Signal, op::Wait>;

}  // namespace hotset
