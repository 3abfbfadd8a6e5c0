// The shapes shared by the parts of a decoder: what Python hands over, and what is kept between calls.
#pragma once

#include <cstdlib>
#include <new>
#include <vector>

#include "attention.h"
#include "gemm.h"
#include "simd.h"
#include "team.h"

namespace outpace {

// What Python fills in; every field is 8 bytes. Mirrored by the ctypes structures of `library.py`.
struct MatrixView {
  Coding coding;
  const uint8_t* data;  // panels
};

struct NormView {
  const float* weight;  // vectors of floats are padded with zeros to kPadding; null = no norm
  const float* bias;    // null = none
};

// Attention to what an encoder made of a source; keys and values are the call's.
struct CrossView {
  NormView norm;
  MatrixView query;
  const float* query_bias;
  MatrixView output;  // none where `query` is none
  const float* output_bias;
};

struct LayerView {
  NormView attention_norm;  // before what it is named after, or, where the model `is_after`, behind it
  MatrixView qkv;
  const float* qkv_bias;    // biases may all be null = none
  const float* query_norm;  // null = none
  const float* key_norm;
  MatrixView output;
  const float* output_bias;
  CrossView cross;
  NormView ffn_norm;
  MatrixView up;         // gated: each panel holds half a panel of gates and the same columns of the other branch
  const float* up_bias;  // in the order of the panels' columns
  MatrixView down;
  const float* down_bias;
  int64_t window;         // latest positions seen; 0 = all
  int64_t rope;           // which of the frequency sets turns this layer; -1 = none
  const float* distance;  // [heads, distances] added to scores by how far a key is ahead (see bend); null = nothing
};

struct ModelView {
  int64_t is_bfloat16;
  int64_t is_full;     // every token sees every other; else, with a `block`, those of its block and of earlier ones
  int64_t block;       // positions per block; 0 = a token sees itself and those before it in its row
  int64_t is_shifted;  // the output for a token is read one token before it
  int64_t has_mean;    // norms take the mean away, and divide by the deviation
  int64_t is_after;    // norm(x + f(x)) in place of x + f(norm(x))
  int64_t is_parallel;  // attention and MLP both read the layer's input
  int64_t activation, is_gated;
  int64_t vocab, hidden, layers, heads, kv_heads, head_dim, ffn, positions;
  int64_t first_row;    // of `position_table`, for position 0
  int64_t reach;        // distances that a layer's `distance` tells apart, to either side
  double norm_eps, attention_scale;
  double embed_scale, head_scale;  // factors on embedded tokens and on logits
  const LayerView* layer;
  MatrixView embedding;  // plain [vocab, hidden], or the panels of a quantised one; null = read from the packed head
  const float* position_table;  // [first_row + positions, hidden] added to what is embedded; or null
  NormView embed_norm, final_norm;
  MatrixView head;
  const float* head_bias;
};

struct Call {
  int64_t rows, width, asked, threads, ropes;
  int64_t page_size, page_stride, head_stride;  // slots of a page; entries from a page, or a key head, to the next
  int64_t is_coded;  // entries are bytes and a factor (`CodedEntry`), not numbers of the model's
  const int64_t* tokens;    // [rows, width]
  const int64_t* position;  // [rows, width]; -1 = padding
  const float* inputs;      // [rows, width, hidden] in place of embedded tokens, or null
  const uint8_t* visible;   // [rows, width, width] or null
  const int64_t* lengths;   // [rows] valid cache entries
  // [rows] the pages of each row, `held[row]` of them: its slots, `page_size` at a time. A static cache is one page a row.
  const int64_t* const* tables;
  const int64_t* held;
  void* const* buffers;     // keys and values per layer, each [pages, kv_heads, page_size, head_dim] with these strides
  const int64_t* ask;       // [rows, asked] or null = all
  const uint8_t* skip;      // [layers] or null
  const float* const* turns;  // [rows, ropes, 2] cos and sin, each [positions of this call or more, head_dim / 2]
  void* logits;             // [rows, asked, vocab], or null = nobody looks at them
  // [layers + 2], or null: where to write the stream as it enters each layer, as it leaves the last one, and the normed
  // state that the head reads; each null or [rows, asked, hidden].
  void* const* taps;
  // Keys and values per layer for `CrossView`, each [rows, source_slots, kv_heads, head_dim], the first `sources[row]` of a
  // row; null where there is no source.
  const void* const* cross;
  const int64_t* sources;
  int64_t source_slots;

  // Where a slot of a row lies in every buffer, in entries, for the first key head.
  int64_t place(int64_t row, int64_t slot) const {
    return tables[row][slot / page_size] * page_stride + slot % page_size;
  }
};

enum Status : int64_t { kOk, kNoMemory, kBadToken, kBadPosition, kNoCapacity, kBadAsk, kBadSource };

constexpr int64_t kChunk = 256;       // tokens of a long causal forward that run together
constexpr int64_t kPrivateRows = 16;  // up to here every thread normalises all rows itself: cheaper than a barrier
constexpr int64_t kPrivateCodes = 4;  // the same for rows that are encoded, which takes longer

struct Token {
  int64_t row, index, place, position, id;
};

struct Answer {  // one row of logits
  int64_t token;   // whose state the head reads
  int64_t asked;   // whose states are tapped: the same token, or the next when outputs are shifted
  int64_t output;
};

struct Level {  // what a norm makes of a row: (value - mean) * scale
  float mean, scale;
};

struct Item {  // neighbouring tokens of one row that attend together
  int64_t first, count;
};

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

struct Chunk {  // tokens that go through the layers together, with their attention items and answers
  Range tokens, items, answers;
};

// Memory that grows on demand and is kept between calls.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  void reserve(size_t bytes) {
    if (bytes <= size_) return;
    std::free(data_);
    size_ = round_up(bytes, 1 << 16);
    data_ = std::aligned_alloc(kAlignment, size_);
    if (data_ == nullptr) {
      size_ = 0;
      throw std::bad_alloc();
    }
    memset(data_, 0, size_);  // padding columns are read and must stay zero
  }

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  static constexpr size_t kAlignment = 128;
  void* data_ = nullptr;
  size_t size_ = 0;
};

// Sizes that follow from a model.
struct Sizes {
  explicit Sizes(const ModelView& m)
      : per_word(m.is_bfloat16 ? 2 : 1),
        group(m.heads / m.kv_heads),
        hidden(round_up(m.hidden, kColumns)),
        projected((m.heads + 2 * m.kv_heads) * m.head_dim),
        projected_row(round_up(projected, kColumns)),
        normed_row(input_stride(words(m.hidden))),
        attended_row(input_stride(round_up(m.heads * m.head_dim, kBlock))),
        activated_row(input_stride(round_up(m.ffn, kBlock))),
        coded_tile(kTileBlock * num_blocks(std::max({m.hidden, m.heads * m.head_dim, m.ffn}))),
        head_dim(round_up(m.head_dim, kLanes)),
        item_tokens(std::max<int64_t>(1, kQueries / group)),
        most_tokens(std::max<int64_t>(1, kMostQueries / group)) {}

  // Words of so many encoded rows.
  int64_t coded(int64_t rows) const { return (rows + kMaxCodeTile - 1) / kMaxCodeTile * coded_tile; }
  int64_t words(int64_t elements) const { return (elements + per_word - 1) / per_word; }

  int64_t per_word, group, hidden, projected, projected_row, normed_row;
  int64_t attended_row, activated_row;  // room for floats, which rows of a quantised product begin as
  int64_t coded_tile;  // words of a tile of encoded rows
  int64_t head_dim;
  int64_t item_tokens, most_tokens;  // per attention item: whatever they see, and where all see the same
};

// A packed matrix [outputs, inputs] as products read it.
inline Matrix matrix_of(const MatrixView& view, int64_t inputs, int64_t outputs, int64_t per_word) {
  const bool is_coded = view.coding.bits != 0;
  const int64_t steps = is_coded ? num_blocks(inputs) : (inputs + per_word - 1) / per_word;
  const int64_t bytes = is_coded ? view.coding.panel_bytes(steps) : steps * kRowBytes;
  return {view.coding, view.data, steps, (outputs + kColumns - 1) / kColumns, bytes};
}

struct Decoder {
  explicit Decoder(const ModelView& view) : model(view), sizes(view), layers(view.layer, view.layer + view.layers) {
    for (const LayerView& layer : layers) {
      const auto found = std::find(windows.begin(), windows.end(), layer.window);
      window_of.push_back(found - windows.begin());
      if (found == windows.end()) windows.push_back(layer.window);
    }
  }

  ModelView model;
  Sizes sizes;
  std::vector<LayerView> layers;
  std::vector<int64_t> windows, window_of;  // the different windows, and per layer which of them it has
  // Planned by `plan.h` for each call.
  std::vector<Token> tokens, holes;  // holes = padding before a row's last token: its slots are read with weight 0
  std::vector<Answer> answers;
  std::vector<Item> items;
  std::vector<Chunk> chunks;
  std::vector<int64_t> ends;  // per row, slots written or valid
  int64_t queries = 0;        // of the largest item
  int64_t row_slots = 0;      // of the longest row, padded to kLanes
  int64_t row_blocks = 0;     // of keys in a row, at most
  int64_t bench_floats = 0;   // per thread
  std::vector<Sight> sights;  // [items of the largest chunk, windows]; filled in by the threads (see sight.h)
  std::vector<Sight> sources;  // [rows] of a call with sources: all tokens of a row see the same
  Buffer blocks, runs, masks, residual, levels, normed, coded, projected, attended, activated, bench;
  Buffer source_blocks, source_runs, source_masks;
  Team team;

  Matrix qkv(const LayerView& l) const { return matrix(l.qkv, model.hidden, sizes.projected); }
  Matrix output(const LayerView& l) const { return matrix(l.output, width(), model.hidden); }
  Matrix cross_query(const LayerView& l) const { return matrix(l.cross.query, model.hidden, width()); }
  Matrix cross_output(const LayerView& l) const { return matrix(l.cross.output, width(), model.hidden); }
  Matrix up(const LayerView& l) const {
    return matrix(l.up, model.hidden, model.is_gated ? 2 * round_up(model.ffn, kColumns / 2) : model.ffn);
  }
  Matrix down(const LayerView& l) const { return matrix(l.down, model.ffn, model.hidden); }
  Matrix head() const { return matrix(model.head, model.hidden, model.vocab); }
  // The matrix that holds the embedding's rows as columns of its panels.
  Matrix embedding() const { return matrix(model.embedding.data ? model.embedding : model.head, model.hidden, model.vocab); }

 private:
  int64_t width() const { return model.heads * model.head_dim; }
  Matrix matrix(const MatrixView& view, int64_t inputs, int64_t outputs) const {
    return matrix_of(view, inputs, outputs, sizes.per_word);
  }
};

}  // namespace outpace
