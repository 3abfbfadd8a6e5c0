// The best tree over laws of places ahead, in one call: the tree of `draft_best` (see draft/grow.py), whose rules these are.
//
// A place's law is its logits and, where the drafter knows it, what the token before it adds: a product of two matrices of
// low rank. The noise of a draw is the target's own, so that the likeliest branch is what the target would draw.

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "select.h"
#include "simd.h"

namespace outpace {

// What Python fills in; every field is 8 bytes. Mirrored by the ctypes structure of `branches.py`.
struct BranchCall {
  int64_t is_bfloat16, by_slot;
  int64_t rows, places, vocab, stride;  // numbers between the laws of two places
  int64_t budget, width, rank;
  double min_gain, spread, temperature;
  const double* floors;    // [budget] the least probability of the likeliest node, of the next, ...
  const void* laws;        // [rows, places, stride], of which `vocab` logits are read
  const float* shorts;     // [vocab, rank] short vectors of tokens, or null with rank 0
  const void* adds;        // [padded vocab / 32, rank, 32] what they add
  const float* anchors;    // [rows, rank] short vectors of the last tokens
  const int64_t* ids;      // [vocab] tokens of the columns, or null = these themselves
  const int64_t* levels;   // [rows] most levels
  const int64_t* keys;     // [rows, places] of the noise, or null = none
  int64_t *tokens, *parents, *lengths;  // [rows, budget], and [rows]
  double* scores;          // [rows, budget]
};

constexpr double kNever = -std::numeric_limits<double>::infinity();
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15;  // as in sampling/noise.py

inline uint64_t mix(uint64_t bits) {
  bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9;
  bits = (bits ^ bits >> 27) * 0x94D049BB133111EB;
  return bits ^ bits >> 31;
}

// The natural logarithm of a positive normal number, to some 1e-15 of its size; written so that loops over it are vectors.
inline double logarithm(double x) {
  const uint64_t word = bits<uint64_t>(x);
  const uint64_t above = (word + 0x00095F619980C433) >> 52;  // exponent, one more for fractions beyond the root of 2
  const double mantissa = bits<double>(word - ((above - 1023) << 52));
  const double ratio = (mantissa - 1.0) / (mantissa + 1.0), square = ratio * ratio;
  double series = 1.0 / 21.0;
  for (double odd : {19.0, 17.0, 15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0}) series = series * square + 1.0 / odd;
  series = series * square + 1.0;
  return static_cast<double>(static_cast<int64_t>(above) - 1023) * 0.6931471805599453 + 2.0 * ratio * series;
}

struct Node {
  int64_t column, parent;
  double score, key;
};

constexpr int kTogether = 4;  // nodes whose laws are made in one look at what tokens add

// Room for the laws of a row, kept from call to call.
struct Laws {
  std::vector<float> level, law, values;
  std::vector<int64_t> places;

  void reserve(int64_t vocab, int64_t padded) {
    level.resize(padded);
    law.resize(kTogether * padded);
    values.resize(vocab);
    places.resize(vocab);
  }
};

// One row's tree.
template <class Type>
class Branches {
  using Element = typename Type::Element;

 public:
  Branches(const BranchCall& call, int64_t row, Laws& laws)
      : call_(call), row_(row), padded_(round_up(call.vocab, kPadding)), level_(laws.level), values_(laws.values),
        places_(laws.places), law_(laws.law.data()) {}

  void grow() {
    const int64_t limit = std::min(call_.levels[row_], call_.places);
    std::vector<int64_t> frontier{-1};
    double reached = 0.0;
    for (int64_t level = 0; level < limit && !frontier.empty(); level++) {
      read_level(level);
      std::vector<Node> found;
      const bool is_full = static_cast<int64_t>(tree_.size()) == call_.budget;
      const double last = is_full ? least() : kNever;
      for (size_t i = 0; i < frontier.size(); i += kTogether) {
        const int64_t count = std::min<int64_t>(kTogether, frontier.size() - i);
        make_laws<kTogether>(count, &frontier[i]);
        for (int64_t j = 0; j < count; j++) add_children(frontier[i + j], law_ + j * padded_, last, found);
      }
      keep_first(found, call_.width ? call_.width : call_.budget);
      const std::vector<bool> is_new = join(found);
      const double now = sum();
      frontier.clear();
      if (!(now - reached > call_.min_gain)) break;
      reached = now;
      const double worst = static_cast<int64_t>(tree_.size()) == call_.budget ? least() : kNever;
      for (int64_t i = 0; i < static_cast<int64_t>(tree_.size()); i++) {
        if (is_new[i] && tree_[i].score > worst && (call_.by_slot || has_room(i))) frontier.push_back(i);
      }
    }
    write();
  }

 private:
  double least() const {
    double found = std::numeric_limits<double>::infinity();
    for (const Node& node : tree_) found = std::min(found, node.key);
    return found;
  }

  double sum() const {
    double found = 0.0;
    for (const Node& node : tree_) found += std::exp(node.score);
    return found;
  }

  // How many nodes are likelier than a node, -1 of the root.
  int64_t rank_of(int64_t node) const { return node < 0 ? -1 : ranks_[node]; }

  // Whether a child of a node could be above the floor of its rank.
  bool has_room(int64_t node) const {
    return ranks_[node] + 1 < call_.budget && std::exp(tree_[node].score) >= call_.floors[ranks_[node] + 1];
  }

  // The logits of a place, with the noise of the draw there.
  void read_level(int64_t level) {
    const Element* from = static_cast<const Element*>(call_.laws) + (row_ * call_.places + level) * call_.stride;
    int64_t k = 0;
    for (; k + kLanes <= call_.vocab; k += kLanes) store(&level_[k], Type::read(from + k));
    for (; k < call_.vocab; k++) level_[k] = Type::read_one(from[k]);
    std::fill(level_.begin() + call_.vocab, level_.end(), -INFINITY);
    if (!call_.keys) return;
    const uint64_t key = call_.keys[row_ * call_.places + level];
    const float temperature = static_cast<float>(call_.temperature);
    for (k = 0; k < call_.vocab; k++) {
      const uint64_t id = call_.ids ? call_.ids[k] : k;
      const double drawn = (static_cast<double>(static_cast<int64_t>(mix(key + id * kGolden) >> 12)) + 0.5) * 0x1p-52;
      level_[k] += static_cast<float>(-logarithm(-logarithm(drawn))) * temperature;
    }
  }

  template <int kMost>
  void make_laws(int64_t count, const int64_t* nodes) {
    if (count == kMost) return laws_after<kMost>(nodes);
    if constexpr (kMost > 1) make_laws<kMost - 1>(count, nodes);
  }

  // The laws after some nodes, as logarithms up to a constant.
  template <int kCount>
  void laws_after(const int64_t* nodes) {
    constexpr int kParts = kPadding / kLanes;
    const int64_t rank = call_.rank;
    const float* before[kCount];
    for (int i = 0; i < kCount; i++) {
      before[i] = nodes[i] < 0 ? call_.anchors + row_ * rank : call_.shorts + tree_[nodes[i]].column * rank;
    }
    const Floats scale = splat(1.0f / static_cast<float>(call_.spread));
    for (int64_t k = 0; k < padded_; k += kPadding) {
      Floats sums[kCount][kParts] = {};
      const Element* adds = static_cast<const Element*>(call_.adds) + k * rank;
      for (int64_t r = 0; r < rank; r++, adds += kPadding) {
        Floats more[kParts];
        for (int v = 0; v < kParts; v++) more[v] = Type::read(adds + v * kLanes);
#pragma GCC unroll 4
        for (int i = 0; i < kCount; i++) {
          for (int v = 0; v < kParts; v++) sums[i][v] = fma(splat(before[i][r]), more[v], sums[i][v]);
        }
      }
      for (int i = 0; i < kCount; i++) {
        for (int v = 0; v < kParts; v++) {
          const int64_t at = k + v * kLanes;
          store(law_ + i * padded_ + at, (load<Floats>(&level_[at]) + sums[i][v]) * scale);
        }
      }
    }
  }

  // The logarithm of the sum of a law, and its largest value.
  std::pair<double, float> total_of(const float* law) const {
    Floats most = splat(-INFINITY), total{};
    for (int64_t k = 0; k < padded_; k += kLanes) {
      const Floats value = load<Floats>(law + k);
      most = value > most ? value : most;
    }
    float top = -INFINITY;
    for (int lane = 0; lane < kLanes; lane++) top = std::max(top, most[lane]);
    for (int64_t k = 0; k < padded_; k += kLanes) total += exponential(load<Floats>(law + k) - splat(top));
    return {std::log(static_cast<double>(sum_lanes(total))), top};
  }

  // The likeliest columns of the law, of at least a value, the likeliest first; of equals the earlier.
  void likeliest(const float* law, int64_t count, float least) {
    columns_.clear();
    const Selector<Float32> selector(law, call_.vocab);
    const float bound = count <= kGroups * kLanes ? selector.bound(0, count) : -INFINITY;
    if (std::isnan(bound)) return;
    least = least > bound ? least : bound;
    const int64_t found = selector.take(0, least, call_.vocab, values_.data(), places_.data());
    count = std::min(count, found);
    const auto end = places_.begin() + found;
    std::partial_sort(places_.begin(), places_.begin() + count, end, [&](int64_t a, int64_t b) {
      return law[a] > law[b] || (law[a] == law[b] && a < b);
    });
    columns_.assign(places_.begin(), places_.begin() + count);
  }

  // What may still come among the best of a node's likeliest children; `last` is the key that has to be surpassed.
  void add_children(int64_t node, const float* law, double last, std::vector<Node>& found) {
    const double base = node < 0 ? 0.0 : tree_[node].score;
    const auto [total, top] = total_of(law);
    // A child stands behind its parent, and has to be above the floor there; a little slack for rounding.
    const double need = std::max(last, std::log(call_.floors[std::min(rank_of(node) + 1, call_.budget - 1)]));
    const double least = call_.by_slot ? kNever : need - base + total + top - 1e-3;
    likeliest(law, std::min(call_.budget, call_.vocab), static_cast<float>(least));
    double taken = 0.0;
    for (int64_t column : columns_) {
      const double value = static_cast<float>(law[column] - top - static_cast<float>(total)), score = base + value;
      double key = score;
      if (call_.by_slot) {
        key = std::max(base + std::log(std::max(1.0 - taken, 0.0)), score);
        taken += std::exp(value);
      }
      if (!(key > last)) break;
      found.push_back({column, node, score, key});
    }
  }

  // Keep the best nodes, the best first; of equals the earlier.
  static void keep_first(std::vector<Node>& nodes, int64_t count) {
    std::stable_sort(nodes.begin(), nodes.end(), [](const Node& a, const Node& b) { return a.key > b.key; });
    if (static_cast<int64_t>(nodes.size()) > count) nodes.resize(count);
  }

  // Join nodes to the tree, and keep the best of all, in their order; returns which of those kept are new.
  std::vector<bool> join(const std::vector<Node>& found) {
    const size_t before = tree_.size();
    tree_.insert(tree_.end(), found.begin(), found.end());
    std::vector<int64_t> order(tree_.size()), place(tree_.size(), -1);
    for (size_t i = 0; i < order.size(); i++) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return tree_[a].key > tree_[b].key; });
    size_t count = 0;
    while (count < order.size() && static_cast<int64_t>(count) < call_.budget &&
           std::exp(tree_[order[count]].key) >= call_.floors[count]) {
      count++;
    }
    order.resize(count);
    std::vector<int64_t> rank(tree_.size());
    for (size_t r = 0; r < count; r++) rank[order[r]] = r;
    std::sort(order.begin(), order.end());
    std::vector<Node> kept;
    std::vector<bool> is_new;
    ranks_.clear();
    for (int64_t i : order) {
      place[i] = kept.size();
      ranks_.push_back(rank[i]);
      kept.push_back(tree_[i]);
      if (tree_[i].parent >= 0) kept.back().parent = place[tree_[i].parent];
      is_new.push_back(i >= static_cast<int64_t>(before));
    }
    tree_ = std::move(kept);
    return is_new;
  }

  void write() const {
    const int64_t at = row_ * call_.budget;
    call_.lengths[row_] = tree_.size();
    for (int64_t i = 0; i < call_.budget; i++) {
      const bool is_node = i < static_cast<int64_t>(tree_.size());
      const int64_t column = is_node ? tree_[i].column : 0;
      call_.tokens[at + i] = call_.ids ? call_.ids[column] : column;
      call_.parents[at + i] = is_node ? tree_[i].parent : -1;
      call_.scores[at + i] = is_node ? tree_[i].score : kNever;
    }
  }

  const BranchCall& call_;
  const int64_t row_, padded_;
  std::vector<float>&level_, &values_;
  std::vector<int64_t>& places_;
  float* law_;  // [kTogether, padded]
  std::vector<int64_t> columns_, ranks_;
  std::vector<Node> tree_;
};

template <class Type>
void grow_all(const BranchCall& call) {
  static thread_local Laws laws;
  laws.reserve(call.vocab, round_up(call.vocab, kPadding));
  for (int64_t row = 0; row < call.rows; row++) Branches<Type>(call, row, laws).grow();
}

}  // namespace outpace

extern "C" int64_t outpace_branches(const outpace::BranchCall* call) {
  try {
    if (call->is_bfloat16) outpace::grow_all<outpace::Bfloat16>(*call);
    else outpace::grow_all<outpace::Float32>(*call);
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
