// Attention of a few queries over one row's cached keys and values, for one key head.
//
// A query's result depends only on the ordered list of keys it sees. Scores are one fixed chain per key. The weighted
// sum runs over slots in order, and a hidden slot weighs exactly 0, which leaves every sum as it was, as if it were not
// there: an accepted path of a tree gives the bits of a chain, a wide window those of single steps, a copy of a canvas
// between others those of the canvas alone, a block behind its cached past those of the two in one forward.
#pragma once

#include <algorithm>
#include <type_traits>

#include "simd.h"

namespace outpace {

constexpr int kQueries = 32;  // per work item at least, where there are as many: keys are transposed once for all
constexpr int kMostQueries = 64;  // per work item at most, where all see the same
// Queries whose sums are in registers together, for scores and for averages.
constexpr int kScoreTile = kLanes == 16 ? 6 : 4;
constexpr int kTile = kLanes == 16 ? 5 : 4;
constexpr int kChains = 4;    // partial sums per score: dimension d goes to chain d % kChains, to hide latency
constexpr float kHidden = -__builtin_inff();

// Keys that are scored together: kLanes slots of one page, whose entries begin at `place` (of the first key head). Those
// behind `count` are hidden.
struct Block {
  int64_t place;
  int32_t count, slot;  // the first one's slot of its row
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

// A cached key or value of one head, as the model's own numbers.
template <class Type>
struct PlainEntry {
  using Element = typename Type::Element;
  static constexpr int kPerWord = Type::kPerWord;
  static constexpr bool kIsCoded = false;
  static int64_t size(int64_t head_dim) { return head_dim; }
  static float factor(const Element*, int64_t) { return 1.0f; }
  static Words words(const Element* entry, int64_t word, float) {
    return load<Words>(reinterpret_cast<const uint32_t*>(entry) + word);
  }
  static Floats read(const Element* from) { return Type::read(from); }
  static float read_one(Element value) { return Type::read_one(value); }
};

// The same as signed bytes, and the factor that they are multiplied by behind them.
struct CodedEntry {
  using Element = uint8_t;
  static constexpr int kPerWord = 1;
  static constexpr bool kIsCoded = true;
  static int64_t size(int64_t head_dim) { return head_dim + static_cast<int64_t>(sizeof(float)); }
  static float factor(const uint8_t* entry, int64_t head_dim) {
    float value;
    memcpy(&value, entry + head_dim, sizeof value);
    return value;
  }
  static Words words(const uint8_t* entry, int64_t word, float factor) {
    return bits<Words>(read(entry + word) * splat(factor));
  }
  static Floats read(const uint8_t* from) { return to_floats(widen_bytes(from)); }
  static float read_one(uint8_t value) { return static_cast<float>(static_cast<int8_t>(value)); }

  // `values` is readable up to the next full vector. A row that holds NaN or infinity is NaN as a whole.
  static void write(uint8_t* to, const float* values, int64_t head_dim) {
    float largest = 0.0f;
    bool is_finite = true;
    for (int64_t d = 0; d < head_dim; d++) {
      const float size = __builtin_fabsf(values[d]);
      is_finite &= size <= 3.4028235e38f;
      largest = size > largest ? size : largest;
    }
    const float factor = is_finite ? largest / 127.0f : __builtin_nanf("");
    const Floats inverse = splat(is_finite && largest > 0.0f ? 127.0f / largest : 0.0f);
    const Floats shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer held in the low bits
    const Floats most = splat(127.0f);  // a factor below the normal range rounds enough to pass it
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      Floats scaled = load<Floats>(values + d) * inverse;
      scaled = scaled > most ? most : (scaled < -most ? -most : scaled);
      int8_t codes[kLanes];
      narrow_bytes(codes, bits<Ints>(scaled + shift) - bits<Ints>(shift));
      memcpy(to + d, codes, std::min<int64_t>(kLanes, head_dim - d));
    }
    memcpy(to + head_dim, &factor, sizeof factor);
  }
};

// The keys or the values of one head: entry `place` begins `stride` elements behind the one before it.
template <class Entry>
struct Stored {
  using Element = typename Entry::Element;
  const Element* first;
  int64_t stride, dim;

  const Element* at(int64_t place) const { return first + place * stride; }
};

// kLanes keys from a place on become columns of floats. Beyond `count` the last key is repeated; nobody reads its scores.
template <class Entry>
inline void transpose_keys(const Stored<Entry>& stored, int64_t place, int64_t count, const Bench& bench) {
  float* to = bench.keys;
  constexpr int kPer = Entry::kPerWord;
  const auto* keys = stored.at(place);
  const int64_t size = stored.stride, head_dim = stored.dim;
  float factors[kLanes];
  for (int i = 0; i < kLanes; i++) factors[i] = Entry::factor(keys + std::min<int64_t>(i, count - 1) * size, head_dim);
  int64_t word = 0;
#if defined(__AVX512F__)
  for (; word + 16 <= head_dim / kPer; word += 16) {
    Words rows[16];
    for (int i = 0; i < 16; i++) {
      rows[i] = Entry::words(keys + std::min<int64_t>(i, count - 1) * size, word, factors[i]);
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
      const float value = Entry::read_one(keys[std::min<int64_t>(i, count - 1) * size + d]);
      to[d * kLanes + i] = Entry::kIsCoded ? value * factors[i] : value;
    }
  }
  std::fill(to + head_dim * kLanes, to + bench.dims * kLanes, 0.0f);
}

// Read what a sight shows, before it is wanted: between two forwards the weights have passed through all caches. Loads in
// the order of memory come as a stream; of prefetches, which come in bursts here, the processor drops what is too much.
template <class Entry>
inline void bring(const Stored<Entry>& stored, const Sight& sight) {
  const int64_t size = Entry::size(stored.dim) * sizeof(*stored.first), stride = stored.stride * sizeof(*stored.first);
  const auto read = [](const char* from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) {
      __builtin_prefetch(from + at + 4096, 0, 3);
      static_cast<void>(*static_cast<const volatile char*>(from + at));
    }
  };
  for (int64_t r = 0; r < sight.num_runs; r++) {
    const Run& run = sight.runs[r];
    const char* from = reinterpret_cast<const char*>(stored.at(run.place));
    if (size == stride) read(from, run.count * size);
    else for (int64_t i = 0; i < run.count; i++) read(from + i * stride, size);
  }
}

// Calls `visit(count, first)` for kCount queries at a time, then for what is left of them; `count` is a constant.
template <int kCount, class Visit>
inline void each_tile(int64_t queries, const Visit& visit, int64_t first = 0) {
  for (; queries - first >= kCount; first += kCount) visit(std::integral_constant<int, kCount>(), first);
  if constexpr (kCount > 1) each_tile<kCount - 1>(queries, visit, first);
}

template <int kCount>
inline void score_block(const Bench& bench, int64_t query, int64_t slot) {
  Floats sums[kCount][kChains] = {};
  for (int64_t d = 0; d < bench.dims; d += kChains) {
#pragma GCC unroll 4
    for (int chain = 0; chain < kChains; chain++) {
      const Floats keys = load<Floats>(bench.keys + (d + chain) * kLanes);
#pragma GCC unroll 8
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
template <class Entry>
inline void score(const Bench& bench, const Sight& sight, int64_t queries, int64_t group,
                  const Stored<Entry>& keys) {
  for (int64_t b = 0; b < sight.num_blocks; b++) {
    const Block& block = sight.blocks[b];
    transpose_keys(keys, block.place, block.count, bench);
    each_tile<kScoreTile>(queries, [&](auto count, int64_t q) { score_block<count()>(bench, q, b * kLanes); });
    if (block.is_whole) continue;
    for (int64_t q = 0; q < queries; q++) {
      hide(bench.scores + q * bench.slots + b * kLanes, sight.masks[q / group * sight.stride + b]);
    }
  }
}

// Distances lie that far beyond `reach` in a table of them, to either side: a block of keys is one load from it.
constexpr int64_t kMargin = 16;

constexpr int64_t num_distances(int64_t reach) { return 2 * (reach + kMargin) + 1; }

// Add to the scores of a query what a table [num_distances] says of how far each key lies ahead of it.
//   from: the query's position.
//   keys: the position of the key at a slot of the row.
template <class Keys>
inline void bend(const Bench& bench, const Sight& sight, int64_t query, const float* table, int64_t reach, int64_t from,
                 const Keys& keys) {
  static_assert(kLanes <= kMargin, "a block reaches no further than the margin");
  const auto place = [&](int64_t key) {
    return std::min(std::max(key - from, -reach - kMargin), reach) + reach + kMargin;
  };
  for (int64_t b = 0; b < sight.num_blocks; b++) {
    const Block& block = sight.blocks[b];
    const int64_t first = keys(block.slot);
    bool is_straight = true;
    for (int i = 1; i < block.count; i++) is_straight &= keys(block.slot + i) == first + i;
    Floats added{};
    if (is_straight) added = load<Floats>(table + place(first));
    else for (int i = 0; i < block.count; i++) added[i] = table[place(keys(block.slot + i))];
    float* scores = bench.scores + query * bench.slots + b * kLanes;
    store(scores, load<Floats>(scores) + added);
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
template <class Entry, int kCount, int kWide>
inline void average(const Bench& bench, const Sight& sight, int64_t query, const Stored<Entry>& values, int64_t at) {
  const int64_t size = values.stride, head_dim = values.dim;
  Floats sums[kCount][kWide] = {}, total[kCount] = {};
  for (int64_t r = 0; r < sight.num_runs; r++) {
    const Run run = sight.runs[r];
    const float* weights = bench.scores + query * bench.slots + run.rank;
    const auto* from = values.at(run.place) + at;
    for (int64_t slot = 0; slot < run.count; slot++) {
      Floats value[kWide];
#pragma GCC unroll 4
      for (int v = 0; v < kWide; v++) value[v] = Entry::read(from + slot * size + v * kLanes);
      const Floats factor = splat(Entry::factor(from + slot * size - at, head_dim));
#pragma GCC unroll 8
      for (int q = 0; q < kCount; q++) {
        const Floats weight = splat(weights[q * bench.slots + slot]);
        total[q] += weight;
        const Floats share = Entry::kIsCoded ? weight * factor : weight;
#pragma GCC unroll 4
        for (int v = 0; v < kWide; v++) sums[q][v] = fma(share, value[v], sums[q][v]);
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
template <class Entry>
inline void average_slowly(const Bench& bench, const Sight& sight, int64_t query, const Stored<Entry>& values,
                           int64_t at) {
  const int64_t head_dim = values.dim;
  for (int64_t d = at; d < head_dim; d++) {
    float sum = 0.0f, total = 0.0f;
    for (int64_t r = 0; r < sight.num_runs; r++) {
      const Run run = sight.runs[r];
      const float* weights = bench.scores + query * bench.slots + run.rank;
      for (int64_t slot = 0; slot < run.count; slot++) {
        if (weights[slot] == 0.0f) continue;
        total += weights[slot];
        const auto* entry = values.at(run.place + slot);
        const float share = Entry::kIsCoded ? weights[slot] * Entry::factor(entry, head_dim) : weights[slot];
        sum = fma(share, Entry::read_one(entry[d]), sum);
      }
    }
    bench.outputs[query * bench.dims + d] = sum * (1.0f / total);
  }
}

// A hidden value that is NaN or infinite spoils the vector sums, where it is multiplied by 0; leave it out.
template <class Entry>
inline void repair(const Bench& bench, const Sight& sight, int64_t query, const Stored<Entry>& values) {
  const float* outputs = bench.outputs + query * bench.dims;
  const bool is_broken = std::any_of(outputs, outputs + values.dim, [](float value) { return value != value; });
  if (is_broken) average_slowly(bench, sight, query, values, 0);
}

template <class Entry, int kCount>
inline void average_tile(const Bench& bench, const Sight& sight, int64_t query, const Stored<Entry>& values) {
  constexpr int kWide = 4;
  int64_t at = 0;
  for (; at + kWide * kLanes <= values.dim; at += kWide * kLanes) {
    average<Entry, kCount, kWide>(bench, sight, query, values, at);
  }
  for (; at + kLanes <= values.dim; at += kLanes) {
    average<Entry, kCount, 1>(bench, sight, query, values, at);
  }
  if (at == values.dim) return;
  for (int q = 0; q < kCount; q++) average_slowly(bench, sight, query + q, values, at);
}

// Weighted means of the values that `queries` see.
template <class Entry>
inline void gather(const Bench& bench, const Sight& sight, int64_t queries, const Stored<Entry>& values) {
  each_tile<kTile>(queries, [&](auto count, int64_t q) { average_tile<Entry, count()>(bench, sight, q, values); });
  for (int64_t q = 0; q < queries; q++) repair(bench, sight, q, values);
}

}  // namespace outpace
