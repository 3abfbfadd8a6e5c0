// A whole decoder forward in one call: embedding, all layers, head. See `decoder.py` for the Python side.
//
// One parallel region runs everything; threads meet at a barrier between stages. The residual stream, queries, scores
// and sums are float32; bfloat16 models round only what a matrix product reads, what the cache holds and the logits.
// The result for one token has the same bits whatever else the forward holds (see gemm.h and attention.h).

#include <sys/mman.h>

#include <chrono>

#include "activation.h"
#include "decoder.h"
#include "plan.h"
#include "select.h"
#include "sight.h"

namespace outpace {

// 1 / root of the mean square of `count` values, of which `padded` are stored (zeros behind).
inline float rms_scale(const float* values, int64_t count, int64_t padded, double eps) {
  Floats sums[kVectors] = {};
  for (int64_t i = 0; i < padded; i += kColumns) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v++) {
      const Floats value = load<Floats>(values + i + v * kLanes);
      sums[v] = fma(value, value, sums[v]);
    }
  }
  Floats total = sums[0];
  for (int v = 1; v < kVectors; v++) total += sums[v];
  return 1.0f / __builtin_sqrtf(sum_lanes(total) / static_cast<float>(count) + static_cast<float>(eps));
}

// Mean and 1 / deviation of `count` values, likewise.
inline Level mean_level(const float* values, int64_t count, int64_t padded, double eps) {
  Floats sums[kVectors] = {};
  for (int64_t i = 0; i < padded; i += kColumns) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v++) sums[v] += load<Floats>(values + i + v * kLanes);
  }
  Floats total = sums[0];
  for (int v = 1; v < kVectors; v++) total += sums[v];
  const float mean = sum_lanes(total) / static_cast<float>(count);
  Ints lane;
  for (int i = 0; i < kLanes; i++) lane[i] = i;
  Floats squares[kVectors] = {};
  for (int64_t i = 0; i < padded; i += kColumns) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; v++) {
      Floats rest = load<Floats>(values + i + v * kLanes) - splat(mean);
      if (i + kColumns > count) {  // the padding has no part in it
        rest = lane + static_cast<int32_t>(i + v * kLanes) < static_cast<int32_t>(count) ? rest : Floats{};
      }
      squares[v] = fma(rest, rest, squares[v]);
    }
  }
  total = squares[0];
  for (int v = 1; v < kVectors; v++) total += squares[v];
  return {mean, 1.0f / __builtin_sqrtf(sum_lanes(total) / static_cast<float>(count) + static_cast<float>(eps))};
}

// Row `id` of a packed matrix, as floats.
template <class Type>
void read_weights(const Matrix& matrix, int64_t id, int64_t inputs, float* to) {
  const uint8_t* panel = matrix.panel(id / kColumns);
  if (matrix.is_coded()) return read_column(matrix.coding, panel, id % kColumns, inputs, to);
  const auto* words = reinterpret_cast<const typename Type::Element*>(panel);
  for (int64_t k = 0; k < inputs; k++) {
    to[k] = Type::read_one(words[(k / Type::kPerWord * kColumns + id % kColumns) * Type::kPerWord + k % Type::kPerWord]);
  }
}

// One thread's part of a forward.
template <class Type>
class Forward {
  using Element = typename Type::Element;
  using Sums = Floats[kVectors];

 public:
  Forward(Decoder& decoder, const Call& call, Worker& worker)
      : decoder_(decoder), model_(decoder.model), sizes_(decoder.sizes), call_(call), worker_(worker) {
    float* memory = decoder.bench.as<float>() + worker.thread * decoder.bench_floats;
    bench_.dims = sizes_.head_dim;
    bench_.bits = reinterpret_cast<uint64_t*>(memory);
    bench_.keys = memory + 2 * decoder.row_slots;
    bench_.query = bench_.keys + bench_.dims * kLanes;
    bench_.outputs = bench_.query + decoder.queries * bench_.dims;
    bench_.scores = bench_.outputs + decoder.queries * bench_.dims;
  }

  void run() {
    for (const Chunk& chunk : decoder_.chunks) {
      chunk_ = &chunk;
      pending_ = {};
      embed();
      look_around();
      worker_.wait();
      for (int64_t index = 0; index < model_.layers; index++) {
        tap(index);
        if (!call_.skip || !call_.skip[index]) run_layer(index);
      }
      tap(model_.layers);
      answer();
      worker_.wait();
    }
  }

  // The head by itself: `call_.asked` last hidden states, one after the other, to as many rows of logits.
  void read_out(const Element* hidden) {
    const Matrix head = decoder_.head();
    uint32_t* to = decoder_.normed.as<uint32_t>();
    uint32_t* coded = decoder_.coded.as<uint32_t>();
    const Tiles tiles = tiles_of(call_.asked, head);
    worker_.share(call_.asked, [&](int64_t i) {
      uint32_t* row = to + i * sizes_.normed_row;
      memset(row, 0, sizes_.normed_row * sizeof(uint32_t));
      memcpy(row, hidden + i * model_.hidden, model_.hidden * sizeof(Element));
      if (head.is_coded()) encode_words(head, row, tiles.place(coded, i));
    });
    worker_.wait();
    if (head.is_coded()) write_logits({coded, 0, call_.asked}, head, nullptr);
    else write_logits({to, sizes_.normed_row, call_.asked}, head, nullptr);
    worker_.wait();
  }

 private:
  int64_t num_tokens() const { return chunk_->tokens.size(); }
  const Token& token(int64_t m) const { return decoder_.tokens[chunk_->tokens.begin + m]; }
  float* residual(int64_t m) const { return decoder_.residual.as<float>() + m * sizes_.hidden; }
  float* projected(int64_t m) const { return decoder_.projected.as<float>() + m * sizes_.projected_row; }

  int64_t next_layer(int64_t index) const {
    while (index < model_.layers && call_.skip && call_.skip[index]) index++;
    return index;
  }

  // What follows layer `index`: its first weights are fetched ahead of the barrier.
  Matrix after(int64_t index) const {
    const int64_t next = next_layer(index + 1);
    return next < model_.layers ? decoder_.qkv(decoder_.layers[next]) : decoder_.head();
  }

  // Where a norm lies behind a sum, the stream holds the sum, and `pending_` is what it still has to go through:
  // whoever reads it applies it, so that no thread waits for it.
  const NormView& before(const NormView& norm) const { return model_.is_after ? pending_ : norm; }

  void settle(const NormView& norm) {
    if (model_.is_after) pending_ = norm;
  }

  void run_layer(int64_t index) {
    const LayerView& layer = decoder_.layers[index];
    const Matrix qkv = decoder_.qkv(layer), output = decoder_.output(layer);
    const Matrix up = decoder_.up(layer), down = decoder_.down(layer);
    project(normalise(before(layer.attention_norm), qkv), qkv, layer.qkv_bias, output);
    worker_.wait();
    place(layer, index);
    worker_.wait();
    attend(index);
    worker_.wait();
    if (model_.is_parallel) {
      activate(normalise(layer.ffn_norm, up), up, layer.up_bias, down);
      worker_.wait();
    }
    add_attended(output, layer.output_bias, up);
    settle(layer.attention_norm);
    worker_.wait();
    if (layer.cross.query.data && call_.cross) run_cross(layer, index);
    if (!model_.is_parallel) {
      activate(normalise(before(layer.ffn_norm), up), up, layer.up_bias, down);
      worker_.wait();
    }
    add(take(decoder_.activated, sizes_.activated_row, model_.ffn, down), down, layer.down_bias, after(index));
    settle(layer.ffn_norm);
    worker_.wait();
  }

  void run_cross(const LayerView& layer, int64_t index) {
    const CrossView& cross = layer.cross;
    const Matrix query = decoder_.cross_query(layer), output = decoder_.cross_output(layer);
    project(normalise(before(cross.norm), query), query, cross.query_bias, output);
    worker_.wait();
    attend_source(index);
    worker_.wait();
    add_attended(output, cross.output_bias, decoder_.up(layer));
    settle(cross.norm);
    worker_.wait();
  }

  // --- token rows in and out -------------------------------------------------------------------------------------

  void embed() {
    constexpr int64_t kSegment = 256;  // words per work item: rows of a tied head are gathered word by word
    const int64_t words = sizes_.words(model_.hidden), segments = (words + kSegment - 1) / kSegment;
    const bool is_coded = decoder_.embedding().is_coded();
    worker_.share(num_tokens() * segments, [&](int64_t item) {
      const int64_t m = item / segments, first = item % segments * kSegment;
      const int64_t last = std::min(words, first + kSegment);
      const int64_t begin = first * Type::kPerWord, end = std::min(model_.hidden, last * Type::kPerWord);
      if (call_.inputs) {
        copy_inputs(m, begin, end);
      } else if (!is_coded) {
        for (int64_t word = first; word < last; word++) embed_word(m, word);
      } else if (begin == 0) {
        read_weights<Type>(decoder_.embedding(), token(m).id, model_.hidden, residual(m));
      }
      // Codes are read row by row, by whoever has the first segment.
      const Range range = !is_coded || call_.inputs ? Range{begin, end} : Range{0, begin ? 0 : model_.hidden};
      if (!call_.inputs && model_.embed_scale != 1.0) stretch(residual(m), range);
      if (model_.position_table) add_position(m, range);
      // Padding is cleared each time: a row that went NaN in an earlier call has spoiled it.
      if (begin == 0) std::fill(residual(m) + model_.hidden, residual(m) + sizes_.hidden, 0.0f);
    });
    if (!model_.embed_norm.weight) return;
    worker_.wait();
    worker_.share(num_tokens(), [&](int64_t m) {
      normalise_row(residual(m), model_.embed_norm, level_of(residual(m), model_.embed_norm),
                    [&](int64_t at, const Floats(&values)[kVectors]) { write_floats(residual(m) + at, values); });
    });
  }

  // Times the factor, rounded as embeddings handed over by `inputs` are: both begin with the same numbers.
  void stretch(float* row, Range range) const {
    const float factor = Type::read_one(Type::narrow_one(static_cast<float>(model_.embed_scale)));
    for (int64_t i = range.begin; i < range.end; i += kLanes) {
      const int64_t count = std::min<int64_t>(kLanes, range.end - i);
      float values[kLanes] = {};
      Element rounded[kLanes];
      std::copy(row + i, row + i + count, values);
      Type::write(rounded, load<Floats>(values) * splat(factor));
      for (int64_t k = 0; k < count; k++) row[i + k] = Type::read_one(rounded[k]);
    }
  }

  void add_position(int64_t m, Range range) const {
    const float* from = model_.position_table + (model_.first_row + token(m).position) * model_.hidden;
    for (int64_t i = range.begin; i < range.end; i++) residual(m)[i] += from[i];
  }

  void copy_inputs(int64_t m, int64_t begin, int64_t end) {
    const float* from = call_.inputs + (token(m).row * call_.width + token(m).index) * model_.hidden;
    std::copy(from + begin, from + end, residual(m) + begin);
  }

  void embed_word(int64_t m, int64_t word) {
    const int64_t id = token(m).id;
    Element pair[Type::kPerWord] = {};
    if (model_.embedding.data) {
      const Element* row = reinterpret_cast<const Element*>(model_.embedding.data) + id * model_.hidden;
      for (int i = 0; i < Type::kPerWord && word * Type::kPerWord + i < model_.hidden; i++) {
        pair[i] = row[word * Type::kPerWord + i];
      }
    } else {
      memcpy(pair, decoder_.head().panel(id / kColumns) + word * kRowBytes + id % kColumns * sizeof pair, sizeof pair);
    }
    for (int i = 0; i < Type::kPerWord && word * Type::kPerWord + i < model_.hidden; i++) {
      residual(m)[word * Type::kPerWord + i] = Type::read_one(pair[i]);
    }
  }

  // Write rows of a product's inputs. Few: every thread writes all of them into memory of its own, found by
  // `words_in` or `codes_in`; many: shared, with a barrier.
  template <class One>
  void prepare(int64_t rows, bool is_coded, const One& one) {
    if (rows <= (is_coded ? kPrivateCodes : kPrivateRows)) {
      for (int64_t m = 0; m < rows; m++) one(m);
    } else {
      worker_.share(rows, one);
      worker_.wait();
    }
  }

  Inputs words_in(int64_t rows, bool is_coded) const {
    const int64_t first = rows <= (is_coded ? kPrivateCodes : kPrivateRows) ? worker_.thread * kPrivateRows : 0;
    return {decoder_.normed.as<uint32_t>() + first * sizes_.normed_row, sizes_.normed_row, rows};
  }

  Inputs codes_in(int64_t rows) const {
    const int64_t first = rows <= kPrivateCodes ? worker_.thread * sizes_.coded(kPrivateCodes) : 0;
    return {decoder_.coded.as<uint32_t>() + first, 0, rows};
  }

  static Tiles tiles_of(int64_t rows, const Matrix& to) { return {rows, kMaxCodeTile, to.steps}; }

  Level* levels_in(int64_t rows, bool is_coded) const {
    const int64_t all = worker_.threads * kPrivateRows;
    const bool is_private = rows <= (is_coded ? kPrivateCodes : kPrivateRows);
    return decoder_.levels.as<Level>() + (is_private ? worker_.thread * kPrivateRows : all);
  }

  // The residual stream of all tokens, normalised, and rounded to what the product with `to` reads.
  Inputs normalise(const NormView& norm, const Matrix& to) {
    const Inputs words = words_in(num_tokens(), to.is_coded());
    const Inputs coded = codes_in(num_tokens());
    const Tiles tiles = tiles_of(num_tokens(), to);
    levels_ = levels_in(num_tokens(), to.is_coded());
    prepare(num_tokens(), to.is_coded(), [&](int64_t m) {
      uint32_t* row = to.is_coded() ? tiles.place(coded.data, m) : words.data + m * words.stride;
      levels_[m] = level_of(residual(m), norm);
      normalise_row(residual(m), norm, levels_[m], [&](int64_t at, const Floats(&values)[kVectors]) {
        if (to.is_coded()) encode_block(to.coding, values, row + at / kBlock * kTileBlock);
        else write_words(row, at, values);
      });
    });
    return to.is_coded() ? coded : words;
  }

  Level level_of(const float* row, const NormView& norm) const {
    if (!norm.weight) return {0.0f, 1.0f};
    if (model_.has_mean) return mean_level(row, model_.hidden, sizes_.hidden, model_.norm_eps);
    return {0.0f, rms_scale(row, model_.hidden, sizes_.hidden, model_.norm_eps)};
  }

  // One vector of a normed row; `at` counts from the row's beginning.
  static Floats normed(const float* row, int64_t at, const NormView& norm, const Level& level) {
    Floats value = load<Floats>(row + at);
    if (!norm.weight) return value;
    if (level.mean != 0.0f) value -= splat(level.mean);
    value = value * splat(level.scale) * load<Floats>(norm.weight + at);
    return norm.bias ? value + load<Floats>(norm.bias + at) : value;
  }

  // Calls `write(position, kColumns values)` all along a row.
  template <class Write>
  void normalise_row(const float* from, const NormView& norm, const Level& level, const Write& write) const {
    const bool is_scaled = norm.weight && !norm.bias && !model_.has_mean;  // no question is asked of each vector
    const Floats scale = splat(level.scale);
    for (int64_t at = 0; is_scaled && at < sizes_.hidden; at += kColumns) {
      Floats values[kVectors];
      for (int v = 0; v < kVectors; v++) {
        values[v] = load<Floats>(from + at + v * kLanes) * scale * load<Floats>(norm.weight + at + v * kLanes);
      }
      write(at, values);
    }
    for (int64_t at = 0; !is_scaled && at < sizes_.hidden; at += kColumns) {
      Floats values[kVectors];
      for (int v = 0; v < kVectors; v++) values[v] = normed(from, at + v * kLanes, norm, level);
      write(at, values);
    }
  }

  static void write_floats(float* to, const Floats (&values)[kVectors]) {
    for (int v = 0; v < kVectors; v++) store(to + v * kLanes, values[v]);
  }

  static void write_words(uint32_t* row, int64_t at, const Floats (&values)[kVectors]) {
    for (int v = 0; v < kVectors; v++) Type::write(reinterpret_cast<Element*>(row) + at + v * kLanes, values[v]);
  }

  // Round a normed row once more: what the head reads is what a tap of it shows.
  void encode_words(const Matrix& to, const uint32_t* row, uint32_t* codes) const {
    for (int64_t at = 0; at < sizes_.hidden; at += kBlock) {
      Floats values[kVectors];
      for (int v = 0; v < kVectors; v++) values[v] = Type::read(reinterpret_cast<const Element*>(row) + at + v * kLanes);
      encode_block(to.coding, values, codes + at / kBlock * kTileBlock);
    }
  }

  // Rows that an earlier stage wrote as the product with `to` wants them: words, or floats that are encoded here.
  Inputs take(const Buffer& from, int64_t stride, int64_t width, const Matrix& to) {
    if (!to.is_coded()) return {from.as<uint32_t>(), stride, num_tokens()};
    const Inputs coded = codes_in(num_tokens());
    const Tiles tiles = tiles_of(num_tokens(), to);
    prepare(num_tokens(), true, [&](int64_t m) {
      encode_row(to.coding, from.as<float>() + m * stride, width, tiles.place(coded.data, m));
    });
    return coded;
  }

  void answer() {
    const Answer* answers = decoder_.answers.data() + chunk_->answers.begin;
    const Matrix head = decoder_.head();
    const int64_t count = chunk_->answers.size();
    const Inputs words = words_in(count, head.is_coded());
    const Inputs coded = codes_in(count);
    const Tiles tiles = tiles_of(count, head);
    prepare(count, head.is_coded(), [&](int64_t i) {
      uint32_t* row = words.data + i * words.stride;
      const float* from = residual(answers[i].token - chunk_->tokens.begin);
      const NormView& norm = before(model_.final_norm);
      normalise_row(from, norm, level_of(from, norm),
                    [&](int64_t at, const Floats(&values)[kVectors]) { write_words(row, at, values); });
      if (head.is_coded()) encode_words(head, row, tiles.place(coded.data, i));
    });
    if (const int64_t last = model_.layers + 1; call_.taps && call_.taps[last]) {
      worker_.share(count, [&](int64_t i) {
        memcpy(tapped(last, answers[i]), words.data + i * words.stride, model_.hidden * sizeof(Element));
      });
    }
    const Matrix first = decoder_.qkv(decoder_.layers[0]);  // of the next call, most likely
    if (call_.logits) write_logits(head.is_coded() ? coded : words, first, answers);
  }

  // The head's product: logits in the order of the answers, or, without any, of the rows. Compiled once: a second copy
  // of the product keeps both from being inlined.
  void write_logits(const Inputs& rows, const Matrix& then, const Answer* answers) {
    product<Type>(worker_, rows, decoder_.head(), then, [&](int64_t i, int64_t column, const Sums& sums) {
      Element* logits = static_cast<Element*>(call_.logits) + (answers ? answers[i].output : i) * model_.vocab + column;
      const int64_t count = std::min<int64_t>(kColumns, model_.vocab - column);
      if (!model_.head_bias && model_.head_scale == 1.0) {
        return write_row(logits, reinterpret_cast<const float*>(sums), count);
      }
      Sums found;
      for (int v = 0; v < kVectors; v++) {
        const Floats scaled = sums[v] * splat(static_cast<float>(model_.head_scale));
        found[v] = with(model_.head_bias, column + v * kLanes, scaled);
      }
      write_row(logits, reinterpret_cast<const float*>(found), count);
    });
  }

  // Where it is wanted, write the stream of the asked tokens as it enters layer `index`.
  void tap(int64_t index) {
    if (!call_.taps || !call_.taps[index]) return;
    const Answer* answers = decoder_.answers.data() + chunk_->answers.begin;
    worker_.share(chunk_->answers.size(), [&](int64_t i) {
      const float* from = residual(answers[i].asked - chunk_->tokens.begin);
      if (!pending_.weight) return write_row(tapped(index, answers[i]), from, model_.hidden);
      normalise_row(from, pending_, level_of(from, pending_), [&](int64_t at, const Sums& values) {
        const int64_t count = std::min<int64_t>(kColumns, model_.hidden - at);
        write_row(tapped(index, answers[i]) + at, reinterpret_cast<const float*>(values), count);
      });
    });
  }

  Element* tapped(int64_t index, const Answer& answer) const {
    return static_cast<Element*>(call_.taps[index]) + answer.output * model_.hidden;
  }

  // `count` floats to elements; `from` may be read up to the next full vector.
  static void write_row(Element* to, const float* from, int64_t count) {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) Type::write(to + i, load<Floats>(from + i));
    for (; i < count; i++) to[i] = Type::narrow_one(from[i]);
  }

  // --- matrix products -------------------------------------------------------------------------------------------

  static Floats with(const float* bias, int64_t at, Floats value) {
    return bias ? value + load<Floats>(bias + at) : value;
  }

  void project(const Inputs& in, const Matrix& weight, const float* bias, const Matrix& then) {
    product<Type>(worker_, in, weight, then, [&](int64_t m, int64_t column, const Sums& sums) {
      for (int v = 0; v < kVectors; v++) {
        const int64_t at = column + v * kLanes;
        store(projected(m) + at, with(bias, at, sums[v]));
      }
    });
  }

  void add_attended(const Matrix& weight, const float* bias, const Matrix& then) {
    add(take(decoder_.attended, sizes_.attended_row, model_.heads * model_.head_dim, weight), weight, bias, then);
  }

  // Add a product to the stream, to its normed form where a norm is pending: `normalise` has left its levels.
  void add(const Inputs& in, const Matrix& weight, const float* bias, const Matrix& then) {
    product<Type>(worker_, in, weight, then, [&](int64_t m, int64_t column, const Sums& sums) {
      float* row = residual(m);
      if (!bias && !pending_.weight) {
        for (int v = 0; v < kVectors; v++) {
          store(row + column + v * kLanes, load<Floats>(row + column + v * kLanes) + sums[v]);
        }
        return;
      }
      for (int v = 0; v < kVectors; v++) {
        const int64_t at = column + v * kLanes;
        const Floats before = pending_.weight ? normed(row, at, pending_, levels_[m]) : load<Floats>(row + at);
        store(row + at, before + with(bias, at, sums[v]));
      }
    });
  }

  // From the first half of an MLP to what the second, `then`, reads. A panel of a gated `weight` holds half a panel of
  // gates and the same columns of the other branch.
  void activate(const Inputs& in, const Matrix& weight, const float* bias, const Matrix& then) {
    constexpr int kGates = kVectors / 2;
    product<Type>(worker_, in, weight, then, [&](int64_t m, int64_t column, const Sums& sums) {
      uint32_t* row = decoder_.activated.as<uint32_t>() + m * sizes_.activated_row;
      const auto value = [&](int v) { return with(bias, column + v * kLanes, sums[v]); };
      const auto give = [&](int64_t at, Floats found) {
        if (then.is_coded()) store(reinterpret_cast<float*>(row) + at, found);
        else Type::write(reinterpret_cast<Element*>(row) + at, found);
      };
      if (model_.is_gated) {
        for (int v = 0; v < kGates; v++) {
          give(column / 2 + v * kLanes, activated(model_.activation, value(v)) * value(v + kGates));
        }
      } else {
        for (int v = 0; v < kVectors; v++) give(column + v * kLanes, activated(model_.activation, value(v)));
      }
    });
  }

  // --- attention -------------------------------------------------------------------------------------------------

  template <class Entry>
  typename Entry::Element* entry(int64_t layer, int which, int64_t head, int64_t place) const {
    auto* buffer = static_cast<typename Entry::Element*>(call_.buffers[2 * layer + which]);
    return buffer + (head * call_.head_stride + place) * Entry::size(model_.head_dim);
  }

  // Normalise and rotate queries and keys; write keys and values to the cache.
  void place(const LayerView& layer, int64_t index) {
    const int64_t heads = model_.heads, kv_heads = model_.kv_heads, per_token = heads + 2 * kv_heads;
    worker_.share(num_tokens() * per_token, [&](int64_t item) {
      const int64_t m = item / per_token, head = item % per_token, dim = model_.head_dim;
      float* values = projected(m) + head * dim;
      if (head < heads) return turn(layer, layer.query_norm, token(m), values);
      const bool is_key = head < heads + kv_heads;
      if (is_key) turn(layer, layer.key_norm, token(m), values);
      const int64_t kv_head = head - heads - (is_key ? 0 : kv_heads);
      const int which = is_key ? 0 : 1;
      if (call_.is_coded) CodedEntry::write(entry<CodedEntry>(index, which, kv_head, token(m).place), values, dim);
      else write_row(entry<PlainEntry<Type>>(index, which, kv_head, token(m).place), values, dim);
    });
    if (worker_.thread == 0 && chunk_ == decoder_.chunks.data()) clear_holes(index);
  }

  void clear_holes(int64_t index) {
    for (const Token& hole : decoder_.holes) {
      for (int64_t head = 0; head < model_.kv_heads; head++) {
        for (int which : {0, 1}) {
          const int64_t dim = model_.head_dim;
          if (call_.is_coded) memset(entry<CodedEntry>(index, which, head, hole.place), 0, CodedEntry::size(dim));
          else memset(entry<PlainEntry<Type>>(index, which, head, hole.place), 0, dim * sizeof(Element));
        }
      }
    }
  }

  void turn(const LayerView& layer, const float* norm, const Token& token, float* values) const {
    const int64_t dim = model_.head_dim, half = dim / 2;
    if (norm) {
      float squares = 0.0f;
      for (int64_t i = 0; i < dim; i++) squares = fma(values[i], values[i], squares);
      const float mean = squares / static_cast<float>(dim);
      const float scale = 1.0f / __builtin_sqrtf(mean + static_cast<float>(model_.norm_eps));
      for (int64_t i = 0; i < dim; i++) values[i] = values[i] * scale * norm[i];
    }
    if (layer.rope < 0) return;
    const float* const* tables = call_.turns + 2 * (token.row * call_.ropes + layer.rope);
    const float* cos = tables[0] + token.position * half;
    const float* sin = tables[1] + token.position * half;
    for (int64_t i = 0; i < half; i++) {
      const float low = values[i], high = values[i + half];
      values[i] = low * cos[i] - high * sin[i];
      values[i + half] = high * cos[i] + low * sin[i];
    }
  }

  // Write down once what the items of this chunk see; all heads and layers read it.
  void look_around() {
    const int64_t windows = decoder_.windows.size();
    worker_.share(chunk_->items.size() * windows, [&](int64_t i) {
      const Item& item = decoder_.items[chunk_->items.begin + i / windows];
      look(decoder_, call_, item, decoder_.windows[i % windows], bench_.bits, decoder_.sights[i]);
    });
  }

  void attend(int64_t index) {
    if (call_.is_coded) attend_with<CodedEntry>(index);
    else attend_with<PlainEntry<Type>>(index);
  }

  template <class Entry>
  void attend_with(int64_t index) {
    const int64_t items = chunk_->items.size(), windows = decoder_.windows.size(), dim = model_.head_dim;
    const LayerView& layer = decoder_.layers[index];
    int64_t near_head = -1, near_row = -1;  // whose entries this core's cache holds
    // Items of one head are neighbours: its keys stay in the cache.
    worker_.claim(items * model_.kv_heads, [&](int64_t work, bool) {
      const Item& item = decoder_.items[chunk_->items.begin + work % items];
      const Sight& sight = decoder_.sights[work % items * windows + decoder_.window_of[index]];
      const int64_t kv_head = work / items, row = decoder_.tokens[item.first].row;
      const Stored<Entry> keys{entry<Entry>(index, 0, kv_head, 0), Entry::size(dim), dim};
      const Stored<Entry> values{entry<Entry>(index, 1, kv_head, 0), Entry::size(dim), dim};
      if (kv_head != near_head || row != near_row) {
        bring(keys, sight);
        bring(values, sight);
      }
      near_head = kv_head, near_row = row;
      answer_item(item, sight, kv_head, keys, values, layer.distance, layer.output);
    });
  }

  void attend_source(int64_t index) {
    using Entry = PlainEntry<Type>;
    const int64_t items = chunk_->items.size(), dim = model_.head_dim, size = model_.kv_heads * dim;
    const auto* keys = static_cast<const Element*>(call_.cross[2 * index]);
    const auto* values = static_cast<const Element*>(call_.cross[2 * index + 1]);
    worker_.claim(items * model_.kv_heads, [&](int64_t work, bool) {
      const Item& item = decoder_.items[chunk_->items.begin + work % items];
      const Sight& sight = decoder_.sources[decoder_.tokens[item.first].row];
      const int64_t first = work / items * dim;
      answer_item(item, sight, work / items, Stored<Entry>{keys + first, size, dim},
                  Stored<Entry>{values + first, size, dim}, nullptr, decoder_.layers[index].cross.output);
    });
  }

  // The queries of an item's tokens that share a key head; `output` is the matrix that reads what they find.
  template <class Entry>
  void answer_item(const Item& item, const Sight& sight, int64_t kv_head, const Stored<Entry>& keys,
                   const Stored<Entry>& values, const float* distance, const MatrixView& output) {
    const int64_t group = sizes_.group, queries = item.count * group;
    bench_.slots = sight.num_blocks * kLanes;
    for (int64_t q = 0; q < queries; q++) take_query(q, item.first + q / group, kv_head * group + q % group);
    score(bench_, sight, queries, group, keys);
    for (int64_t q = 0; distance && q < queries; q++) {
      add_distances(q, item.first + q / group, kv_head * group + q % group, sight, distance);
    }
    for (int64_t q = 0; q < queries; q++) weigh(bench_.scores + q * bench_.slots, bench_.slots);
    gather(bench_, sight, queries, values);
    const bool is_coded = output.coding.bits != 0;
    for (int64_t q = 0; q < queries; q++) give_output(q, item.first + q / group, kv_head * group + q % group, is_coded);
  }

  void add_distances(int64_t query, int64_t token, int64_t head, const Sight& sight, const float* distance) {
    const Token& asker = decoder_.tokens[token];
    const int64_t length = call_.lengths[asker.row];
    const int64_t* staged = call_.position + asker.row * call_.width - length;
    bend(bench_, sight, query, distance + head * num_distances(model_.reach), model_.reach, asker.position,
         [&](int64_t slot) { return slot < length ? slot : staged[slot]; });
  }

  void take_query(int64_t query, int64_t token, int64_t head) {
    const float* from = projected(token - chunk_->tokens.begin) + head * model_.head_dim;
    float* to = bench_.query + query * bench_.dims;
    const float scale = static_cast<float>(model_.attention_scale);
    for (int64_t d = 0; d < model_.head_dim; d++) to[d] = from[d] * scale;
    std::fill(to + model_.head_dim, to + bench_.dims, 0.0f);
  }

  void give_output(int64_t query, int64_t token, int64_t head, bool is_coded) {
    uint32_t* row = decoder_.attended.as<uint32_t>() + (token - chunk_->tokens.begin) * sizes_.attended_row;
    const float* from = bench_.outputs + query * bench_.dims;
    const int64_t at = head * model_.head_dim;
    if (is_coded) std::copy(from, from + model_.head_dim, reinterpret_cast<float*>(row) + at);
    else write_row(reinterpret_cast<Element*>(row) + at, from, model_.head_dim);
  }

  Decoder& decoder_;
  const ModelView& model_;
  const Sizes& sizes_;
  const Call& call_;
  Worker& worker_;
  const Chunk* chunk_ = nullptr;
  Bench bench_{};
  NormView pending_{};
  Level* levels_ = nullptr;
};

// --- one parallel region -----------------------------------------------------------------------------------------

template <class Type>
void forward(Decoder& decoder, const Call& call) {
  in_parallel(call.threads, [&](int thread, int threads) {
    Worker worker(decoder.team, thread, threads);
    Forward<Type>(decoder, call, worker).run();
  });
}

template <class Type>
void read_out(Decoder& decoder, const Call& call, const void* hidden) {
  in_parallel(call.threads, [&](int thread, int threads) {
    Worker worker(decoder.team, thread, threads);
    Forward<Type>(decoder, call, worker).read_out(static_cast<const typename Type::Element*>(hidden));
  });
}

// One product by itself: rows are copied to memory as a product reads it, and encoded where the weights are codes.
template <class Type>
void linear(const MatrixView& view, const void* input, int64_t rows, int64_t inputs, int64_t outputs, const float* bias,
            void* output, int64_t threads) {
  using Element = typename Type::Element;
  static Team team;
  static Buffer words, floats;
  const Matrix weight = matrix_of(view, inputs, outputs, Type::kPerWord);
  const Tiles tiles(rows, kMaxCodeTile, weight.steps);
  const int64_t width = round_up(inputs, kBlock);
  const int64_t stride = input_stride((inputs + Type::kPerWord - 1) / Type::kPerWord);
  words.reserve(sizeof(uint32_t) * (weight.is_coded() ? (tiles.count + 1) * tiles.words : rows * stride));
  if (weight.is_coded()) floats.reserve(sizeof(float) * rows * width);
  in_parallel(threads, [&](int thread, int count) {
    Worker worker(team, thread, count);
    worker.share(rows, [&](int64_t row) {
      const Element* from = static_cast<const Element*>(input) + row * inputs;
      if (!weight.is_coded()) {
        uint32_t* to = words.as<uint32_t>() + row * stride;
        memset(to, 0, stride * sizeof(uint32_t));
        memcpy(to, from, inputs * sizeof(Element));
        return;
      }
      float* to = floats.as<float>() + row * width;
      for (int64_t i = 0; i < width; i++) to[i] = i < inputs ? Type::read_one(from[i]) : 0.0f;
      encode_row(weight.coding, to, inputs, tiles.place(words.as<uint32_t>(), row));
    });
    worker.wait();
    const Inputs in{words.as<uint32_t>(), weight.is_coded() ? 0 : stride, rows};
    product<Type>(worker, in, weight, weight, [&](int64_t row, int64_t column, const Floats(&sums)[kVectors]) {
      alignas(64) float found[kColumns];
      for (int v = 0; v < kVectors; v++) {
        const int64_t at = v * kLanes;
        store(found + at, bias ? sums[v] + load<Floats>(bias + column + at) : sums[v]);
      }
      Element* to = static_cast<Element*>(output) + row * outputs + column;
      const int64_t most = std::min<int64_t>(kColumns, outputs - column);
      for (int64_t i = 0; i < most; i++) to[i] = Type::narrow_one(found[i]);
    });
    worker.wait();
  });
}

// Fill the panels of a matrix: `pack_one(panel, row_of)` for each, where `row_of(column)` names the row of the source that
// a column holds, or -1 for padding.
template <class PackOne>
void pack(int64_t outputs, bool is_gated, int64_t threads, const PackOne& pack_one) {
  const int64_t half = outputs / 2, wide = kColumns / 2;
  const int64_t panels = is_gated ? (half + wide - 1) / wide : (outputs + kColumns - 1) / kColumns;
  in_parallel(threads, [&](int thread, int count) {
    for (int64_t panel = thread; panel < panels; panel += count) {
      pack_one(panel, [&](int column) -> int64_t {
        if (!is_gated) return panel * kColumns + column < outputs ? panel * kColumns + column : -1;
        const int64_t row = panel * wide + column % wide;
        return row >= half ? -1 : column < wide ? row : half + row;
      });
    }
  });
}

template <class Type>
void pack_plain(const void* source, int64_t outputs, int64_t inputs, bool is_gated, uint32_t* to, int64_t threads) {
  const int64_t steps = (inputs + Type::kPerWord - 1) / Type::kPerWord;
  pack(outputs, is_gated, threads, [&](int64_t panel, const auto& row_of) {
    pack_panel<Type>(static_cast<const typename Type::Element*>(source), inputs, steps, to + panel * steps * kColumns,
                     row_of);
  });
}

// Read a buffer once; returns something that depends on all of it, so that nothing is optimised away.
inline uint32_t read_all(const uint32_t* data, int64_t words) {
  Words sums[8] = {};
  for (int64_t i = 0; i + 8 * kLanes <= words; i += 8 * kLanes) {
    __builtin_prefetch(data + i + 4096, 0, 2);
    __builtin_prefetch(data + i + 4096 + 4 * kLanes, 0, 2);
#pragma GCC unroll 8
    for (int v = 0; v < 8; v++) sums[v] ^= load<Words>(data + i + v * kLanes);
  }
  Words total{};
  for (const Words& sum : sums) total ^= sum;
  return total[0];
}

}  // namespace outpace

// --- what Python calls -------------------------------------------------------------------------------------------

extern "C" {

void* outpace_new(const outpace::ModelView* model) { return new (std::nothrow) outpace::Decoder(*model); }

void outpace_delete(void* decoder) { delete static_cast<outpace::Decoder*>(decoder); }

int64_t outpace_forward(void* handle, const outpace::Call* call) {
  auto& decoder = *static_cast<outpace::Decoder*>(handle);
  try {
    const outpace::Status status = outpace::plan(decoder, *call);
    if (status != outpace::kOk) return status;
  } catch (const std::bad_alloc&) {
    return outpace::kNoMemory;
  }
  if (decoder.model.is_bfloat16) outpace::forward<outpace::Bfloat16>(decoder, *call);
  else outpace::forward<outpace::Float32>(decoder, *call);
  return outpace::kOk;
}

// Logits [rows, vocab] of last hidden states [rows, hidden].
int64_t outpace_head(void* handle, const void* hidden, int64_t rows, void* logits, int64_t threads) {
  auto& decoder = *static_cast<outpace::Decoder*>(handle);
  outpace::Call call{};
  call.asked = rows, call.threads = threads, call.logits = logits;
  try {
    decoder.normed.reserve(sizeof(uint32_t) * rows * decoder.sizes.normed_row);
    decoder.coded.reserve(sizeof(uint32_t) * decoder.sizes.coded(rows));
  } catch (const std::bad_alloc&) {
    return outpace::kNoMemory;
  }
  if (decoder.model.is_bfloat16) outpace::read_out<outpace::Bfloat16>(decoder, call, hidden);
  else outpace::read_out<outpace::Float32>(decoder, call, hidden);
  return outpace::kOk;
}

// outputs [rows, out] = inputs [rows, in] times a packed matrix [out, in], plus `bias` (padded to kPadding) or null; all
// in the elements of the type. The caller sees to it that calls take turns.
int64_t outpace_linear(const outpace::MatrixView* weight, int64_t is_bfloat16, const void* input, int64_t rows,
                       int64_t inputs, int64_t outputs, const float* bias, void* output, int64_t threads) {
  try {
    if (is_bfloat16) outpace::linear<outpace::Bfloat16>(*weight, input, rows, inputs, outputs, bias, output, threads);
    else outpace::linear<outpace::Float32>(*weight, input, rows, inputs, outputs, bias, output, threads);
  } catch (const std::bad_alloc&) {
    return outpace::kNoMemory;
  }
  return outpace::kOk;
}

// Pack [outputs, inputs] row by row into panels; gated: the first half of the rows is the gate.
void outpace_pack(int64_t is_bfloat16, const void* source, int64_t outputs, int64_t inputs, int64_t is_gated,
                  uint32_t* to, int64_t threads) {
  if (is_bfloat16) outpace::pack_plain<outpace::Bfloat16>(source, outputs, inputs, is_gated, to, threads);
  else outpace::pack_plain<outpace::Float32>(source, outputs, inputs, is_gated, to, threads);
}

int64_t outpace_panel_bytes(const outpace::Coding* coding, int64_t inputs) {
  return coding->panel_bytes(outpace::num_blocks(inputs));
}

// The same for a quantised matrix, into panels of `outpace_panel_bytes` each.
void outpace_pack_codes(const outpace::Coded* source, int64_t is_gated, uint8_t* to, int64_t threads) {
  const int64_t bytes = source->coding.panel_bytes(outpace::num_blocks(source->inputs));
  outpace::pack(source->outputs, is_gated, threads, [&](int64_t panel, const auto& row_of) {
    memset(to + panel * bytes, 0, bytes);
    for (int column = 0; column < outpace::kColumns; column++) {
      const int64_t row = row_of(column);
      if (row >= 0) outpace::pack_column(*source, row, to + panel * bytes, column);
    }
  });
}

// Rows `ids` of the packed head, or of the embedding, as floats [count, hidden].
void outpace_rows(void* handle, int64_t is_head, const int64_t* ids, int64_t count, float* to) {
  const auto& decoder = *static_cast<outpace::Decoder*>(handle);
  const outpace::Matrix matrix = is_head ? decoder.head() : decoder.embedding();
  for (int64_t i = 0; i < count; i++, to += decoder.model.hidden) {
    if (decoder.model.is_bfloat16) outpace::read_weights<outpace::Bfloat16>(matrix, ids[i], decoder.model.hidden, to);
    else outpace::read_weights<outpace::Float32>(matrix, ids[i], decoder.model.hidden, to);
  }
}

// Pack some rows of a quantised head anew.
void outpace_pack_head(void* handle, const int64_t* ids, int64_t count, uint8_t* to, int64_t threads) {
  const auto& decoder = *static_cast<outpace::Decoder*>(handle);
  const outpace::Matrix head = decoder.head();
  outpace::pack(count, false, threads, [&](int64_t panel, const auto& row_of) {
    uint8_t* at = to + panel * head.panel_bytes;
    memset(at, 0, head.panel_bytes);
    for (int column = 0; column < outpace::kColumns; column++) {
      if (const int64_t row = row_of(column); row >= 0) {
        const int64_t id = ids[row];
        const uint8_t* from = head.panel(id / outpace::kColumns);
        outpace::copy_column(head.coding, head.steps, from, id % outpace::kColumns, at, column);
      }
    }
  });
}

// The candidates of top-k (see select.h): lists [rows, capacity] of logits and ids, from logits [rows, vocab].
int64_t outpace_select(int64_t is_bfloat16, const void* logits, int64_t rows, int64_t vocab, int64_t count,
                       int64_t capacity, float* values, int64_t* ids) {
  const auto run = is_bfloat16 ? outpace::select<outpace::Bfloat16> : outpace::select<outpace::Float32>;
  return run(logits, rows, vocab, count, capacity, values, ids);
}

// Ask for huge pages before the memory is touched: weights are streamed, and small pages cost walks.
void outpace_advise(void* data, int64_t bytes) {
  constexpr int64_t kHuge = 1 << 21;
  const auto begin = outpace::round_up(reinterpret_cast<int64_t>(data), kHuge);
  const auto end = (reinterpret_cast<int64_t>(data) + bytes) / kHuge * kHuge;
#if defined(MADV_HUGEPAGE)
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// Seconds that `threads` threads take to read `words` words once.
double outpace_read(const uint32_t* data, int64_t words, int64_t threads) {
  [[maybe_unused]] static volatile uint32_t sink;
  const auto start = std::chrono::steady_clock::now();
  outpace::in_parallel(threads, [&](int thread, int count) {
    const int64_t begin = words * thread / count, end = words * (thread + 1) / count;
    sink = outpace::read_all(data + begin, end - begin);
  });
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // extern "C"
