// Who sees whom, written down once per forward: per attention item and window, the blocks of keys that its tokens see.
#pragma once

#include "decoder.h"

namespace outpace {

// The positions below which a token sees others of its forward, where blocks decide.
inline int64_t block_end(const ModelView& model, const Token& token) {
  return (token.position / model.block + 1) * model.block;
}

inline const uint8_t* visible_to(const Call& call, const Token& token) {
  return call.visible + (token.row * call.width + token.index) * call.width;
}

// Whether two tokens of a row see the same, as far as that is told quickly; windows and their own places aside.
inline bool has_same_sight(const ModelView& model, const Call& call, const Token& a, const Token& b) {
  if (call.visible) return memcmp(visible_to(call, a), visible_to(call, b), call.width) == 0;
  return model.is_full || (model.block && block_end(model, a) == block_end(model, b));
}

// Mark the tokens of a forward that one of them sees: `bit` in bits[other]. Padding is not looked at here.
inline void mark(const ModelView& model, const Call& call, const Token& token, int64_t window, uint64_t bit,
                 uint64_t* bits, int64_t count) {
  const int64_t* position = call.position + token.row * call.width;
  const int64_t first = window ? token.position - window + 1 : 0;
  if (call.visible) {
    const uint8_t* visible = visible_to(call, token);
    for (int64_t i = 0; i < count; i++) bits[i] |= visible[i] && position[i] >= first ? bit : 0;
  } else if (model.is_full || model.block) {
    const int64_t end = model.is_full ? model.positions : block_end(model, token);
    for (int64_t i = 0; i < count; i++) bits[i] |= position[i] < end && position[i] >= first ? bit : 0;
  } else {
    for (int64_t i = 0; i < token.index; i++) bits[i] |= position[i] >= first ? bit : 0;
  }
  bits[token.index] |= bit;
}

// Cut the slots begin..end-1 of a row into blocks within pages, leaving out slots that no token sees. `all` has the bits
// of all tokens.
inline void cut_blocks(const Call& call, int64_t row, const uint64_t* bits, uint64_t all, int64_t tokens, int64_t begin,
                       int64_t end, Sight& sight) {
  sight.num_blocks = sight.num_runs = 0;
  for (int64_t slot = begin; slot < end;) {
    if (bits[slot] == 0) {
      slot++;
      continue;
    }
    const int64_t most = std::min<int64_t>(kLanes, call.page_size - slot % call.page_size);
    int64_t count = std::min(most, end - slot);
    uint64_t common = all;
    for (int64_t i = 0; i < count; i++) common &= bits[slot + i];
    const bool is_whole = count == kLanes && common == all;
    const int64_t block = sight.num_blocks++, rank = block * kLanes, place = call.place(row, slot);
    if (!is_whole) {
      while (bits[slot + count - 1] == 0) count--;
      for (int64_t token = 0; token < tokens; token++) {
        uint32_t mask = 0;
        for (int64_t i = 0; i < count; i++) mask |= (bits[slot + i] >> token & 1) << i;
        sight.masks[token * sight.stride + block] = static_cast<uint16_t>(mask);
      }
    }
    sight.blocks[block] = {place, static_cast<int32_t>(count), static_cast<int32_t>(slot), is_whole};
    Run* run = sight.runs + sight.num_runs;
    if (sight.num_runs > 0 && run[-1].place + rank - run[-1].rank == place) {
      run[-1].count = rank - run[-1].rank + count;
    } else {
      *run = {place, rank, count};
      sight.num_runs++;
    }
    slot += most;
  }
}

// What every token of a row sees of its source, whose `count` keys lie from `place` on.
inline void look_at_source(int64_t place, int64_t count, Sight& sight) {
  sight.num_blocks = (count + kLanes - 1) / kLanes;
  sight.num_runs = count > 0;
  sight.runs[0] = {place, 0, count};
  for (int64_t block = 0; block < sight.num_blocks; block++) {
    const int64_t slot = block * kLanes, seen = std::min<int64_t>(kLanes, count - slot);
    sight.blocks[block] = {place + slot, static_cast<int32_t>(seen), static_cast<int32_t>(slot), seen == kLanes};
    sight.masks[block] = static_cast<uint16_t>((1u << seen) - 1);
  }
}

// Fill in what the tokens of an item see through a window (0 = none). Valid entries are seen by all; a window counts
// them as if slot = position, as they are in a chain.
inline void look(const Decoder& decoder, const Call& call, const Item& item, int64_t window, uint64_t* bits,
                 Sight& sight) {
  const ModelView& model = decoder.model;
  const Token* tokens = decoder.tokens.data() + item.first;
  const int64_t row = tokens[0].row, length = call.lengths[row], end = decoder.ends[row];
  const uint64_t all = ~uint64_t{0} >> (64 - item.count);
  const bool is_shared = model.is_full && !call.visible && !window;
  int64_t begin = window ? length : 0;
  for (int64_t t = 0; window && t < item.count; t++) {
    begin = std::min(begin, std::max<int64_t>(0, tokens[t].position - window + 1));
  }
  std::fill(bits + begin, bits + length, window ? 0 : all);
  std::fill(bits + length, bits + end, is_shared ? all : 0);
  for (int64_t t = 0; !is_shared && t < item.count; t++) {
    const uint64_t bit = uint64_t{1} << t;
    const int64_t first = std::max(begin, tokens[t].position - window + 1);
    for (int64_t slot = first; window && slot < length; slot++) bits[slot] |= bit;
    mark(model, call, tokens[t], window, bit, bits + length, end - length);
  }
  const int64_t* position = call.position + row * call.width;
  for (int64_t slot = length; slot < end; slot++) bits[slot] = position[slot - length] < 0 ? 0 : bits[slot];
  cut_blocks(call, row, bits, all, item.count, begin, end, sight);
}

}  // namespace outpace
