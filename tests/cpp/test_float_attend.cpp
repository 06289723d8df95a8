// attend_chunk: the bits of the canonical rules for any instruction set and any grouping of queries, and close to the
// reference in double.
#include <algorithm>
#include <memory>

#include "tests/cpp/float_kernel_util.h"

namespace hotset::cpu::test {
namespace {

constexpr WeightType kKvTypes[] = {kWeightF32, kWeightF16, kWeightQ8_0};

// One call's inputs. Pages beyond n_pos rows do not exist: the last page ends where memory ends.
struct AttendCase {
  WeightType kv_type;
  int64_t head_dim;
  int64_t n_pos;
  float scale;
  float softcap;
  std::vector<std::unique_ptr<Matrix>> k, v;
  std::vector<std::unique_ptr<Guarded<float>>> q;
  std::vector<int32_t> begin, end;

  AttendCase(Random& random, WeightType kv_type_in, int64_t head_dim_in, int64_t n_pos_in, int64_t n_q,
             float softcap_in)
      : kv_type(kv_type_in), head_dim(head_dim_in), n_pos(n_pos_in), scale(0.4f), softcap(softcap_in) {
    for (int64_t t = 0; t < n_pos; t += kPagePositions) {
      const int64_t rows = std::min(kPagePositions, n_pos - t);
      k.push_back(std::make_unique<Matrix>(random, kv_type, rows, head_dim, Scale::kOrdinary));
      v.push_back(std::make_unique<Matrix>(random, kv_type, rows, head_dim, Scale::kOrdinary));
    }
    for (int64_t i = 0; i < n_q; ++i) {
      q.push_back(std::make_unique<Guarded<float>>(head_dim));
      random.fill(q.back()->data(), head_dim);
      begin.push_back(0);
      end.push_back(static_cast<int32_t>(n_pos));
    }
  }

  float key(int64_t t, int64_t d) const { return k[static_cast<size_t>(t / 32)]->at(t % 32, d); }
  float value(int64_t t, int64_t d) const { return v[static_cast<size_t>(t / 32)]->at(t % 32, d); }
};

struct Attended {
  std::vector<float> m, l, o;
};

// Runs f on the arguments for queries [first, first + n) of the case.
template <class F>
void with_args(const AttendCase& c, int64_t first, int64_t n, Attended& out, size_t scratch_bytes, F f) {
  std::vector<const float*> q;
  for (int64_t i = first; i < first + n; ++i) q.push_back(c.q[static_cast<size_t>(i)]->data());
  std::vector<const std::byte*> k, v;
  for (size_t p = 0; p < c.k.size(); ++p) {
    k.push_back(c.k[p]->row(0));
    v.push_back(c.v[p]->row(0));
  }
  const size_t rounded = (scratch_bytes + 63) / 64 * 64;
  Guarded<std::byte> scratch(static_cast<int64_t>(rounded));
  std::fill_n(scratch.data(), rounded, std::byte{0xff});  // NaN
  const int64_t stride = c.head_dim + 3;
  f(AttendArgs{q.data(), c.begin.data() + first, c.end.data() + first, n, k.data(), v.data(), c.kv_type, c.n_pos,
               c.head_dim, c.scale, c.softcap, out.m.data() + first, out.l.data() + first,
               out.o.data() + first * stride, stride, scratch.data()});
}

Attended room_for(const AttendCase& c) {
  const size_t n_q = c.q.size();
  return {std::vector<float>(n_q, -7.0f), std::vector<float>(n_q, -7.0f),
          std::vector<float>(n_q * static_cast<size_t>(c.head_dim + 3), -7.0f)};
}

// The rules of cpu/kernels.h, one query at a time.
Attended canonical_attend(const AttendCase& c) {
  Attended out = room_for(c);
  for (size_t i = 0; i < c.q.size(); ++i) {
    std::vector<float> s(static_cast<size_t>(c.n_pos));
    float m = -INFINITY;
    for (int64_t t = c.begin[i]; t < c.end[i]; ++t) {
      float score =
          c.scale *
          canonical_dot(c.head_dim, [&](int64_t d) { return c.key(t, d); }, [&](int64_t d) { return (*c.q[i])[d]; });
      if (c.softcap != 0.0f) score = c.softcap * tanh_vec(score / c.softcap);
      s[static_cast<size_t>(t)] = score;
      if (score > m) m = score;
    }
    float* o = out.o.data() + i * static_cast<size_t>(c.head_dim + 3);
    std::fill_n(o, c.head_dim, 0.0f);
    float lanes[16] = {};
    for (int64_t t = c.begin[i]; t < c.end[i]; ++t) {
      const float p = exp_vec(s[static_cast<size_t>(t)] - m);
      lanes[t % 16] += p;
      for (int64_t d = 0; d < c.head_dim; ++d) o[d] = fma1(p, c.value(t, d), o[d]);
    }
    out.m[i] = m + 0.0f;  // either zero is +0
    out.l[i] = reduce_lanes(lanes);
  }
  return out;
}

void check_same(const Attended& got, const Attended& want) {
  REQUIRE(first_difference(got.m.data(), want.m.data(), static_cast<int64_t>(want.m.size())) == -1);
  REQUIRE(first_difference(got.l.data(), want.l.data(), static_cast<int64_t>(want.l.size())) == -1);
  REQUIRE(first_difference(got.o.data(), want.o.data(), static_cast<int64_t>(want.o.size())) == -1);
}

void check_case(const std::vector<Kernels>& tables, const AttendCase& c) {
  const int64_t n_q = static_cast<int64_t>(c.q.size());
  const Attended want = canonical_attend(c);
  for (const Kernels& k : tables) {
    INFO(name(k) << " type " << c.kv_type << " head_dim " << c.head_dim << " n_pos " << c.n_pos << " n_q " << n_q);
    const size_t scratch = k.attend_scratch_bytes(c.head_dim);
    Attended together = room_for(c);
    with_args(c, 0, n_q, together, scratch, [&](const AttendArgs& args) { k.attend_chunk(args); });
    check_same(together, want);
    Attended alone = room_for(c);
    for (int64_t i = 0; i < n_q; ++i)
      with_args(c, i, 1, alone, scratch, [&](const AttendArgs& args) { k.attend_chunk(args); });
    check_same(alone, want);
  }
}

void check_against_reference(const AttendCase& c) {
  Attended got = canonical_attend(c);
  const size_t n_q = c.q.size();
  std::vector<double> m(n_q), l(n_q), o(n_q * static_cast<size_t>(c.head_dim));
  Attended unused = room_for(c);
  with_args(c, 0, static_cast<int64_t>(n_q), unused, 64,
            [&](const AttendArgs& args) { reference::attend(args, m.data(), l.data(), o.data()); });
  // A score is a dot of head_dim products below `largest` (head_dim / 16 + 5 roundings), scaled, capped with tanh's 2^-22;
  // p carries twice its error (s and m) and 2 ulp; l and o add at most n_pos roundings of a sum below n_pos.
  const double largest = c.kv_type == kWeightQ8_0 ? 128.0 : 1.0;
  const double score_error = largest * 0x1p-24 * (c.head_dim / 16.0 + 8) * c.head_dim * c.scale + c.softcap * 0x1p-21;
  const double p_error = 2.0 * score_error + 4 * 0x1p-24;
  const double n = static_cast<double>(c.n_pos);
  for (size_t i = 0; i < n_q; ++i) {
    if (c.begin[i] >= c.end[i]) {
      CHECK(m[i] == -INFINITY);
      continue;
    }
    REQUIRE(std::fabs(got.m[i] - m[i]) <= score_error);
    REQUIRE(std::fabs(got.l[i] - l[i]) <= n * (p_error + n * 0x1p-24));
    for (size_t d = 0; d < static_cast<size_t>(c.head_dim); ++d) {
      const float got_o = got.o[i * static_cast<size_t>(c.head_dim + 3) + d];
      const double exact = o[i * static_cast<size_t>(c.head_dim) + d];
      REQUIRE(std::fabs(got_o - exact) <= largest * n * (p_error + n * 0x1p-24));
    }
  }
}

TEST_CASE("attend_chunk sees everything") {
  Random random(21);
  INFO("seed " << random.seed());
  const std::vector<Kernels> tables = float_tables();
  for (WeightType type : kKvTypes)
    for (int64_t head_dim : {8, 32, 64, 80, 96, 128})
      for (int64_t n_pos : {1, 2, 15, 16, 31, 32, 33, 70, 255, 256}) {
        if (type == kWeightQ8_0 && head_dim % kBlock != 0) continue;
        const int64_t n_q = 1 + random.below(n_pos > 64 ? 8 : 30);
        const AttendCase c(random, type, head_dim, n_pos, n_q, random.below(3) == 0 ? 0.7f : 0.0f);
        check_case(tables, c);
        if (n_pos < 100) check_against_reference(c);
      }
}

TEST_CASE("attend_chunk masks positions, and unseen ones leave no trace") {
  Random random(22);
  INFO("seed " << random.seed());
  const std::vector<Kernels> tables = float_tables();
  for (int round = 0; round < 60; ++round) {
    const WeightType type = kKvTypes[random.below(3)];
    const int64_t n_pos = 1 + random.below(200);
    const int64_t head_dim = type == kWeightQ8_0 || random.below(2) ? 64 : 40;
    AttendCase c(random, type, head_dim, n_pos, 1 + random.below(20), random.below(2) ? 3.0f : 0.0f);
    const int64_t kind = random.below(3);
    for (size_t i = 0; i < c.q.size(); ++i) {
      const int64_t a = random.below(n_pos + 1);
      const int64_t b = random.below(n_pos + 1);
      c.begin[i] = static_cast<int32_t>(kind == 0 ? std::min(a, b) : kind == 1 ? 0 : std::max<int64_t>(0, a - 20));
      c.end[i] = static_cast<int32_t>(kind == 0 ? std::max(a, b) : a);
    }
    if (random.below(2) == 0) {  // nobody sees the last position, which holds NaN
      for (int32_t& end : c.end) end = std::min(end, static_cast<int32_t>(n_pos - 1));
      for (auto* pages : {&c.k, &c.v}) {
        Matrix& last = *pages->back();
        std::fill_n(last.bytes.data() + last.row_at(last.n_rows - 1), last.stride, std::byte{0xff});
      }
    }
    check_case(tables, c);
    check_against_reference(c);
  }
}

TEST_CASE("attend_chunk passes NaN on") {
  Random random(23);
  AttendCase c(random, kWeightF32, 32, 40, 3, 0.0f);
  (*c.q[1])[5] = NAN;
  c.begin[2] = c.end[2] = 7;
  for (const Kernels& k : float_tables()) {
    INFO(name(k));
    Attended out = room_for(c);
    with_args(c, 0, 3, out, k.attend_scratch_bytes(32), [&](const AttendArgs& args) { k.attend_chunk(args); });
    CHECK(std::isfinite(out.l[0]));
    CHECK(std::isnan(out.l[1]));
    CHECK(std::isnan(out.o[35]));
    CHECK(out.m[2] == -INFINITY);
    CHECK(out.l[2] == 0.0f);
    CHECK(out.o[70] == 0.0f);
  }
}

}  // namespace
}  // namespace hotset::cpu::test
