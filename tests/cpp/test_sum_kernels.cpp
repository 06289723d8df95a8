// Sums of units: every instruction set gives the integers of the rule in cpu/kernels.h, which cpu/reference.cpp has as
// a plain loop; in any order, any partition, any number of rows at once.
#include <algorithm>
#include <numeric>

#include "tests/cpp/float_kernel_util.h"
#include "tests/cpp/sanitizers.h"

namespace hotset::cpu::test {

using hotset::test::kFewCases;

namespace {

struct SumCase {
  WeightType type;
  int64_t n_units, n_acts, first_col, n_cols;
  bool use_list;
};

int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// A matrix, a list of some of its rows, weights h of which some are 0, and sums to begin with.
struct SumInput {
  SumInput(Random& random, const SumCase& c, Scale scale)
      : shape(c),
        m(random, c.type, 2 * c.n_units + 1, round_up(c.first_col + c.n_cols, row_multiple(c.type)), scale,
          is_block_type(c.type) ? 0 : 2),
        h(c.n_acts * h_stride() - 5),
        start(static_cast<size_t>(c.n_acts * c.n_cols)) {
    for (int64_t i = 0; i < c.n_units; ++i) list.push_back(static_cast<int32_t>(2 * i + random.below(2)));
    if (c.n_units > 0) list.back() = static_cast<int32_t>(2 * c.n_units);
    random.fill(h.data(), h.size(), scale);
    for (int64_t i = 0; i < h.size(); i += 7) h[i] = i % 2 ? 0.0f : -0.0f;
    for (int64_t& sum : start) sum = static_cast<int64_t>(random.bits()) << random.below(30);
    start[static_cast<size_t>(random.below(c.n_acts * c.n_cols))] = INT64_MIN;  // a poisoned sum stays one
  }
  int64_t h_stride() const { return shape.n_units + 5; }
  RowSumArgs args(int64_t* sums, int64_t stride) const {
    return {m.view(),
            shape.use_list ? list.data() : nullptr,
            shape.n_units + 1,
            shape.n_units,
            h.data(),
            h_stride(),
            shape.n_acts,
            shape.first_col,
            shape.n_cols,
            sums,
            stride};
  }

  SumCase shape;
  Matrix m;
  Guarded<float> h;
  std::vector<int32_t> list;
  std::vector<int64_t> start;
};

void check_sums(const std::vector<Kernels>& tables, const SumInput& in) {
  const SumCase& c = in.shape;
  std::vector<int64_t> want = in.start;
  reference::row_sum(c.type, in.args(nullptr, 0), want.data());
  for (const Kernels& k : tables) {
    INFO(name(k) << " type " << c.type << " units " << c.n_units << " acts " << c.n_acts << " first " << c.first_col
                 << " cols " << c.n_cols);
    const int64_t stride = c.n_cols + 3;
    Guarded<int64_t> sums(c.n_acts * stride - 3);
    for (int64_t i = 0; i < sums.size(); ++i) sums[i] = -7;
    for (int64_t a = 0; a < c.n_acts; ++a)
      std::copy_n(in.start.data() + a * c.n_cols, c.n_cols, sums.data() + a * stride);
    k.row_sum[c.type](in.args(sums.data(), stride));
    for (int64_t a = 0; a < c.n_acts; ++a) {
      const auto* got = sums.data() + a * stride;
      REQUIRE(std::equal(got, got + c.n_cols, want.data() + a * c.n_cols));
      for (int64_t i = c.n_cols; i < stride && a + 1 < c.n_acts; ++i) REQUIRE(got[i] == -7);
    }
  }
}

// The columns of a case; for super-blocks any of its blocks may be first and last.
SumCase any_case(Random& random, WeightType type, int64_t n_units, int64_t n_acts) {
  const bool blocks = is_block_type(type);
  const int64_t n_cols = random.below(8) == 0 ? 32 : blocks ? 32 * (1 + random.below(20)) : 1 + random.below(150);
  const int64_t first_col = blocks ? 32 * random.below(9) : random.below(40);
  return {type, n_units, n_acts, first_col, n_cols, random.below(2) == 0};
}

TEST_CASE("sums of units") {
  Random random(5);
  INFO("seed " << random.seed());
  const std::vector<Kernels> tables = float_tables();
  for (WeightType type : kAllTypes)
    for (int64_t n_acts : {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 33, 65})
      for (int64_t n_units : {0, 1, 2, 3, 4, 5, 31, 32, 33, 63, 64, 65, 130, 300}) {
        if (n_acts > 3 && n_units > 9 && (n_acts + n_units) % (kFewCases ? 8 : 4) != 0) continue;
        const Scale scale = random.below(4) == 0 ? Scale::kTiny : Scale::kOrdinary;
        check_sums(tables, SumInput(random, any_case(random, type, n_units, n_acts), scale));
      }
}

// Weights h of every size that the rule allows, and then some: all 51 bits of a block's S are used.
TEST_CASE("sums of units: h of all sizes") {
  Random random(6);
  INFO("seed " << random.seed());
  const std::vector<Kernels> tables = float_tables();
  for (WeightType type : kAllTypes)
    for (int64_t n_acts : {1, 3, 17})
      for (int most = -40; most <= 17; most += kFewCases ? 9 : 3) {
        SumInput in(random, any_case(random, type, 90, n_acts), Scale::kOrdinary);
        for (int64_t i = 0; i < in.h.size(); ++i)
          in.h[i] = std::ldexp(in.h[i], most - static_cast<int>(random.below(3)));
        check_sums(tables, in);
      }
}

// Largest integers and scales of one sign: where an int32 in a kernel could run over.
TEST_CASE("sums of units: many units of the largest contributions") {
  Random random(7);
  const std::vector<Kernels> tables = float_tables();
  for (WeightType type : kAllTypes)
    // Limbs of all bits set; the largest S of four limbs, and the one after it.
    for (const float h : {32767.9f, -32767.9f, 1e3f, 0x1.fffep-6f, -0x1.fffep-6f, 0x1.fffffep-7f,
                          -0x1.fffffep-7f, 0x1p-6f}) {
      constexpr int64_t kUnits = kFewCases ? 600 : 3000;
      const int64_t n = row_multiple(type) == 1 ? 40 : row_multiple(type);
      SumInput in(random, {type, kUnits, 1, 0, n, false}, Scale::kOrdinary);
      std::byte* const first = in.m.bytes.data();
      const uint16_t one = 0x3c00;
      for (int64_t i = 0; i < in.m.bytes.size(); ++i) first[i] = std::byte{0xff};
      for (int64_t row = 0; row < in.m.n_rows; ++row) {
        std::byte* const at = first + in.m.row_at(row);
        if (type == kWeightF32)
          for (int64_t i = 0; i < n; ++i) std::memcpy(at + 4 * i, "\0\0\x80\x3f", 4);
        if (type == kWeightBF16)
          for (int64_t i = 0; i < n; ++i) std::memcpy(at + 2 * i, "\x80\x3f", 2);
        if (type == kWeightF16)
          for (int64_t i = 0; i < n; ++i) std::memcpy(at + 2 * i, &one, 2);
        const size_t block = reference::row_bytes(type, row_multiple(type));
        for (size_t b = 0; is_block_type(type) && b < reference::row_bytes(type, n); b += block) {
          for (const size_t half : halves_of(type)) std::memcpy(at + b + half, &one, 2);
          if (type == kWeightQ4_K || type == kWeightQ5_K) std::memset(at + b + 4, 0x41, 12);  // scales and minima 1, ..
          if (type == kWeightMXFP4) at[b] = std::byte{128};  // scale 1
          if (type == kWeightQ8_0) std::memset(at + b + 2, row % 2 ? 0x80 : 0x7f, 32);
        }
      }
      for (int64_t i = 0; i < in.h.size(); ++i) in.h[i] = type == kWeightQ4_K || type == kWeightQ5_K ? h / 17 : h;
      check_sums(tables, in);
    }
}

TEST_CASE("sums of units: what is too large or no number poisons its columns, but not where h is 0") {
  Random random(8);
  INFO("seed " << random.seed());
  const std::vector<Kernels> tables = float_tables();
  const uint16_t kHalves[] = {0x7c00, 0xfc00, 0x7e00, 0x7bff};  // infinities, NaN, 65504
  for (WeightType type : kAllTypes)
    for (int64_t n_acts : {1, 2, 9, 40})
      for (int round = 0; round < 12; round += kFewCases ? 3 : 1) {
        SumInput in(random, any_case(random, type, 70, n_acts), Scale::kOrdinary);
        const size_t block = reference::row_bytes(type, row_multiple(type));
        for (int hit = 0; hit < round; ++hit) {  // round 0: a sane matrix
          const size_t at = in.m.row_at(random.below(in.m.n_rows)) +
                            static_cast<size_t>(random.below(in.m.n / row_multiple(type))) * block;
          const uint16_t half = kHalves[random.below(4)],
                         wide[2] = {0, static_cast<uint16_t>(random.below(2) ? 0x7f80 : 0xffc0)};
          if (type == kWeightF32)
            std::memcpy(in.m.bytes.data() + at, wide, 4);
          else if (type == kWeightBF16)
            std::memcpy(in.m.bytes.data() + at, wide + 1, 2);
          else
            for (const size_t from : halves_of(type))
              if (hit % 2 == 0 || from == halves_of(type).back()) std::memcpy(in.m.bytes.data() + at + from, &half, 2);
          if (type == kWeightMXFP4) in.m.bytes[static_cast<int64_t>(at)] = std::byte{255};
        }
        if (round % 2 == 1) {
          const float kHard[] = {INFINITY, -INFINITY, NAN, 0x1p30f, 0x1p127f, -32000.0f, 33000.0f, -0.0f, 0x1p-149f};
          for (int i = 0; i < 4; ++i) in.h[random.below(in.h.size())] = kHard[random.below(9)];
        }
        check_sums(tables, in);
      }
}

TEST_CASE("sums of units do not depend on order or partition") {
  Random random(9);
  INFO("seed " << random.seed());
  constexpr int64_t kUnits = 200, kColumns = 768;
  for (WeightType type : kAllTypes) {
    const Matrix m(random, type, kUnits, kColumns, Scale::kOrdinary);
    std::vector<float> h(kUnits);
    random.fill(h.data(), kUnits);
    for (const Kernels& k : float_tables()) {
      INFO(name(k) << " type " << type);
      std::vector<int64_t> whole(kColumns), parts(kColumns);
      k.row_sum[type]({m.view(), nullptr, 0, kUnits, h.data(), 0, 1, 0, kColumns, whole.data(), 0});
      std::vector<std::vector<int32_t>> subsets(1 + static_cast<size_t>(random.below(6)));
      for (int32_t unit = kUnits - 1; unit >= 0; --unit)
        subsets[static_cast<size_t>(random.below(static_cast<int64_t>(subsets.size())))].push_back(unit);
      for (const std::vector<int32_t>& units : subsets) {
        std::vector<float> some;
        for (const int32_t unit : units) some.push_back(h[static_cast<size_t>(unit)]);
        const int64_t columns[] = {0, 32, 96, 256, 320, 672, kColumns};
        for (int c = 0; c < 6; ++c)
          k.row_sum[type]({m.view(), units.data(), 0, static_cast<int64_t>(units.size()), some.data(), 0, 1, columns[c],
                           columns[c + 1] - columns[c], parts.data() + columns[c], 0});
      }
      CHECK(whole == parts);
      CHECK(std::any_of(whole.begin(), whole.end(), [](int64_t sum) { return sum != 0; }));
    }
  }
}

}  // namespace
}  // namespace hotset::cpu::test
