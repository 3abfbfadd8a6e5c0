// Quantised weights and the integer products over them.
//
// A weight is scale * (code - zero) + shift. Inputs are rounded to 8 bits per block of 32, with a scale of their own, so
// that the sum over a block is made of whole numbers, exact in any order on any machine; the scaled sums of blocks are
// added one after the other in float32, multiplied and added in two roundings, which every machine has. Each output is
// one such chain in its own lane: its bits depend neither on what is computed beside it nor on the instructions.
//
// A panel holds 32 outputs. Per group of inputs come the factors, one of each kind for every output, and then its blocks:
// rows of 32 words, a word holding the codes of four inputs (a "step") of one output. Of 4-bit codes, one row holds two
// steps, the second in the upper halves of the bytes; the fifth and sixth bits follow in rows of their own.
#pragma once

#include <algorithm>

#include "simd.h"

namespace outpace {

constexpr int kColumns = 32;
constexpr int kVectors = kColumns / kLanes;
constexpr int kBlock = 32;               // inputs that are rounded together
constexpr int kSteps = kBlock / 4;
constexpr int kInputWords = kSteps + 4;  // a block of inputs: its codes, its scale, three sums (see encode_block)
constexpr int kWholeBlocks = 8;          // blocks under one pair of float16 factors (see kWhole)
constexpr int64_t kRowBytes = 4 * kColumns;
constexpr int kMaxCodeTile = kLanes == 16 ? 8 : 2;  // rows that share what is unpacked of a block
constexpr int kTileBlock = kMaxCodeTile * kInputWords;  // words: a block of all rows of a tile, row after row

// How factors are stored: float16, float32, or whole numbers of 8 bits times a float16 per 256 inputs.
enum Factors : int64_t { kHalf, kFloat, kWhole };

// How a matrix is stored; mirrored by `Coding` of `library.py`.
struct Coding {
  int64_t bits;   // 4, 5, 6 or 8; 0 = not quantised
  int64_t group;  // inputs per factor: 16, or a multiple of 32
  int64_t factors;
  int64_t has_shift;
  int64_t zero;          // 0 with shifts
  const uint8_t* table;  // 16 codes of 8 bits that codes of 4 bits stand for; or null

  int64_t halves() const { return group < kBlock ? 2 : 1; }
  int64_t kinds() const { return has_shift ? 2 : 1; }
  int64_t group_blocks() const { return group < kBlock ? 1 : group / kBlock; }
  int64_t factor_bytes() const { return kColumns * (factors == kHalf ? 2 : factors == kFloat ? 4 : 1); }
  int64_t block_bytes() const { return bits * kRowBytes; }
  int64_t panel_bytes(int64_t blocks) const {
    int64_t bytes = blocks * block_bytes();
    bytes += (blocks + group_blocks() - 1) / group_blocks() * halves() * kinds() * factor_bytes();
    if (factors == kWhole) bytes += (blocks + kWholeBlocks - 1) / kWholeBlocks * kinds() * 2 * kColumns;
    return round_up(bytes, 64);
  }
};

constexpr int64_t num_blocks(int64_t inputs) { return (inputs + kBlock - 1) / kBlock; }

// --- inputs ------------------------------------------------------------------------------------------------------

// Rows cut into tiles of nearly equal height. Encoded ones lie tile after tile, and in a tile block after block, with a
// block of every row: the kernel walks through all rows of a tile with one pointer.
struct Tiles {
  Tiles(int64_t rows, int64_t most, int64_t blocks)
      : rows(rows), count((rows + most - 1) / most), words(blocks * kTileBlock) {}

  int64_t height(int64_t tile) const { return rows / count + (tile < rows % count); }
  int64_t first(int64_t tile) const { return rows / count * tile + std::min(tile, rows % count); }
  // Where block 0 of an encoded row lies.
  uint32_t* place(uint32_t* tiles, int64_t row) const {
    const int64_t low = rows / count, high = (low + 1) * (rows % count);
    const int64_t tile = row < high ? row / (low + 1) : rows % count + (row - high) / low;
    return tiles + tile * words + (row - first(tile)) * kInputWords;
  }

  int64_t rows, count, words;
};

// Round a block of inputs to whole numbers of -127..127 times a scale; what is not finite makes the scale so. Behind the
// scale stands the sum of all, or two places hold those of the halves, as a matrix stored like `coding` wants them: what
// a sum of products begins with, or, as floats, what shifts are multiplied with.
inline void encode_block(const Coding& coding, const Floats (&values)[kBlock / kLanes], uint32_t* to) {
  constexpr int kParts = kBlock / kLanes;
  Ints largest{};
  for (int i = 0; i < kParts; i++) {
    const Ints size = bits<Ints>(values[i]) & 0x7fffffff;  // ordered as the values are, NaN above all
    largest = size > largest ? size : largest;
  }
  const float top = bits<float>(max_lanes(largest)), scale = top / 127.0f;
  const Floats inverse = splat(top > 1e-30f && top < __builtin_inff() ? 127.0f / top : 0.0f);
  const Floats shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, ties to even
  Ints sum[2] = {};
  int8_t* codes = reinterpret_cast<int8_t*>(to);
  for (int i = 0; i < kParts; i++) {
    const Ints code = bits<Ints>(values[i] * inverse + shift) - bits<Ints>(shift);
    narrow_bytes(codes + i * kLanes, code);
    sum[2 * i / kParts] += code;
  }
  to[kSteps] = bits<uint32_t>(scale);
  const auto tell = [&](int which, int32_t total) {
    const float weight = scale * static_cast<float>(total);
    const int32_t start = static_cast<int32_t>(-coding.zero) * total;
    to[kSteps + which] = coding.has_shift ? bits<uint32_t>(weight) : static_cast<uint32_t>(start);
  };
  if (coding.halves() == 1) return tell(1, sum_lanes(sum[0] + sum[1]));
  tell(2, sum_lanes(sum[0]));
  tell(3, sum_lanes(sum[1]));
}

// `width` floats, padded with zeros to whole blocks.
inline void encode_row(const Coding& coding, const float* from, int64_t width, uint32_t* to) {
  for (int64_t block = 0; block < num_blocks(width); block++) {
    Floats values[kBlock / kLanes];
    for (int i = 0; i < kBlock / kLanes; i++) values[i] = load<Floats>(from + block * kBlock + i * kLanes);
    encode_block(coding, values, to + block * kTileBlock);
  }
}

// --- what is fetched while something is computed -------------------------------------------------------------------

constexpr int kLine = 64;  // bytes per cache line

// Bytes between what is computed and what is fetched: far enough for memory to answer in time, near enough for the first
// cache to hold it beside the inputs. A panel ahead, as far as the second cache, eight rows took 9 to 15% longer.
constexpr int64_t kAhead = 8192;

// Where to fetch from: `left` bytes from `at` on, further on in a panel, then what is read next.
struct Ahead {
  explicit Ahead(const uint8_t* next) : at(next), next(next), left(0) {}
  Ahead(const uint8_t* panel, int64_t bytes, const uint8_t* next)
      : at(panel + std::min(bytes, kAhead)), next(next), left(bytes - std::min(bytes, kAhead)) {}

  void fetch() {
    if (left == 0) at = next;
    __builtin_prefetch(at, 0, 3);
    at += kLine, left -= kLine;
  }

  const uint8_t *at, *next;
  int64_t left;
};

// --- weights -----------------------------------------------------------------------------------------------------

// The factors of one vector of columns.
inline Floats read_factors(int64_t kind, const uint8_t* at, int v, const uint8_t* whole) {
  if (kind == kHalf) return from_half(at + v * kLanes * 2);
  if (kind == kFloat) return load<Floats>(reinterpret_cast<const float*>(at) + v * kLanes);
  return to_floats(widen_bytes(at + v * kLanes)) * from_half(whole + v * kLanes * 2);
}

// The factors that hold for a (half) block.
struct Held {
  Floats scale[kVectors], shift[kVectors];

  void read(const Coding& coding, const uint8_t* at, const uint8_t* whole) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) scale[v] = read_factors(coding.factors, at, v, whole);
    if (!coding.has_shift) return;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; v++) {
      shift[v] = read_factors(coding.factors, at + coding.factor_bytes(), v, whole + 2 * kColumns);
    }
  }
};

// Steps 2 * pair and 2 * pair + 1 of a block.
template <int kBits, bool kHasTable>
inline void unpack(const uint8_t* block, int pair, Words table, Words (&code)[2][kVectors]) {
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; v++) {
    const auto row = [&](int index) {
      return load<Words>(reinterpret_cast<const uint32_t*>(block + index * kRowBytes) + v * kLanes);
    };
    if constexpr (kBits == 8) {
      for (int i = 0; i < 2; i++) code[i][v] = row(2 * pair + i);
    } else {
      const Words both = row(pair);
      code[0][v] = both & 0x0f0f0f0f;
      code[1][v] = both >> 4 & 0x0f0f0f0f;
      if constexpr (kBits == 5) {  // bit s of a byte belongs to step s
        const Words high = row(kSteps / 2);
        for (int i = 0; i < 2; i++) {
          const int step = 2 * pair + i;
          code[i][v] |= (step < 4 ? high << (4 - step) : high >> (step - 4)) & 0x10101010;
        }
      }
      if constexpr (kBits == 6) {  // two bits per step: steps 0 to 3 in one row, 4 to 7 in the next
        const Words high = row(kSteps / 2 + pair / 2);
        for (int i = 0; i < 2; i++) {
          const int at = 2 * (2 * (pair % 2) + i);
          code[i][v] |= (at < 4 ? high << (4 - at) : high >> (at - 4)) & 0x30303030;
        }
      }
      if constexpr (kHasTable) {
        for (int i = 0; i < 2; i++) code[i][v] = look_up(table, code[i][v]);
      }
    }
  }
}

// Where the scaled sums of a tile are kept: in registers while there are enough, else in memory.
template <int kRows>
struct Totals {
  static constexpr bool kAreHeld = kRows * kVectors <= 8;

  explicit Totals(float* memory) : memory(memory) {
    for (int i = 0; i < kRows * kVectors; i++) store(memory + i * kLanes, Floats{});
  }
  void add(int row, int v, Floats value) {
    if constexpr (kAreHeld) held[row][v] += value;
    else store(at(row, v), load<Floats>(at(row, v)) + value);
  }
  void finish() {
    if constexpr (!kAreHeld) return;
    for (int row = 0; row < kRows; row++) {
      for (int v = 0; v < kVectors; v++) store(at(row, v), held[row][v]);
    }
  }
  // Without this, the compiler keeps sums in registers across blocks, and spills those that every step adds to.
  void forget() { asm("" : "+r"(memory)); }
  float* at(int row, int v) const { return memory + row * kColumns + v * kLanes; }

  float* memory;
  Floats held[kAreHeld ? kRows : 1][kVectors] = {};
};

// kRows rows of a tile times one panel: sums [kRows, kColumns]. `lines` cache lines are fetched from `ahead` per block.
template <int kBits, bool kHasTable, bool kIsSplit, int kRows>
__attribute__((noinline)) void code_tile(const Coding& coding, int64_t blocks, const uint8_t* at, const uint32_t* input,
                                         Ahead ahead, int64_t lines, float* sums) {
  constexpr int kUsed = kHasTable ? 8 : kBits;
  const Coding how = coding;
  const bool has_shift = how.has_shift;
  const int64_t group_blocks = how.group_blocks(), factor_bytes = how.kinds() * how.factor_bytes();
  Words table{};
  if constexpr (kHasTable) {
    for (size_t i = 0; i < sizeof table / 16; i++) memcpy(reinterpret_cast<char*>(&table) + 16 * i, how.table, 16);
  }
  Held held{};
  Totals<kRows> totals(sums);
  const uint8_t* whole = at;
  for (int64_t block = 0, left = 0; block < blocks; block++, left--) {
    for (int64_t line = 0; line < lines; line++) ahead.fetch();
    if (how.factors == kWhole && block % kWholeBlocks == 0) {
      whole = at;
      at += how.kinds() * 2 * kColumns;
    }
    const uint8_t* factors = at;
    if (left == 0) {
      if constexpr (!kIsSplit) held.read(how, factors, whole);
      at += how.halves() * factor_bytes;
      left = group_blocks;
    }
    totals.forget();
    // Where factors hold for half a block, each half is finished by itself.
    constexpr int kParts = kIsSplit ? 2 : 1, kPairs = kSteps / 2 / kParts;
#pragma GCC unroll 2
    for (int part = 0; part < kParts; part++) {
      if constexpr (kIsSplit) held.read(how, factors + part * factor_bytes, whole);
      const uint32_t* facts = input + kSteps;  // of the first row: its scale, and what its sums are good for
      const int which = kIsSplit ? 2 + part : 1;
      Ints sum[kRows][kVectors];
      Ints other[kRows][kVectors] = {};  // every second step of few rows: sums are exact, and shorter chains wait less
#pragma GCC unroll 16
      for (int row = 0; row < kRows; row++) {
        const Ints start = has_shift ? Ints{} : bits<Ints>(splat_word(facts[row * kInputWords + which]));
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) sum[row][v] = start;
      }
#pragma GCC unroll 4
      for (int pair = part * kPairs; pair < (part + 1) * kPairs; pair++) {
        Words code[2][kVectors];
        unpack<kBits, kHasTable>(at, pair, table, code);
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
#pragma GCC unroll 16
          for (int row = 0; row < kRows; row++) {
            const Words value = splat_word(input[row * kInputWords + 2 * pair + i]);
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; v++) {
              Ints& to = kRows * kVectors <= 4 && i ? other[row][v] : sum[row][v];
              to = dot<kUsed>(to, code[i][v], value);
            }
          }
        }
      }
#pragma GCC unroll 16
      for (int row = 0; row < kRows; row++) {
        const Floats scale = splat(bits<float>(facts[row * kInputWords]));
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) totals.add(row, v, held.scale[v] * scale * to_floats(sum[row][v] + other[row][v]));
      }
      if (!has_shift) continue;
#pragma GCC unroll 16
      for (int row = 0; row < kRows; row++) {
        const Floats weight = splat(bits<float>(facts[row * kInputWords + which]));
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; v++) totals.add(row, v, held.shift[v] * weight);
      }
    }
    at += kBits * kRowBytes;
    input += kTileBlock;
  }
  totals.finish();
}

template <int kBits, bool kHasTable, bool kIsSplit, int kRows = kMaxCodeTile>
inline void code_tile_of(int64_t rows, const Coding& coding, int64_t blocks, const uint8_t* at, const uint32_t* input,
                         const Ahead& ahead, int64_t lines, float* sums) {
  if (rows == kRows) {
    code_tile<kBits, kHasTable, kIsSplit, kRows>(coding, blocks, at, input, ahead, lines, sums);
  } else if constexpr (kRows > 1) {
    code_tile_of<kBits, kHasTable, kIsSplit, kRows - 1>(rows, coding, blocks, at, input, ahead, lines, sums);
  }
}

// A tile of `rows` encoded rows times one panel.
inline void multiply_codes(int64_t rows, const Coding& coding, int64_t blocks, const uint8_t* panel,
                           const uint32_t* input, const Ahead& ahead, int64_t lines, float* sums) {
  const auto choose = [&](auto tile, auto split_tile) {
    const auto use = coding.halves() == 2 ? split_tile : tile;
    use(rows, coding, blocks, panel, input, ahead, lines, sums);
  };
  if (coding.table) return choose(code_tile_of<4, true, false>, code_tile_of<4, true, true>);
  if (coding.bits == 4) return choose(code_tile_of<4, false, false>, code_tile_of<4, false, true>);
  if (coding.bits == 5) return choose(code_tile_of<5, false, false>, code_tile_of<5, false, true>);
  if (coding.bits == 6) return choose(code_tile_of<6, false, false>, code_tile_of<6, false, true>);
  choose(code_tile_of<8, false, false>, code_tile_of<8, false, true>);
}

// --- packing and reading back ------------------------------------------------------------------------------------

// A quantised matrix as Python has it: codes a byte each, factors in the type they are stored in; mirrored there.
struct Coded {
  Coding coding;
  int64_t outputs, inputs;
  const uint8_t* codes;  // [outputs, inputs]
  // Scales and shifts [outputs, groups], a multiple of two groups where they are halves of a block; then, for kWhole,
  // what each is multiplied with, [outputs, blocks of 256], float16.
  const uint8_t* factors[2];
  const uint8_t* whole[2];
};

// Rows of a panel that belong together: `count` rows with an entry of `size` bytes for every column.
struct Rows {
  enum Kind { kWholes, kFactors, kCodes } kind;
  int64_t index, count, size, offset;  // which of their kind these are; where they begin in the panel

  uint8_t* entry(uint8_t* panel, int column, int64_t row) const {
    return panel + offset + (row * kColumns + column) * size;
  }
};

// Calls `visit(rows)` for all that a panel holds, in order.
template <class Visit>
inline void each_rows(const Coding& coding, int64_t blocks, const Visit& visit) {
  int64_t offset = 0;
  const auto rows = [&](Rows::Kind kind, int64_t index, int64_t count, int64_t size) {
    visit(Rows{kind, index, count, size, offset});
    offset += count * size * kColumns;
  };
  for (int64_t block = 0; block < blocks; block++) {
    if (coding.factors == kWhole && block % kWholeBlocks == 0) {
      rows(Rows::kWholes, block / kWholeBlocks, coding.kinds(), 2);
    }
    if (block % coding.group_blocks() == 0) {
      const int64_t size = coding.factor_bytes() / kColumns;
      rows(Rows::kFactors, block / coding.group_blocks(), coding.halves() * coding.kinds(), size);
    }
    rows(Rows::kCodes, block, coding.bits, 4);
  }
}

// Where a code of a block lies, its bits cut into up to two fields: rows of words, and places in a byte.
struct Place {
  int64_t row[2];
  int shift[2];
};

inline Place place_of(int64_t bits, int64_t step) {
  if (bits == 8) return {{step, step}, {0, 0}};
  const int64_t high = bits == 5 ? kSteps / 2 : kSteps / 2 + step / 4;
  return {{step / 2, high}, {static_cast<int>(step % 2 * 4), static_cast<int>(bits == 5 ? step : step % 4 * 2)}};
}

// Write row `row` of a matrix to a column of a cleared panel.
inline void pack_column(const Coded& from, int64_t row, uint8_t* panel, int column) {
  const Coding& coding = from.coding;
  const int64_t blocks = num_blocks(from.inputs), halves = coding.halves(), kinds = coding.kinds();
  const int64_t groups = (blocks + coding.group_blocks() - 1) / coding.group_blocks() * halves;
  const int64_t wholes = (blocks + kWholeBlocks - 1) / kWholeBlocks;
  each_rows(coding, blocks, [&](const Rows& rows) {
    if (rows.kind != Rows::kCodes) {
      for (int64_t r = 0; r < rows.count; r++) {
        const uint8_t* source = rows.kind == Rows::kWholes
                                    ? from.whole[r] + rows.size * (row * wholes + rows.index)
                                    : from.factors[r % kinds] +
                                          rows.size * (row * groups + rows.index * halves + r / kinds);
        memcpy(rows.entry(panel, column, r), source, rows.size);
      }
      return;
    }
    const int64_t begin = rows.index * kBlock, steps = std::min<int64_t>(kBlock, from.inputs - begin) / 4;
    for (int64_t step = 0; step < steps; step++) {
      uint32_t codes;
      memcpy(&codes, from.codes + row * from.inputs + begin + 4 * step, sizeof codes);
      const Place place = place_of(coding.bits, step);
      const auto add = [&](int field, uint32_t bits) {
        uint8_t* entry = rows.entry(panel, column, place.row[field]);
        uint32_t held;
        memcpy(&held, entry, sizeof held);
        held |= bits << place.shift[field];
        memcpy(entry, &held, sizeof held);
      };
      add(0, coding.bits == 8 ? codes : codes & 0x0f0f0f0f);
      if (coding.bits == 5) add(1, codes >> 4 & 0x01010101);
      if (coding.bits == 6) add(1, codes >> 4 & 0x03030303);
    }
  });
}

// The weights of one output, as `Quantised.dense` computes them.
inline void read_column(const Coding& coding, const uint8_t* from, int column, int64_t inputs, float* to) {
  uint8_t* panel = const_cast<uint8_t*>(from);
  const int64_t kinds = coding.kinds();
  float whole[2] = {}, factor[2][2] = {};  // factor[half][kind]
  each_rows(coding, num_blocks(inputs), [&](const Rows& rows) {
    const auto entry = [&](int64_t r) { return rows.entry(panel, column, r); };
    if (rows.kind == Rows::kWholes) {
      for (int64_t r = 0; r < rows.count; r++) whole[r] = half_to_float(entry(r));
    } else if (rows.kind == Rows::kFactors) {
      for (int64_t r = 0; r < rows.count; r++) {
        float& value = factor[r / kinds][r % kinds];
        if (coding.factors == kHalf) value = half_to_float(entry(r));
        else if (coding.factors == kFloat) memcpy(&value, entry(r), sizeof value);
        else value = static_cast<float>(static_cast<int8_t>(*entry(r))) * whole[r % kinds];
      }
    } else {
      for (int64_t k = 0; k < std::min<int64_t>(kBlock, inputs - rows.index * kBlock); k++) {
        const Place place = place_of(coding.bits, k / 4);
        int code = entry(place.row[0])[k % 4];
        if (coding.bits < 8) code = code >> place.shift[0] & 15;
        if (coding.bits == 5) code |= (entry(place.row[1])[k % 4] >> place.shift[1] & 1) << 4;
        if (coding.bits == 6) code |= (entry(place.row[1])[k % 4] >> place.shift[1] & 3) << 4;
        if (coding.table) code = coding.table[code];
        const float(&held)[2] = factor[coding.halves() == 2 && k >= kBlock / 2];
        const float zero = static_cast<float>(coding.zero);
        to[rows.index * kBlock + k] =
            coding.table ? (static_cast<float>(code) - zero) * held[0] + held[1]
                         : static_cast<float>(code) * held[0] + (coding.has_shift ? held[1] : held[0] * -zero);
      }
    }
  });
}

inline void copy_column(const Coding& coding, int64_t blocks, const uint8_t* from, int column, uint8_t* to, int at) {
  each_rows(coding, blocks, [&](const Rows& rows) {
    for (int64_t r = 0; r < rows.count; r++) {
      memcpy(rows.entry(to, at, r), rows.entry(const_cast<uint8_t*>(from), column, r), rows.size);
    }
  });
}

}  // namespace outpace
