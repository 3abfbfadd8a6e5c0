// Before the threads start: check a call, list its real tokens, and cut them into chunks.
#pragma once

#include "decoder.h"
#include "sight.h"

namespace outpace {

inline Status list_tokens(Decoder& decoder, const Call& call) {
  const ModelView& model = decoder.model;
  decoder.tokens.clear();
  decoder.holes.clear();
  decoder.ends.assign(call.lengths, call.lengths + call.rows);
  for (int64_t row = 0; row < call.rows; row++) {
    for (int64_t index = 0; index < call.width; index++) {
      const int64_t at = row * call.width + index, slot = call.lengths[row] + index;
      if (call.position[at] < 0) continue;
      if (call.position[at] >= model.positions) return kBadPosition;
      if (call.tokens[at] < 0 || call.tokens[at] >= model.vocab) return kBadToken;
      if (slot >= call.held[row] * call.page_size) return kNoCapacity;
      for (int64_t hole = decoder.ends[row]; hole < slot; hole++) {
        decoder.holes.push_back({row, 0, call.place(row, hole), -1, 0});
      }
      decoder.ends[row] = slot + 1;
      decoder.tokens.push_back({row, index, call.place(row, slot), call.position[at], call.tokens[at]});
    }
  }
  return kOk;
}

// Map asked positions to tokens; logits of padding are zero.
inline Status list_answers(Decoder& decoder, const Call& call) {
  std::vector<int64_t> token_at(call.rows * call.width, -1);
  for (size_t i = 0; i < decoder.tokens.size(); i++) {
    token_at[decoder.tokens[i].row * call.width + decoder.tokens[i].index] = i;
  }
  const int64_t bytes = decoder.model.vocab * (decoder.model.is_bfloat16 ? 2 : 4);
  decoder.answers.clear();
  for (int64_t output = 0; output < call.rows * call.asked; output++) {
    const int64_t row = output / call.asked, index = call.ask ? call.ask[output] : output % call.asked;
    if (index < 0 || index >= call.width) return kBadAsk;
    const int64_t at = row * call.width + index, asked = token_at[at];
    const int64_t token = decoder.model.is_shifted && index > 0 ? token_at[at - 1] : asked;
    if (token >= 0 && asked >= 0) decoder.answers.push_back({token, asked, output});
    else if (call.logits) memset(static_cast<char*>(call.logits) + output * bytes, 0, bytes);
  }
  std::stable_sort(decoder.answers.begin(), decoder.answers.end(),
                   [](const Answer& a, const Answer& b) { return a.token < b.token; });
  return kOk;
}

// Attention items of the tokens begin..end-1: neighbours of one row. An item of some size ends where sight changes.
inline void list_items(Decoder& decoder, const Call& call, Range tokens) {
  const Sizes& sizes = decoder.sizes;
  for (int64_t first = tokens.begin; first < tokens.end;) {
    int64_t count = 1;
    for (; count < sizes.most_tokens && first + count < tokens.end; count++) {
      const Token& last = decoder.tokens[first + count - 1];
      const Token& next = decoder.tokens[first + count];
      if (last.row != next.row) break;
      if (count >= sizes.item_tokens && !has_same_sight(decoder.model, call, last, next)) break;
    }
    decoder.items.push_back({first, count});
    first += count;
  }
}

// A causal forward without a mask can run in chunks: no token sees a later one. Others run in one piece.
inline void cut_chunks(Decoder& decoder, const Call& call) {
  const ModelView& model = decoder.model;
  const int64_t total = decoder.tokens.size();
  const bool is_chain = !model.is_full && !model.block && !call.visible && !model.is_shifted;
  const int64_t size = is_chain ? kChunk : std::max<int64_t>(total, 1);
  decoder.items.clear();
  decoder.chunks.clear();
  int64_t answer = 0;
  for (int64_t begin = 0; begin < total; begin += size) {
    Chunk chunk;
    chunk.tokens = {begin, std::min(begin + size, total)};
    chunk.items.begin = decoder.items.size();
    list_items(decoder, call, chunk.tokens);
    chunk.items.end = decoder.items.size();
    chunk.answers.begin = answer;
    const int64_t answers = decoder.answers.size();
    while (answer < answers && decoder.answers[answer].token < chunk.tokens.end) answer++;
    chunk.answers.end = answer;
    decoder.chunks.push_back(chunk);
  }
}

// Room for what the items of a chunk see, per window.
inline void reserve_sights(Decoder& decoder, int64_t items, int64_t tokens) {
  const int64_t count = items * static_cast<int64_t>(decoder.windows.size());
  const int64_t blocks = decoder.row_blocks;
  decoder.blocks.reserve(count * blocks * sizeof(Block));
  decoder.runs.reserve(count * blocks * sizeof(Run));
  decoder.masks.reserve(count * blocks * tokens * sizeof(uint16_t));
  decoder.sights.resize(count);
  for (int64_t i = 0; i < count; i++) {
    decoder.sights[i] = {decoder.blocks.as<Block>() + i * blocks, decoder.runs.as<Run>() + i * blocks,
                         decoder.masks.as<uint16_t>() + i * blocks * tokens, 0, 0, blocks};
  }
}

// What the rows see of their sources. One list of masks serves all tokens: its stride is 0.
inline Status look_at_sources(Decoder& decoder, const Call& call) {
  const int64_t blocks = (call.source_slots + kLanes - 1) / kLanes;
  decoder.source_blocks.reserve(call.rows * blocks * sizeof(Block));
  decoder.source_runs.reserve(call.rows * sizeof(Run));
  decoder.source_masks.reserve(call.rows * blocks * sizeof(uint16_t));
  decoder.sources.resize(call.rows);
  for (int64_t row = 0; row < call.rows; row++) {
    if (call.sources[row] < 1 || call.sources[row] > call.source_slots) return kBadSource;
    decoder.sources[row] = {decoder.source_blocks.as<Block>() + row * blocks, decoder.source_runs.as<Run>() + row,
                            decoder.source_masks.as<uint16_t>() + row * blocks, 0, 0, 0};
    look_at_source(row * call.source_slots, call.sources[row], decoder.sources[row]);
  }
  return kOk;
}

inline void reserve(Decoder& decoder, const Call& call) {
  const Sizes& sizes = decoder.sizes;
  const int64_t threads = call.threads;
  int64_t rows = 1, slots = 1, items = 0, tokens = 1;
  for (const Chunk& chunk : decoder.chunks) {
    rows = std::max({rows, chunk.tokens.size(), chunk.answers.size()});
    items = std::max(items, chunk.items.size());
  }
  for (int64_t end : decoder.ends) slots = std::max(slots, end);
  for (const Item& item : decoder.items) tokens = std::max(tokens, item.count);
  decoder.row_slots = round_up(slots, kLanes);
  // Every block takes kLanes slots but the last one, and of every other page the last one.
  decoder.row_blocks = decoder.row_slots / kLanes + (slots - 1) / call.page_size;
  decoder.queries = std::max<int64_t>(tokens * sizes.group, kQueries);
  const int64_t blocks = std::max(decoder.row_blocks, (call.source_slots + kLanes - 1) / kLanes);
  decoder.bench_floats = 2 * decoder.row_slots + decoder.queries * (2 * sizes.head_dim + blocks * kLanes) +
                         sizes.head_dim * kLanes;
  reserve_sights(decoder, items, tokens);
  decoder.residual.reserve(4 * rows * sizes.hidden);
  decoder.levels.reserve(sizeof(Level) * (rows + threads * kPrivateRows));
  decoder.normed.reserve(4 * std::max(rows, threads * kPrivateRows) * sizes.normed_row);
  decoder.coded.reserve(4 * std::max(sizes.coded(rows), threads * sizes.coded(kPrivateCodes)));
  decoder.projected.reserve(4 * rows * sizes.projected_row);
  decoder.attended.reserve(4 * rows * sizes.attended_row);
  decoder.activated.reserve(4 * rows * sizes.activated_row);
  decoder.bench.reserve(4 * threads * decoder.bench_floats);
}

inline Status plan(Decoder& decoder, const Call& call) {
  Status status = list_tokens(decoder, call);
  if (status == kOk) status = list_answers(decoder, call);
  if (status != kOk) return status;
  cut_chunks(decoder, call);
  reserve(decoder, call);
  return call.cross ? look_at_sources(decoder, call) : kOk;
}

}  // namespace outpace
