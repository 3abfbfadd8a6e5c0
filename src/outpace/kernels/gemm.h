// Matrix products over packed weights: outputs[m][n] = sum over k of inputs[m][k] * weight[n][k].
//
// A panel holds kColumns output columns: for every step (one float, or a pair of bfloat16, of the inputs) the words of
// all its columns, so that a panel is read linearly whatever the number of rows; those of quantised matrices are in
// codes.h. Each output is one chain of accumulations over the steps, in order, in its own lane: its bits depend neither
// on the rows computed beside it nor on the thread. Threads take panels, never parts of a sum.
#pragma once

#include "codes.h"
#include "simd.h"
#include "team.h"

namespace outpace {

constexpr int kMaxTile = kLanes == 16 ? 12 : 3;  // rows per tile: kMaxTile * kVectors sums stay in registers
constexpr int kLineWords = kLine / 4;

struct Matrix {
  Coding coding;
  const uint8_t* data;
  int64_t steps;        // words per input row, or blocks
  int64_t panels;       // groups of kColumns columns
  int64_t panel_bytes;

  bool is_coded() const { return coding.bits != 0; }
  const uint8_t* panel(int64_t index) const { return data + index * panel_bytes; }
};

// Rows that a product reads: words, or, for quantised matrices, tiles of encoded blocks.
struct Inputs {
  uint32_t* data;
  int64_t stride;  // words between rows
  int64_t rows;
};

// Rows of inputs are kept off multiples of 4 KiB apart: a tile reads one word of each, which would share a cache set.
constexpr int64_t input_stride(int64_t words) { return round_up(words, kPadding) + kLineWords; }

// kRows rows times one panel: sums [kRows, kColumns]. While it runs, kLines cache lines per step are fetched from `ahead`.
template <class Type, int kRows, int kLines>
__attribute__((noinline)) void tile(const uint32_t* input, int64_t stride, const uint32_t* panel, int64_t steps,
                                    const Ahead& ahead, float* to) {
  Floats sums[kRows][kVectors] = {};
  const uint8_t* from = ahead.at;
  const int64_t turn = kLines > 0 ? std::min(steps, ahead.left / (kLines * kLine)) : 0;
  for (int64_t step = 0; step < steps; step++, from += kLines * kLine) {
    if (step == turn) from = ahead.next;
    Words weight[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v++) weight[v] = load<Words>(panel + step * kColumns + v * kLanes);
#pragma GCC unroll 2
    for (int line = 0; line < kLines; line++) __builtin_prefetch(from + line * kLine, 0, 3);
#pragma GCC unroll 16
    for (int row = 0; row < kRows; row++) {
      const Words value = splat_word(input[row * stride + step]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; v++) sums[row][v] = Type::step(sums[row][v], weight[v], value);
    }
  }
  for (int row = 0; row < kRows; row++) {
    for (int v = 0; v < kVectors; v++) store(to + row * kColumns + v * kLanes, sums[row][v]);
  }
}

// Choose the instantiation for `rows` (1..kMaxTile) at run time.
template <class Type, int kLines, int kRows = kMaxTile>
inline void tile_of(int64_t rows, const uint32_t* input, int64_t stride, const uint32_t* panel, int64_t steps,
                    const Ahead& ahead, float* sums) {
  if (rows == kRows) return tile<Type, kRows, kLines>(input, stride, panel, steps, ahead, sums);
  if constexpr (kRows > 1) tile_of<Type, kLines, kRows - 1>(rows, input, stride, panel, steps, ahead, sums);
}

// Tile `index` of the rows times one panel. A single tile is computed while what comes kAhead bytes later is fetched, or,
// of one row of words, which memory alone holds up, a panel later; of several tiles, two fetch half of the next panel each.
template <class Type>
inline void multiply(const Tiles& tiles, int64_t index, const Inputs& in, const Matrix& weight, const uint8_t* panel,
                     const uint8_t* next, float* sums) {
  const int64_t rows = tiles.height(index), steps = weight.steps;
  const int64_t all = weight.is_coded() ? (weight.panel_bytes / steps + kLine - 1) / kLine : 2;  // lines per step
  const int64_t lines = tiles.count == 1 ? all : index < 2 ? (all + 1) / 2 : 0;
  const bool is_near = tiles.count == 1 && (rows > 1 || weight.is_coded());
  const Ahead ahead = is_near ? Ahead(panel, weight.panel_bytes, next) : Ahead(next + index * steps * lines * kLine);
  if (weight.is_coded()) {
    return multiply_codes(rows, weight.coding, steps, panel, in.data + index * tiles.words, ahead, lines, sums);
  }
  const auto* words = reinterpret_cast<const uint32_t*>(panel);
  const uint32_t* input = in.data + tiles.first(index) * in.stride;
  if (lines == 2) return tile_of<Type, 2>(rows, input, in.stride, words, steps, ahead, sums);
  if (lines == 1) return tile_of<Type, 1>(rows, input, in.stride, words, steps, ahead, sums);
  tile_of<Type, 0>(rows, input, in.stride, words, steps, ahead, sums);
}

// All rows times one panel, in tiles of nearly equal height.
template <class Type, class Finish>
inline void panel_product(const Inputs& in, const Matrix& weight, int64_t index, const uint8_t* next,
                          const Finish& finish) {
  alignas(64) float buffer[std::max(kMaxTile, kMaxCodeTile) * kColumns];
  const Tiles tiles(in.rows, weight.is_coded() ? kMaxCodeTile : kMaxTile, weight.steps);
  for (int64_t i = 0; i < tiles.count; i++) {
    multiply<Type>(tiles, i, in, weight, weight.panel(index), next, buffer);
    for (int64_t row = 0; row < tiles.height(i); row++) {
      Floats sums[kVectors];
      for (int v = 0; v < kVectors; v++) sums[v] = load<Floats>(buffer + row * kColumns + v * kLanes);
      finish(tiles.first(i) + row, index * kColumns, sums);
    }
  }
}

// The whole product, shared by the team. `then` is the matrix of the next product: its first panel is fetched while
// this thread's last one is computed, so that memory stays busy across the barrier.
template <class Type, class Finish>
inline void product(Worker& worker, const Inputs& in, const Matrix& weight, const Matrix& then, const Finish& finish) {
  if (in.rows == 0) return worker.claim(0, [](int64_t, bool) {});
  worker.claim(weight.panels, [&](int64_t index, bool is_last) {
    const uint8_t* next = is_last ? then.panel(worker.first(then.panels)) : weight.panel(index + 1);
    panel_product<Type>(in, weight, index, next, finish);
  });
}

#if defined(__AVX512F__)
// 16 words of 16 source rows (null = padding), from word `begin` on, to 16 steps of 16 columns.
inline void pack_square(const uint32_t* const (&rows)[16], int64_t begin, uint32_t* to) {
  Words square[16];
  for (int row = 0; row < 16; row++) square[row] = rows[row] ? load<Words>(rows[row] + begin) : Words{};
  transpose(square);
  for (int step = 0; step < 16; step++) store(to + step * kColumns, square[step]);
}
#endif

// Pack rows: element (column c, input k) of a panel goes to word k / kPerWord, lane c. `row_of(c)` names the source row
// of a column, or -1 for padding.
template <class Type, class RowOf>
inline void pack_panel(const typename Type::Element* source, int64_t inputs, int64_t steps, uint32_t* panel,
                       const RowOf& row_of) {
  using Element = typename Type::Element;
  constexpr int kBlock = 16;  // steps packed at a time, so that a source line is used while it is in cache
  int64_t begin = 0;
#if defined(__AVX512F__)
  // Whole squares of words, where every source row begins at a word and has them all.
  if (inputs % Type::kPerWord == 0 && reinterpret_cast<uintptr_t>(source) % sizeof(uint32_t) == 0) {
    const uint32_t* rows[2][16];
    for (int column = 0; column < kColumns; column++) {
      const int64_t row = row_of(column);
      rows[column / 16][column % 16] = row < 0 ? nullptr : reinterpret_cast<const uint32_t*>(source + row * inputs);
    }
    for (; begin + kBlock <= steps; begin += kBlock) {
      for (int half = 0; half < 2; half++) pack_square(rows[half], begin, panel + begin * kColumns + half * 16);
    }
  }
#endif
  for (; begin < steps; begin += kBlock) {
    const int64_t count = std::min<int64_t>(kBlock, steps - begin);
    Element* to = reinterpret_cast<Element*>(panel + begin * kColumns);
    memset(to, 0, count * kColumns * sizeof(uint32_t));
    for (int column = 0; column < kColumns; column++) {
      const int64_t row = row_of(column);
      if (row < 0) continue;
      const Element* from = source + row * inputs + begin * Type::kPerWord;
      const int64_t elements = std::min<int64_t>(count * Type::kPerWord, inputs - begin * Type::kPerWord);
      for (int64_t k = 0; k < elements; k++) {
        to[(k / Type::kPerWord * kColumns + column) * Type::kPerWord + k % Type::kPerWord] = from[k];
      }
    }
  }
}

}  // namespace outpace
