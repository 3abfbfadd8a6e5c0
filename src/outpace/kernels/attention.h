// Attention of a few queries over one row's cached keys and values, for one key head.
//
// A query's result depends only on the ordered list of keys it sees. Scores are one fixed chain per key. The weighted
// sum runs over slots in order, and a hidden slot weighs exactly 0, which leaves every sum as it was, as if it were not
// there: an accepted path of a tree gives the bits of a chain, a wide window those of single steps, a copy of a canvas
// between others those of the canvas alone, a block behind its cached past those of the two in one forward.
#pragma once

#include <algorithm>

#include "simd.h"

namespace outpace {

constexpr int kQueries = 16;  // per work item at least, where there are as many: keys are transposed once for all
constexpr int kMostQueries = 64;  // per work item at most, where all see the same
constexpr int kTile = 4;      // queries whose sums are in registers together
constexpr int kChains = 4;    // partial sums per score: dimension d goes to chain d % kChains, to hide latency
constexpr float kHidden = -__builtin_inff();

// Keys that are scored together: kLanes slots of one page, whose entries begin at `place` (of the first key head). Those
// behind `count` are hidden.
struct Block {
  int64_t place;
  int32_t count;
  bool is_whole;  // every token of the item sees all kLanes
};

// Blocks that follow each other in memory without a gap: `count` entries from `place` on, whose scores begin at `rank`.
struct Run {
  int64_t place, rank, count;
};

// What the tokens of one work item see; slots that none of them sees are in no block.
struct Sight {
  Block* blocks;
  Run* runs;
  uint16_t* masks;  // [tokens, stride] bit i = the token sees slot i of the block; not filled in for whole blocks
  int64_t num_blocks, num_runs, stride;
};

// Per-thread memory of one work item; `slots` = kLanes per block.
struct Bench {
  uint64_t* bits;  // [slots of a row] bit i = token i of an item sees the slot
  float* query;    // [queries, dims] scaled queries
  float* scores;   // [queries, slots]
  float* outputs;  // [queries, dims]
  float* keys;     // [dims, kLanes] one block of keys, transposed
  int64_t dims;    // head_dim, padded with zeros
  int64_t slots;
};

// kLanes keys become columns of floats. Beyond `count` the last key is repeated; its scores are never read.
template <class Type>
inline void transpose_keys(const typename Type::Element* keys, int64_t count, int64_t head_dim, const Bench& bench) {
  float* to = bench.keys;
  constexpr int kPer = Type::kPerWord;
  int64_t word = 0;
#if defined(__AVX512F__)
  for (; word + 16 <= head_dim / kPer; word += 16) {
    Words rows[16];
    for (int i = 0; i < 16; i++) {
      const auto* key = keys + std::min<int64_t>(i, count - 1) * head_dim;
      rows[i] = load<Words>(reinterpret_cast<const uint32_t*>(key) + word);
    }
    transpose(rows);
    for (int i = 0; i < 16; i++) {
      float* column = to + (word + i) * kPer * kLanes;
      store(column, bits<Floats>(kPer == 2 ? rows[i] << 16 : rows[i]));
      if (kPer == 2) store(column + kLanes, bits<Floats>(rows[i] & 0xffff0000u));
    }
  }
#endif
  for (int64_t d = word * kPer; d < head_dim; d++) {
    for (int i = 0; i < kLanes; i++) {
      to[d * kLanes + i] = Type::read_one(keys[std::min<int64_t>(i, count - 1) * head_dim + d]);
    }
  }
  std::fill(to + head_dim * kLanes, to + bench.dims * kLanes, 0.0f);
}

// Ask for the entries of a block elsewhere in memory before they are read; a stream that goes on fetches itself.
template <class Element>
inline void fetch(const Element* entries, int64_t head_dim) {
  const char* from = reinterpret_cast<const char*>(entries);
  for (int64_t at = 0; at < static_cast<int64_t>(kLanes * head_dim * sizeof(Element)); at += 64) {
    __builtin_prefetch(from + at, 0, 3);
  }
}

template <int kCount>
inline void score_block(const Bench& bench, int64_t query, int64_t slot) {
  Floats sums[kCount][kChains] = {};
  for (int64_t d = 0; d < bench.dims; d += kChains) {
#pragma GCC unroll 4
    for (int chain = 0; chain < kChains; chain++) {
      const Floats keys = load<Floats>(bench.keys + (d + chain) * kLanes);
#pragma GCC unroll 4
      for (int q = 0; q < kCount; q++) {
        const float value = bench.query[(query + q) * bench.dims + d + chain];
        sums[q][chain] = fma(splat(value), keys, sums[q][chain]);
      }
    }
  }
  for (int q = 0; q < kCount; q++) {
    const Floats total = (sums[q][0] + sums[q][1]) + (sums[q][2] + sums[q][3]);
    store(bench.scores + (query + q) * bench.slots + slot, total);
  }
}

// Hide the scores of a block whose bits are 0.
inline void hide(float* scores, uint32_t mask) {
  Words lane;
  for (int i = 0; i < kLanes; i++) lane[i] = i;
  const Words is_seen = (splat_word(mask) >> lane) & 1;
  store(scores, is_seen != 0 ? load<Floats>(scores) : splat(kHidden));
}

// Scores of `queries` against the keys they see; `group` queries belong to one token.
template <class Type>
inline void score(const Bench& bench, const Sight& sight, int64_t queries, int64_t group,
                  const typename Type::Element* keys, int64_t head_dim) {
  for (int64_t b = 0; b < sight.num_blocks; b++) {
    const Block& block = sight.blocks[b];
    if (b + 1 < sight.num_blocks && sight.blocks[b + 1].place != block.place + kLanes) {
      fetch(keys + sight.blocks[b + 1].place * head_dim, head_dim);
    }
    transpose_keys<Type>(keys + block.place * head_dim, block.count, head_dim, bench);
    int64_t q = 0;
    for (; q + kTile <= queries; q += kTile) score_block<kTile>(bench, q, b * kLanes);
    for (; q < queries; q++) score_block<1>(bench, q, b * kLanes);
    if (block.is_whole) continue;
    for (q = 0; q < queries; q++) {
      hide(bench.scores + q * bench.slots + b * kLanes, sight.masks[q / group * sight.stride + b]);
    }
  }
}

// Scores become weights exp(score - largest), not yet divided by their sum; hidden ones become 0.
inline void weigh(float* scores, int64_t slots) {
  Floats largest = splat(kHidden);
  for (int64_t i = 0; i < slots; i += kLanes) {
    const Floats value = load<Floats>(scores + i);
    largest = value > largest ? value : largest;
  }
  float lanes[kLanes], top = kHidden;
  store(lanes, largest);
  for (float lane : lanes) top = lane > top ? lane : top;
  for (int64_t i = 0; i < slots; i += kLanes) store(scores + i, exponential(load<Floats>(scores + i) - splat(top)));
}

// kWide vectors of the outputs of kCount queries, from dimension `at`.
template <class Type, int kCount, int kWide>
inline void average(const Bench& bench, const Sight& sight, int64_t query, const typename Type::Element* values,
                    int64_t head_dim, int64_t at) {
  Floats sums[kCount][kWide] = {}, total[kCount] = {};
  for (int64_t r = 0; r < sight.num_runs; r++) {
    const Run run = sight.runs[r];
    if (at == 0 && r + 1 < sight.num_runs) fetch(values + sight.runs[r + 1].place * head_dim, head_dim);
    const float* weights = bench.scores + query * bench.slots + run.rank;
    const auto* from = values + run.place * head_dim + at;
    for (int64_t slot = 0; slot < run.count; slot++) {
      Floats value[kWide];
#pragma GCC unroll 4
      for (int v = 0; v < kWide; v++) value[v] = Type::read(from + slot * head_dim + v * kLanes);
#pragma GCC unroll 4
      for (int q = 0; q < kCount; q++) {
        const Floats weight = splat(weights[q * bench.slots + slot]);
        total[q] += weight;
#pragma GCC unroll 4
        for (int v = 0; v < kWide; v++) sums[q][v] = fma(weight, value[v], sums[q][v]);
      }
    }
  }
  for (int q = 0; q < kCount; q++) {
    const Floats scale = splat(1.0f) / total[q];
    for (int v = 0; v < kWide; v++) {
      store(bench.outputs + (query + q) * bench.dims + at + v * kLanes, sums[q][v] * scale);
    }
  }
}

// The same sums one dimension at a time, for `dims` from `at`: what fills no vector, and the repair below.
template <class Type>
inline void average_slowly(const Bench& bench, const Sight& sight, int64_t query,
                           const typename Type::Element* values, int64_t head_dim, int64_t at) {
  for (int64_t d = at; d < head_dim; d++) {
    float sum = 0.0f, total = 0.0f;
    for (int64_t r = 0; r < sight.num_runs; r++) {
      const Run run = sight.runs[r];
      const float* weights = bench.scores + query * bench.slots + run.rank;
      for (int64_t slot = 0; slot < run.count; slot++) {
        if (weights[slot] == 0.0f) continue;
        total += weights[slot];
        sum = fma(weights[slot], Type::read_one(values[(run.place + slot) * head_dim + d]), sum);
      }
    }
    bench.outputs[query * bench.dims + d] = sum * (1.0f / total);
  }
}

// A hidden value that is NaN or infinite spoils the vector sums, where it is multiplied by 0; leave it out.
template <class Type>
inline void repair(const Bench& bench, const Sight& sight, int64_t query, const typename Type::Element* values,
                   int64_t head_dim) {
  const float* outputs = bench.outputs + query * bench.dims;
  const bool is_broken = std::any_of(outputs, outputs + head_dim, [](float value) { return value != value; });
  if (is_broken) average_slowly<Type>(bench, sight, query, values, head_dim, 0);
}

template <class Type, int kCount>
inline void average_tile(const Bench& bench, const Sight& sight, int64_t query, const typename Type::Element* values,
                         int64_t head_dim) {
  constexpr int kWide = 4;
  int64_t at = 0;
  for (; at + kWide * kLanes <= head_dim; at += kWide * kLanes) {
    average<Type, kCount, kWide>(bench, sight, query, values, head_dim, at);
  }
  for (; at + kLanes <= head_dim; at += kLanes) {
    average<Type, kCount, 1>(bench, sight, query, values, head_dim, at);
  }
  if (at == head_dim) return;
  for (int q = 0; q < kCount; q++) average_slowly<Type>(bench, sight, query + q, values, head_dim, at);
}

// Weighted means of the values that `queries` see.
template <class Type>
inline void gather(const Bench& bench, const Sight& sight, int64_t queries, const typename Type::Element* values,
                   int64_t head_dim) {
  int64_t q = 0;
  for (; q + kTile <= queries; q += kTile) average_tile<Type, kTile>(bench, sight, q, values, head_dim);
  for (; q < queries; q++) average_tile<Type, 1>(bench, sight, q, values, head_dim);
  for (q = 0; q < queries; q++) repair<Type>(bench, sight, q, values, head_dim);
}

}  // namespace outpace
