// What canvas rules ask of laws, in one look while a row of logits lies in the nearest cache: the likeliest token, the two
// greatest logits, and the sums that confidence and entropy are made of. A law's figures depend on its own logits alone.

#include <algorithm>
#include <cmath>

#include "select.h"
#include "simd.h"

namespace outpace {

// What Python fills in; every field is 8 bytes. Mirrored by the ctypes structure of `laws.py`.
struct LawCall {
  int64_t is_bfloat16, count, vocab;
  const void* logits;  // [count, vocab]
  int64_t* tokens;     // [count] the likeliest, ties by lowest id; -1 where the law is none
  float* found;        // [4, count] greatest logit, next one, sum of e^(x - greatest), sum of that times (x - greatest)
};

template <class Type>
class Look {
  using Element = typename Type::Element;

 public:
  Look(const Element* from, int64_t vocab) : from_(from), whole_(vocab / kLanes * kLanes) {
    Element last[kLanes];
    std::fill(last, last + kLanes, Element{});
    std::copy(from + whole_, from + vocab, last);
    tail_ = Type::read(last);
    for (int64_t i = vocab - whole_; i < kLanes; i++) tail_[i] = -INFINITY;
  }

  void measure(int64_t* token, float* top, float* next, float* sum, float* moment) const {
    Floats first = splat(-INFINITY), second = splat(-INFINITY);
    Ints is_none{};
    each([&](Floats x, int64_t) {
      const Floats lower = x < first ? x : first;
      second = second < lower ? lower : second;
      first = first < x ? x : first;
      is_none |= x != x;
    });
    float one[kLanes], two[kLanes];
    int32_t none[kLanes], any = 0;
    store(one, first);
    store(two, second);
    store(none, is_none);
    const int lane = static_cast<int>(std::max_element(one, one + kLanes) - one);
    *top = one[lane], *next = two[lane];
    for (int i = 0; i < kLanes; i++) {
      any |= none[i];
      if (i != lane) *next = std::max(*next, one[i]);
    }
    *token = -1, *sum = 1, *moment = 0;
    if (any || !std::isfinite(*top)) return;
    Floats mass{}, spread{};
    each([&](Floats x, int64_t at) {
      const Floats below = x - splat(*top), part = exponential(below);
      mass += part;
      spread += part * (below < splat(-100.0f) ? splat(-100.0f) : below);  // -inf weighs 0, and 0 * -inf is no number
      const uint32_t equal = *token < 0 ? lanes_from(x, *top) : 0;
      if (equal) *token = at + __builtin_ctz(equal);
    });
    *sum = sum_lanes(mass), *moment = sum_lanes(spread);
  }

 private:
  template <class Part>
  void each(const Part& part) const {
    for (int64_t i = 0; i < whole_; i += kLanes) part(Type::read(from_ + i), i);
    part(tail_, whole_);
  }

  const Element* from_;
  int64_t whole_;
  Floats tail_;
};

template <class Type>
void measure_all(const LawCall& call) {
  const auto* logits = static_cast<const typename Type::Element*>(call.logits);
  const int64_t count = call.count;
  for (int64_t at = 0; at < count; at++) {
    float* found = call.found + at;
    Look<Type>(logits + at * call.vocab, call.vocab)
        .measure(call.tokens + at, found, found + count, found + 2 * count, found + 3 * count);
  }
}

}  // namespace outpace

extern "C" void outpace_laws(const outpace::LawCall* call) {
  if (call->is_bfloat16) outpace::measure_all<outpace::Bfloat16>(*call);
  else outpace::measure_all<outpace::Float32>(*call);
}
