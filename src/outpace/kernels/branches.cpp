// The best tree over laws of places ahead, in one call: the tree of `draft_best` (see draft/grow.py), whose rules these are.
//
// A place's law is its logits and, where the drafter knows it, what the token before it adds: a product of two matrices of
// low rank. The noise of a draw is the target's own, so that the likeliest branch is what the target would draw.

#include <cmath>
#include <limits>
#include <vector>

#include "select.h"
#include "simd.h"

namespace outpace {

// What Python fills in; every field is 8 bytes. Mirrored by the ctypes structure of `branches.py`.
struct BranchCall {
  int64_t is_bfloat16, by_slot;
  int64_t rows, places, vocab, stride;  // numbers between the laws of two places
  int64_t budget, width, rank;
  double floor, min_gain, spread, temperature;
  const void* laws;        // [rows, places, stride], of which `vocab` logits are read
  const float* shorts;     // [vocab, rank] short vectors of tokens, or null with rank 0
  const float* adds;       // [rank, vocab] what they add
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

// One row's tree.
template <class Type>
class Branches {
  using Element = typename Type::Element;

 public:
  Branches(const BranchCall& call, int64_t row)
      : call_(call), row_(row), padded_(round_up(call.vocab, kPadding)), level_(padded_), law_(padded_) {}

  void grow() {
    const int64_t limit = std::min(call_.levels[row_], call_.places);
    std::vector<int64_t> frontier{-1};
    double reached = 0.0;
    for (int64_t level = 0; level < limit && !frontier.empty(); level++) {
      read_level(level);
      std::vector<Node> found;
      const bool is_full = static_cast<int64_t>(tree_.size()) == call_.budget;
      const double last = is_full ? least() : kNever;
      for (int64_t node : frontier) add_children(node, last, found);
      keep_best(found, call_.width ? call_.width : call_.budget, 0);
      const int64_t before = tree_.size();
      tree_.insert(tree_.end(), found.begin(), found.end());
      const std::vector<bool> is_new = keep_best(tree_, call_.budget, before);
      const double now = sum();
      frontier.clear();
      if (!(now - reached > call_.min_gain)) break;
      reached = now;
      const double worst = static_cast<int64_t>(tree_.size()) == call_.budget ? least() : kNever;
      for (size_t i = 0; i < tree_.size(); i++) {
        if (is_new[i] && tree_[i].score > worst) frontier.push_back(i);
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

  // The logits of a place, with the noise of the draw there.
  void read_level(int64_t level) {
    const Element* from = static_cast<const Element*>(call_.laws) + (row_ * call_.places + level) * call_.stride;
    for (int64_t k = 0; k < call_.vocab; k++) level_[k] = Type::read_one(from[k]);
    std::fill(level_.begin() + call_.vocab, level_.end(), -INFINITY);
    if (!call_.keys) return;
    const uint64_t key = call_.keys[row_ * call_.places + level];
    const float temperature = static_cast<float>(call_.temperature);
    for (int64_t k = 0; k < call_.vocab; k++) {
      const uint64_t id = call_.ids ? call_.ids[k] : k;
      const double drawn = (static_cast<double>(static_cast<int64_t>(mix(key + id * kGolden) >> 12)) + 0.5) * 0x1p-52;
      level_[k] += static_cast<float>(-logarithm(-logarithm(drawn))) * temperature;
    }
  }

  // The law after a node, as logarithms up to what is returned.
  double law_after(int64_t node) {
    const int64_t rank = call_.rank;
    const float* before = node < 0 ? call_.anchors + row_ * rank : call_.shorts + tree_[node].column * rank;
    const Floats spread = splat(static_cast<float>(call_.spread));
    Floats most = splat(-INFINITY);
    for (int64_t k = 0; k < padded_; k += kPadding) {
      constexpr int kParts = kPadding / kLanes;
      Floats sums[kParts];
      for (int v = 0; v < kParts; v++) sums[v] = Floats{};
      for (int64_t r = 0; r < rank; r++) {
        const Floats weight = splat(before[r]);
        for (int v = 0; v < kParts; v++) {
          sums[v] = fma(weight, load<Floats>(call_.adds + r * padded_ + k + v * kLanes), sums[v]);
        }
      }
      for (int v = 0; v < kParts; v++) {
        const Floats value = (load<Floats>(&level_[k + v * kLanes]) + sums[v]) / spread;
        store(&law_[k + v * kLanes], value);
        most = value > most ? value : most;
      }
    }
    float top = -INFINITY;
    for (int lane = 0; lane < kLanes; lane++) top = std::max(top, most[lane]);
    Floats total{};
    for (int64_t k = 0; k < padded_; k += kLanes) total += exponential(load<Floats>(&law_[k]) - splat(top));
    top_ = top;
    return std::log(static_cast<double>(sum_lanes(total)));
  }

  // The likeliest columns of the law, the likeliest first; of equals the earlier.
  void likeliest(int64_t count) {
    columns_.clear();
    const Selector<Float32> selector(law_.data(), call_.vocab);
    const float bound = count <= kGroups * kLanes ? selector.bound(0, count) : -INFINITY;
    if (std::isnan(bound)) return;
    columns_.resize(call_.vocab);
    values_.resize(call_.vocab);
    columns_.resize(selector.take(0, bound, call_.vocab, values_.data(), columns_.data()));
    count = std::min<int64_t>(count, columns_.size());
    std::partial_sort(columns_.begin(), columns_.begin() + count, columns_.end(), [&](int64_t a, int64_t b) {
      return law_[a] > law_[b] || (law_[a] == law_[b] && a < b);
    });
    columns_.resize(count);
  }

  // What may still come among the best of a node's likeliest children; `last` is the key that has to be surpassed.
  void add_children(int64_t node, double last, std::vector<Node>& found) {
    const double base = node < 0 ? 0.0 : tree_[node].score, total = law_after(node);
    likeliest(std::min(call_.budget, call_.vocab));
    double taken = 0.0;
    for (int64_t column : columns_) {
      const double value = static_cast<float>(law_[column] - top_ - static_cast<float>(total)), score = base + value;
      double key = score;
      if (call_.by_slot) {
        key = std::max(base + std::log(std::max(1.0 - taken, 0.0)), score);
        taken += std::exp(value);
      }
      if (!(key > last)) break;
      found.push_back({column, node, score, key});
    }
  }

  // Keep the best nodes, of equals the earlier, in their order if `first` tells where new ones begin, else the best first;
  // returns which of those kept are new.
  std::vector<bool> keep_best(std::vector<Node>& nodes, int64_t count, int64_t first) {
    std::vector<int64_t> order;
    const bool is_tree = &nodes == &tree_;
    for (size_t i = 0; i < nodes.size(); i++) {
      if (nodes[i].key > kNever && !(is_tree && std::exp(nodes[i].key) < call_.floor)) order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return nodes[a].key > nodes[b].key; });
    if (static_cast<int64_t>(order.size()) > count) order.resize(count);
    if (is_tree) std::sort(order.begin(), order.end());
    std::vector<Node> kept;
    std::vector<bool> is_new;
    std::vector<int64_t> place(nodes.size(), -1);
    for (int64_t i : order) {
      place[i] = kept.size();
      kept.push_back(nodes[i]);
      if (is_tree && nodes[i].parent >= 0) kept.back().parent = place[nodes[i].parent];
      is_new.push_back(i >= first);
    }
    nodes = std::move(kept);
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
  std::vector<float> level_, law_, values_;
  std::vector<int64_t> columns_;
  std::vector<Node> tree_;
  float top_ = 0.0f;
};

template <class Type>
void grow_all(const BranchCall& call) {
  for (int64_t row = 0; row < call.rows; row++) Branches<Type>(call, row).grow();
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
