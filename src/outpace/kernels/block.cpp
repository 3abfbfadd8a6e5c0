// A block drafter's pass in one call: features of new states, the layers over places ahead, their laws. See `block.py`.
//
// One parallel region runs everything, as in decoder.cpp. The residual stream, queries, scores and sums are float32; what a
// matrix product reads, what the cache holds and what is written out are rounded. Features enter every layer's keys and
// values as they are, places by way of the layer's norm, so that both go through one product.

#include "decoder.h"

namespace outpace {

// What Python fills in; every field is 8 bytes. Mirrored by the ctypes structures of `block.py`.
struct BlockLayer {
  const float* input_norm;  // vectors of floats are padded with zeros to kPadding
  MatrixView qkv;
  const float* query_norm;  // null = none
  const float* key_norm;
  MatrixView output;
  const float* ffn_norm;
  MatrixView gate_up;
  MatrixView down;
};

struct BlockView {
  int64_t is_bfloat16, is_causal, adds_state;
  int64_t hidden, states, layers, heads, kv_heads, head_dim, ffn, places, depth, vocab;
  int64_t window;  // nearest features that a place sees; 0 = all
  double norm_eps;
  MatrixView fuse;            // [hidden, states]
  const float* feature_norm;
  const float* masks;         // [places - 1, hidden]
  const BlockLayer* layer;
  const float* final_norm;
  MatrixView head;            // [vocab, hidden]
};

struct BlockCall {
  int64_t rows, threads, slots, num_states;
  const void* states;      // [num_states, states] of new tokens, row after row
  const int64_t* counts;   // [rows] how many of them are a row's
  const int64_t* held;     // [rows] features in the cache
  const int64_t* offset;   // [rows] place in the text of the cache's first slot
  const int64_t* anchor;   // [rows] place in the text of the last token
  const float* embedded;   // [rows, hidden] the last tokens
  float* feature;          // [rows, hidden] of the tokens before the last ones; brought up to date
  void* const* buffers;    // keys and values per layer, each [rows, slots, kv_heads, head_dim]
  const float* turns;      // [positions, 2, head_dim / 2] cosines and sines
  void* made;              // [rows, depth, hidden + vocab] hidden states and logits
};

struct BlockDrafter {
  explicit BlockDrafter(const BlockView& view) : model(view), layers(view.layer, view.layer + view.layers) {}
  BlockView model;
  std::vector<BlockLayer> layers;
  // Planned for each call.
  std::vector<int64_t> owner, first;  // per line its row; per row its first new state
  int64_t thread_scores = 0;
  Buffer lines, floats, feature, residual, projected, attended, activated, scores;
  Team team;
};

template <class Type>
class BlockPass {
  using Element = typename Type::Element;
  using Sums = Floats[kVectors];

 public:
  BlockPass(BlockDrafter& block, const BlockCall& call, Worker& worker)
      : block_(block), m_(block.model), call_(call), worker_(worker), news_(call.num_states),
        places_(call.rows * block.model.places), hidden_(round_up(block.model.hidden, kBlock)),
        projected_(round_up((m_.heads + 2 * m_.kv_heads) * m_.head_dim, kColumns)),
        attended_(round_up(m_.heads * m_.head_dim, kBlock)), activated_(round_up(m_.ffn, kBlock)) {}

  void run() {
    read_states();
    begin();
    for (int64_t index = 0; index < m_.layers; index++) run_layer(index);
    answer();
  }

  static void reserve(BlockDrafter& block, const BlockCall& call) {
    const BlockView& m = block.model;
    const int64_t lines = call.num_states + call.rows * m.places, hidden = round_up(m.hidden, kBlock);
    const int64_t words = std::max(input_stride(widest(m)), kTileBlock * num_blocks(widest(m)));
    int64_t slots = 1;
    for (int64_t row = 0; row < call.rows; row++) slots = std::max(slots, call.held[row] + call.counts[row] + m.places);
    block.lines.reserve(4 * words * (lines + kMaxCodeTile));
    block.floats.reserve(4 * call.threads * widest(m));
    block.feature.reserve(4 * std::max<int64_t>(1, call.num_states) * hidden);
    block.residual.reserve(4 * call.rows * m.places * hidden);
    block.projected.reserve(4 * lines * round_up((m.heads + 2 * m.kv_heads) * m.head_dim, kColumns));
    block.attended.reserve(4 * call.rows * m.places * round_up(m.heads * m.head_dim, kBlock));
    block.activated.reserve(4 * call.rows * m.places * round_up(m.ffn, kBlock));
    block.thread_scores = round_up(slots, kLanes) + kLanes;
    block.scores.reserve(4 * call.threads * block.thread_scores);
    block.first.assign(call.rows + 1, 0);
    block.owner.clear();
    for (int64_t row = 0; row < call.rows; row++) {
      block.first[row + 1] = block.first[row] + call.counts[row];
      block.owner.insert(block.owner.end(), call.counts[row], row);
    }
    for (int64_t row = 0; row < call.rows; row++) block.owner.insert(block.owner.end(), m.places, row);
  }

 private:
  float* feature(int64_t i) const { return block_.feature.as<float>() + i * hidden_; }
  float* residual(int64_t i) const { return block_.residual.as<float>() + i * hidden_; }
  float* projected(int64_t i) const { return block_.projected.as<float>() + i * projected_; }
  float* attended(int64_t i) const { return block_.attended.as<float>() + i * attended_; }
  float* activated(int64_t i) const { return block_.activated.as<float>() + i * activated_; }
  Matrix matrix(const MatrixView& view, int64_t inputs, int64_t outputs) const {
    return matrix_of(view, inputs, outputs, Type::kPerWord);
  }

  // Rows of a product's inputs, `row(i, to)` writing floats of the given width; shared by the threads.
  template <class Row>
  Inputs lines(int64_t rows, int64_t width, const Matrix& to, const Row& row) const {
    uint32_t* words = block_.lines.as<uint32_t>();
    const int64_t stride = input_stride((width + Type::kPerWord - 1) / Type::kPerWord), padded = round_up(width, kBlock);
    const Tiles tiles(std::max<int64_t>(1, rows), kMaxCodeTile, to.steps);
    float* floats = block_.floats.as<float>() + worker_.thread * widest(m_);
    worker_.share(rows, [&](int64_t i) {
      row(i, floats);
      std::fill(floats + width, floats + padded, 0.0f);
      if (to.is_coded()) return encode_row(to.coding, floats, width, tiles.place(words, i));
      auto* line = reinterpret_cast<Element*>(words + i * stride);
      for (int64_t k = 0; k < padded; k += kLanes) Type::write(line + k, load<Floats>(floats + k));
    });
    worker_.wait();
    return {words, to.is_coded() ? 0 : stride, rows};
  }

  static int64_t widest(const BlockView& m) {
    return round_up(std::max({m.states, m.hidden, m.heads * m.head_dim, m.ffn}), kBlock);
  }

  void normalise(const float* from, const float* weight, float* to, int64_t count) const {
    float sum = 0.0f;
    for (int64_t k = 0; k < count; k++) sum += from[k] * from[k];
    const float scale = 1.0f / __builtin_sqrtf(sum / static_cast<float>(count) + static_cast<float>(m_.norm_eps));
    for (int64_t k = 0; k < count; k++) to[k] = from[k] * scale * weight[k];
  }

  // --- features, and what enters the layers -------------------------------------------------------------------------

  void read_states() {
    const Matrix fuse = matrix(m_.fuse, m_.states, m_.hidden);
    if (!news_) return;
    const auto* states = static_cast<const Element*>(call_.states);
    const Inputs in = lines(news_, m_.states, fuse, [&](int64_t i, float* to) {
      for (int64_t k = 0; k < m_.states; k++) to[k] = Type::read_one(states[i * m_.states + k]);
    });
    product<Type>(worker_, in, fuse, matrix(block_.layers[0].qkv, m_.hidden, projected_), [&](int64_t i, int64_t column, const Sums& sums) {
      for (int v = 0; v < kVectors; v++) store(feature(i) + column + v * kLanes, sums[v]);
    });
    worker_.wait();
    worker_.share(news_, [&](int64_t i) { normalise(feature(i), m_.feature_norm, feature(i), m_.hidden); });
    worker_.wait();
  }

  void begin() {
    worker_.share(call_.rows, [&](int64_t row) {
      float* last = call_.feature + row * m_.hidden;
      if (call_.counts[row]) std::copy_n(feature(block_.first[row + 1] - 1), m_.hidden, last);
      for (int64_t place = 0; place < m_.places; place++) {
        float* to = residual(row * m_.places + place);
        const float* from = place ? m_.masks + (place - 1) * m_.hidden : call_.embedded + row * m_.hidden;
        for (int64_t k = 0; k < m_.hidden; k++) to[k] = m_.adds_state ? from[k] + last[k] : from[k];
      }
    });
    worker_.wait();
  }

  // --- layers -------------------------------------------------------------------------------------------------------

  void run_layer(int64_t index) {
    const BlockLayer& layer = block_.layers[index];
    const int64_t wide = m_.heads * m_.head_dim, narrow = m_.kv_heads * m_.head_dim;
    const Matrix qkv = matrix(layer.qkv, m_.hidden, wide + 2 * narrow), output = matrix(layer.output, wide, m_.hidden);
    const Matrix gate_up = matrix(layer.gate_up, m_.hidden, 2 * round_up(m_.ffn, kColumns / 2));
    const Matrix down = matrix(layer.down, m_.ffn, m_.hidden);
    const Inputs in = lines(news_ + places_, m_.hidden, qkv, [&](int64_t i, float* to) {
      if (i < news_) std::copy_n(feature(i), m_.hidden, to);
      else normalise(residual(i - news_), layer.input_norm, to, m_.hidden);
    });
    product<Type>(worker_, in, qkv, output, [&](int64_t i, int64_t column, const Sums& sums) {
      for (int v = 0; v < kVectors; v++) store(projected(i) + column + v * kLanes, sums[v]);
    });
    worker_.wait();
    worker_.share(news_ + places_, [&](int64_t i) { place(layer, index, i); });
    worker_.wait();
    worker_.share(places_ * m_.kv_heads, [&](int64_t item) { attend(index, item / m_.kv_heads, item % m_.kv_heads); });
    worker_.wait();
    add(lines(places_, wide, output, [&](int64_t i, float* to) { std::copy_n(attended(i), wide, to); }), output, gate_up);
    activate(lines(places_, m_.hidden, gate_up, [&](int64_t i, float* to) { normalise(residual(i), layer.ffn_norm, to, m_.hidden); }), gate_up, down);
    add(lines(places_, m_.ffn, down, [&](int64_t i, float* to) { std::copy_n(activated(i), m_.ffn, to); }), down, matrix(m_.head, m_.hidden, m_.vocab));
  }

  void add(const Inputs& in, const Matrix& weight, const Matrix& then) {
    product<Type>(worker_, in, weight, then, [&](int64_t i, int64_t column, const Sums& sums) {
      float* to = residual(i) + column;
      for (int v = 0; v < kVectors; v++) store(to + v * kLanes, load<Floats>(to + v * kLanes) + sums[v]);
    });
    worker_.wait();
  }

  // A panel of `weight` holds half a panel of gates and the same columns of the other branch.
  void activate(const Inputs& in, const Matrix& weight, const Matrix& then) {
    constexpr int kGates = kVectors / 2;
    product<Type>(worker_, in, weight, then, [&](int64_t i, int64_t column, const Sums& sums) {
      float* to = activated(i) + column / 2;
      for (int v = 0; v < kGates; v++) {
        const Floats gate = sums[v], share = splat(1.0f) / (splat(1.0f) + exponential(-gate));
        store(to + v * kLanes, gate * share * sums[v + kGates]);
      }
    });
    worker_.wait();
  }

  // --- attention ----------------------------------------------------------------------------------------------------

  // Where line `i` lies: its slot in the cache of its row, and its place in the text.
  int64_t slot(int64_t i, int64_t* position) const {
    const int64_t row = block_.owner[i], held = call_.held[row];
    if (i < news_) {
      const int64_t at = held + i - block_.first[row];
      *position = call_.offset[row] + at;
      return at;
    }
    const int64_t place = (i - news_) % m_.places;
    *position = call_.anchor[row] + place;
    return held + call_.counts[row] + place;
  }

  Element* entry(int64_t buffer, int64_t row, int64_t slot) const {
    return static_cast<Element*>(call_.buffers[buffer]) + (row * call_.slots + slot) * m_.kv_heads * m_.head_dim;
  }

  // Norm and turn a line's queries and keys, and put its keys and values into the cache.
  void place(const BlockLayer& layer, int64_t index, int64_t i) const {
    int64_t position;
    const int64_t at = slot(i, &position), row = block_.owner[i], dim = m_.head_dim;
    float* line = projected(i);
    for (int64_t head = i < news_ ? m_.heads : 0; head < m_.heads + m_.kv_heads; head++) {
      const float* norm = head < m_.heads ? layer.query_norm : layer.key_norm;
      if (norm) normalise(line + head * dim, norm, line + head * dim, dim);
      turn(line + head * dim, call_.turns + position * dim);
    }
    const float* keys = line + m_.heads * dim;
    Element* to[2] = {entry(2 * index, row, at), entry(2 * index + 1, row, at)};
    for (int64_t k = 0; k < m_.kv_heads * dim; k++) {
      to[0][k] = Type::narrow_one(keys[k]);
      to[1][k] = Type::narrow_one(keys[m_.kv_heads * dim + k]);
    }
  }

  void turn(float* head, const float* by) const {
    const int64_t half = m_.head_dim / 2;
    for (int64_t d = 0; d < half; d++) {
      const float first = head[d], second = head[d + half], cosine = by[d], sine = by[half + d];
      head[d] = first * cosine - second * sine;
      head[d + half] = second * cosine + first * sine;
    }
  }

  // The queries of one place that share a key head, over the features and places that it sees.
  void attend(int64_t index, int64_t which, int64_t kv) const {
    const int64_t row = which / m_.places, place = which % m_.places, group = m_.heads / m_.kv_heads, dim = m_.head_dim;
    const int64_t end = call_.held[row] + call_.counts[row], last = end + (m_.is_causal ? place + 1 : m_.places);
    const int64_t far = m_.window ? call_.anchor[row] + place - m_.window + 1 - call_.offset[row] : 0;
    const int64_t first = std::min(end, std::max<int64_t>(0, far)), count = last - first, stride = m_.kv_heads * dim;
    const Element* keys = entry(2 * index, row, first) + kv * dim;
    const Element* values = entry(2 * index + 1, row, first) + kv * dim;
    const float* query = projected(news_ + which) + kv * group * dim;
    float* scores = block_.scores.as<float>() + worker_.thread * block_.thread_scores;
    for (int64_t q = 0; q < group; q++) {
      weigh(query + q * dim, keys, count, stride, scores);
      gather(scores, values, count, stride, attended(which) + (kv * group + q) * dim);
    }
  }

  // The softmax of a query's scores against `count` keys, not yet divided by its sum, which is returned in `scores[count]`.
  void weigh(const float* query, const Element* keys, int64_t count, int64_t stride, float* scores) const {
    const int64_t dim = m_.head_dim, whole = dim / kLanes * kLanes;
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(dim));
    for (int64_t at = 0; at < count; at += kLanes) {
      alignas(64) Floats sums[kLanes];
      for (int i = 0; i < kLanes; i++) {
        const Element* key = keys + std::min(at + i, count - 1) * stride;
        Floats sum{};
        for (int64_t d = 0; d < whole; d += kLanes) sum = fma(load<Floats>(query + d), Type::read(key + d), sum);
        for (int64_t d = whole; d < dim; d++) sum[0] += query[d] * Type::read_one(key[d]);
        sums[i] = sum;
      }
      store(scores + at, sum_each(sums) * splat(scale));
    }
    float top = scores[0], total = 0.0f;
    for (int64_t i = 1; i < count; i++) top = std::max(top, scores[i]);
    for (int64_t at = 0; at < count; at += kLanes) store(scores + at, exponential(load<Floats>(scores + at) - splat(top)));
    for (int64_t i = 0; i < count; i++) total += scores[i];
    scores[count] = total;
  }

  // The sum of the lanes of each vector.
  static Floats sum_each(Floats (&sums)[kLanes]) {
#if defined(__AVX512F__)
    Words lanes[16];
    for (int i = 0; i < 16; i++) lanes[i] = bits<Words>(sums[i]);
    transpose(lanes);
    for (int width = 8; width > 0; width /= 2) {
      for (int i = 0; i < width; i++) lanes[i] = bits<Words>(bits<Floats>(lanes[i]) + bits<Floats>(lanes[i + width]));
    }
    return bits<Floats>(lanes[0]);
#else
    Floats found;
    for (int i = 0; i < kLanes; i++) found[i] = sum_lanes(sums[i]);
    return found;
#endif
  }

  void gather(const float* scores, const Element* values, int64_t count, int64_t stride, float* to) const {
    const int64_t dim = m_.head_dim, whole = dim / kLanes * kLanes;
    const float share = 1.0f / scores[count];
    for (int64_t d = 0; d < whole; d += kLanes) {
      Floats sum{};
      for (int64_t i = 0; i < count; i++) sum = fma(splat(scores[i]), Type::read(values + i * stride + d), sum);
      store(to + d, sum * splat(share));
    }
    for (int64_t d = whole; d < dim; d++) {
      float sum = 0.0f;
      for (int64_t i = 0; i < count; i++) sum += scores[i] * Type::read_one(values[i * stride + d]);
      to[d] = sum * share;
    }
  }

  // --- laws ---------------------------------------------------------------------------------------------------------

  void answer() {
    const Matrix head = matrix(m_.head, m_.hidden, m_.vocab);
    const int64_t width = m_.hidden + m_.vocab, behind = m_.places - m_.depth;
    auto* made = static_cast<Element*>(call_.made);
    const Inputs in = lines(call_.rows * m_.depth, m_.hidden, head, [&](int64_t i, float* to) {
      normalise(residual(i / m_.depth * m_.places + behind + i % m_.depth), m_.final_norm, to, m_.hidden);
      for (int64_t k = 0; k < m_.hidden; k++) made[i * width + k] = Type::narrow_one(to[k]);
    });
    product<Type>(worker_, in, head, matrix(m_.fuse, m_.states, m_.hidden), [&](int64_t i, int64_t column, const Sums& sums) {
      alignas(64) float found[kColumns];
      for (int v = 0; v < kVectors; v++) store(found + v * kLanes, sums[v]);
      const int64_t most = std::min<int64_t>(kColumns, m_.vocab - column);
      for (int64_t k = 0; k < most; k++) made[i * width + m_.hidden + column + k] = Type::narrow_one(found[k]);
    });
    worker_.wait();
  }

  BlockDrafter& block_;
  const BlockView& m_;
  const BlockCall& call_;
  Worker& worker_;
  const int64_t news_, places_, hidden_, projected_, attended_, activated_;  // lines of each kind, and widths of rows
};

template <class Type>
void pass(BlockDrafter& block, const BlockCall& call) {
  BlockPass<Type>::reserve(block, call);
  in_parallel(call.threads, [&](int thread, int threads) {
    Worker worker(block.team, thread, threads);
    BlockPass<Type>(block, call, worker).run();
  });
}

}  // namespace outpace

extern "C" {

void* outpace_block_new(const outpace::BlockView* view) { return new (std::nothrow) outpace::BlockDrafter(*view); }

void outpace_block_delete(void* block) { delete static_cast<outpace::BlockDrafter*>(block); }

int64_t outpace_block(void* handle, const outpace::BlockCall* call) {
  auto& block = *static_cast<outpace::BlockDrafter*>(handle);
  try {
    if (block.model.is_bfloat16) outpace::pass<outpace::Bfloat16>(block, *call);
    else outpace::pass<outpace::Float32>(block, *call);
  } catch (const std::bad_alloc&) {
    return outpace::kNoMemory;
  }
  return outpace::kOk;
}

}  // extern "C"
