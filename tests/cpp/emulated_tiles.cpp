// The AMX gemms over tiles in plain code, for tests on machines without AMX. Compiled for AVX-512, so it includes
// nothing of the standard library (see test_tree.py).
//
// The tiles follow the definitions of Intel's Software Developer's Manual, volume 2: LDTILECFG, TILERELEASE, TILEZERO,
// TILELOADD, TILESTORED and TDPBSUD. What would raise an exception there traps here.
#include "tests/cpp/emulated_tiles.h"

#if defined(__x86_64__)
#include "cpu/block_amx_gemm.h"

namespace hotset::cpu {
namespace {

constexpr int kMaxRows = 16, kMaxRowBytes = 64, kNTiles = 8;

struct Tile {
  int rows;
  int row_bytes;
  uint8_t data[kMaxRows][kMaxRowBytes];
};

// Each thread has tiles of its own.
struct TileState {
  bool configured;
  Tile tiles[kNTiles];
};
thread_local TileState state;

void require(bool condition) {
  if (!condition) __builtin_trap();
}

Tile& tile_at(int number) {
  require(state.configured && number >= 0 && number < kNTiles && state.tiles[number].rows > 0);
  return state.tiles[number];
}

struct EmulatedTiles {
  static void configure(const TileConfig& config) {
    require(config.palette == 1 && config.start_row == 0);
    for (uint8_t byte : config.reserved) require(byte == 0);
    state = {};
    state.configured = true;
    for (int i = 0; i < 16; ++i) {
      require(config.rows[i] <= kMaxRows && config.row_bytes[i] <= kMaxRowBytes);
      require((config.rows[i] == 0) == (config.row_bytes[i] == 0) && (i < kNTiles || config.rows[i] == 0));
      if (i < kNTiles) state.tiles[i].rows = config.rows[i], state.tiles[i].row_bytes = config.row_bytes[i];
    }
  }

  static void release() { state = {}; }

  template <int kTile>
  static void zero() {
    std::memset(tile_at(kTile).data, 0, sizeof(Tile::data));
  }

  template <int kTile>
  static void load(const void* from, int64_t stride) {
    zero<kTile>();
    Tile& tile = tile_at(kTile);
    for (int row = 0; row < tile.rows; ++row)
      std::memcpy(tile.data[row], static_cast<const std::byte*>(from) + row * stride, tile.row_bytes);
  }

  template <int kTile>
  static void store(void* to, int64_t stride) {
    const Tile& tile = tile_at(kTile);
    for (int row = 0; row < tile.rows; ++row)
      std::memcpy(static_cast<std::byte*>(to) + row * stride, tile.data[row], tile.row_bytes);
  }

  template <int kC, int kA, int kB>
  static void add_signed_by_unsigned() {
    Tile& c = tile_at(kC);
    const Tile &a = tile_at(kA), &b = tile_at(kB);
    require(kC != kA && kC != kB && kA != kB && c.rows == a.rows && c.row_bytes == b.row_bytes);
    require(a.row_bytes % 4 == 0 && b.row_bytes % 4 == 0 && a.row_bytes / 4 == b.rows);
    for (int m = 0; m < c.rows; ++m)
      for (int n = 0; n < c.row_bytes / 4; ++n) {
        int32_t sum;
        std::memcpy(&sum, &c.data[m][4 * n], sizeof sum);
        for (int k = 0; k < a.row_bytes; ++k)
          sum += static_cast<int8_t>(a.data[m][k]) * int32_t{b.data[k / 4][4 * n + k % 4]};
        std::memcpy(&c.data[m][4 * n], &sum, sizeof sum);
      }
  }
};

}  // namespace

void fill_block_emulated_amx(Kernels& table) { fill_gemms<EmulatedTiles>(table); }

}  // namespace hotset::cpu
#endif
