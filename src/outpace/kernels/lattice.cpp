// Sums and maxima over the paths of lattices: the programs of models/nar/lattice.py, one row after another.
//
// A row's tables fit the first caches, so that each pass over its links costs what the exponentials cost. Lanes are
// neighbouring places; buffers begin `reach` places before the first one and end in padding, so that no loop has a
// tail and no place needs a test.

#include <cmath>
#include <cstdint>
#include <new>
#include <vector>

#include "simd.h"

namespace outpace {

// What Python fills in; every field is 8 bytes. Mirrored by the ctypes structure of `lattice.py`.
struct LatticeCall {
  int64_t rows, tokens, places, reach;  // `places` is a multiple of kPadding
  const float* emissions;   // [rows, tokens, places]
  const float* into;        // [rows, reach, places] links by where they lead, -1e30 = none
  const int64_t* sizes;     // [rows] real places
  const int64_t* lengths;   // [rows] real tokens
  float* reached;           // [rows, tokens + 1, places] log-probabilities of standing there
  float* found;             // [rows] of the whole
  const float* given;       // [rows] what flows back; null on the way there
  float* emission_grad;     // [rows, tokens, places], zeros
  float* into_grad;         // [rows, reach, places], zeros
  int64_t* path;            // [rows, tokens] of the likeliest path; null = sums are asked for
};

constexpr float kNone = -1e30f;

class Lattice {
 public:
  Lattice(const LatticeCall& call, int64_t row)
      : call_(call), size_(call.sizes[row]), length_(call.lengths[row]),
        emissions_(call.emissions + row * call.tokens * call.places), into_(call.into + row * call.reach * call.places),
        reached_(call.reached + row * (call.tokens + 1) * call.places), row_(row),
        before_(call.reach + call.places, kNone), flow_(call.reach + call.places, 0.0f), after_(call.places),
        moves_(call.path ? call.tokens * call.places : 0) {}

  void go() {
    float* start = reached_;
    std::fill(start, start + call_.places, kNone);
    start[0] = 0.0f;
    for (int64_t token = 0; token < length_; token++) {
      take(token);
      for (int64_t at = 0; at < size_; at += kLanes) step(token, at);
      for (int64_t at = round_up(size_, kLanes); at < call_.places; at++) level(token + 1)[at] = kNone;
    }
    take(length_);
    call_.found[row_] = call_.path ? walk_back() : total_at(size_ - 1);
  }

  void back() {
    const float given = call_.given[row_], found = call_.found[row_];
    if (!(found > -1e20f)) return;
    // 1) What flows into the end, by the place that it comes from.
    take(length_);
    const int64_t end = size_ - 1;
    for (int64_t m = 0; m < call_.reach; m++) {
      const float share = std::exp(source(end, m) + link(m, end) - found) * given;
      grad(m)[end] += share;
      flow_[call_.reach + end - 1 - m] += share;
    }
    // 2) Token by token: it passed what the places say, and came from the places before them.
    for (int64_t token = length_ - 1; token >= 0; token--) {
      float* said = call_.emission_grad + (row_ * call_.tokens + token) * call_.places;
      std::copy(flow_.begin() + call_.reach, flow_.end(), said);
      std::copy(flow_.begin() + call_.reach, flow_.end(), after_.begin());
      std::fill(flow_.begin(), flow_.end(), 0.0f);
      take(token);
      for (int64_t at = 0; at < size_; at += kLanes) spread(token, at);
    }
  }

 private:
  float* level(int64_t token) const { return reached_ + token * call_.places; }
  float* grad(int64_t m) const { return call_.into_grad + (row_ * call_.reach + m) * call_.places; }
  float link(int64_t m, int64_t at) const { return into_[m * call_.places + at]; }
  const float* emission(int64_t token) const { return emissions_ + token * call_.places; }

  // What was reached before a token, behind `reach` places that nothing reaches.
  void take(int64_t token) {
    const float* from = level(token);
    std::copy(from, from + call_.places, before_.begin() + call_.reach);
  }

  float source(int64_t at, int64_t m) const { return before_[call_.reach + at - 1 - m]; }

  Floats source_lanes(int64_t at, int64_t m) const { return load<Floats>(&before_[call_.reach + at - 1 - m]); }

  void step(int64_t token, int64_t at) {
    Floats most = splat(4 * kNone);
    Ints move{};
    for (int64_t m = 0; m < call_.reach; m++) {
      const Floats value = source_lanes(at, m) + load<Floats>(into_ + m * call_.places + at);
      if (call_.path) move = value > most ? Ints{} + static_cast<int32_t>(m) : move;
      most = value > most ? value : most;
    }
    Floats result = most;
    if (call_.path) {
      store(&moves_[token * call_.places + at], move);
    } else {
      Floats sum{};
      for (int64_t m = 0; m < call_.reach; m++) {
        sum += exponential(source_lanes(at, m) + load<Floats>(into_ + m * call_.places + at) - most);
      }
      for (int lane = 0; lane < kLanes; lane++) result[lane] += std::log(sum[lane]);
    }
    result += load<Floats>(emission(token) + at);
    const Floats least = splat(2 * kNone);
    store(level(token + 1) + at, result < least ? least : result);
  }

  float total_at(int64_t at) const {
    float most = 4 * kNone, sum = 0.0f;
    for (int64_t m = 0; m < call_.reach; m++) most = std::max(most, source(at, m) + link(m, at));
    for (int64_t m = 0; m < call_.reach; m++) sum += std::exp(source(at, m) + link(m, at) - most);
    return most + std::log(sum);
  }

  // Share out what flows into some places among those that it comes from.
  void spread(int64_t token, int64_t at) {
    const Floats flow = load<Floats>(&after_[at]);
    bool is_any = false;
    for (int lane = 0; lane < kLanes; lane++) is_any |= flow[lane] != 0.0f;
    if (!is_any) return;
    const Floats total = load<Floats>(level(token + 1) + at) - load<Floats>(emission(token) + at);
    for (int64_t m = 0; m < call_.reach; m++) {
      const Floats value = source_lanes(at, m) + load<Floats>(into_ + m * call_.places + at) - total;
      const Floats share = exponential(value) * flow;
      float* links = grad(m) + at;
      float* from = &flow_[call_.reach + at - 1 - m];
      store(links, load<Floats>(links) + share);
      store(from, load<Floats>(from) + share);
    }
  }

  float walk_back() {
    const int64_t end = size_ - 1;
    float most = 4 * kNone;
    int64_t move = 0;
    for (int64_t m = 0; m < call_.reach; m++) {
      const float value = source(end, m) + link(m, end);
      if (value > most) most = value, move = m;
    }
    int64_t at = end - 1 - move;
    for (int64_t token = length_ - 1; token >= 0 && most > -1e20f; token--) {
      call_.path[row_ * call_.tokens + token] = at;
      at -= 1 + moves_[token * call_.places + at];
    }
    return most;
  }

  const LatticeCall& call_;
  const int64_t size_, length_;
  const float *emissions_, *into_;
  float* reached_;
  const int64_t row_;
  std::vector<float> before_, flow_, after_;
  std::vector<int32_t> moves_;  // [tokens, places] which link a place was reached by
};

}  // namespace outpace

extern "C" int64_t outpace_lattice(const outpace::LatticeCall* call) {
  try {
    for (int64_t row = 0; row < call->rows; row++) {
      outpace::Lattice lattice(*call, row);
      if (call->given) lattice.back();
      else lattice.go();
    }
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}
