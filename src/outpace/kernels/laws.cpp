// What canvas rules ask of laws, in one look while a row of logits lies in the nearest cache: the likeliest token, the two
// greatest logits, and the sums that confidence and entropy are made of. A law's figures depend on its own logits alone.

#include <algorithm>
#include <cmath>

#include "select.h"
#include "simd.h"

namespace outpace {

// What Python fills in; every field is 8 bytes. Mirrored by the ctypes structure of `laws.py`.
struct LawCall {
  int64_t is_bfloat16, count, vocab, barred;  // a token, -1 = none
  void* logits;        // [count, vocab]; that of the barred token becomes -inf
  int64_t* tokens;     // [count] the likeliest, ties by lowest id; -1 where the law is none
  float* found;        // [4, count] greatest logit, next one, sum of e^(x - greatest), sum of that times (x - greatest)
};

constexpr int kAhead = 4;  // vectors that do not wait for each other

// The second one where either is no number. Named, because compilers make compares and moves of what vectors say.
#if defined(__AVX512F__)
inline Floats greater(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats lesser(Floats a, Floats b) { return _mm512_min_ps(a, b); }
#else
inline Floats greater(Floats a, Floats b) { return a > b ? a : b; }
inline Floats lesser(Floats a, Floats b) { return a < b ? a : b; }
#endif

// Two vectors of logits, in any order.
template <class Type>
inline void read_two(const typename Type::Element* from, Floats* two) {
  if constexpr (Type::kPerWord == 2) {
    Words both;
    memcpy(&both, from, sizeof both);
    two[0] = bits<Floats>(both << 16), two[1] = bits<Floats>(both & 0xffff0000u);
  } else {
    two[0] = Type::read(from), two[1] = Type::read(from + kLanes);
  }
}

// e^x of x from -87 to 0, to 2e-7: half the work of `exponential`, which also serves what lies outside. The polynomial
// is 1 at 0, and otherwise of least relative error between the halves of log(2), by Lawson's weighted least squares.
inline Floats decayed(Floats x) {
  const Floats shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer held in the low bits
  const Floats rounded = fma(x, splat(1.44269504f), shift);
  const Floats rest = fma(rounded - shift, splat(-0.693147181f), x);
  Floats series = splat(8.290272206e-3f);
  for (float term : {4.1898161173e-2f, 1.6667638719e-1f, 4.9999147654e-1f, 9.9999970198e-1f, 1.0f}) {
    series = fma(series, rest, splat(term));
  }
  return bits<Floats>(bits<Ints>(series) + (bits<Ints>(rounded) << 23));  // times 2^count, in the exponent's bits
}

template <class Type>
class Look {
  using Element = typename Type::Element;
  static constexpr int kLine = 64 / sizeof(Element);

 public:
  Look(const Element* from, int64_t vocab) : from_(from), whole_(vocab / kLanes * kLanes) {
    Element last[kLanes];
    std::fill(last, last + kLanes, Element{});
    std::copy(from + whole_, from + vocab, last);
    tail_ = Type::read(last);
    for (int64_t i = vocab - whole_; i < kLanes; i++) tail_[i] = -INFINITY;
  }

  void measure(int64_t* token, float* top, float* next, float* sum, float* moment) const {
    Floats first[kAhead], second[kAhead], mass[kAhead] = {}, spread[kAhead] = {};
    for (int i = 0; i < kAhead; i++) first[i] = second[i] = splat(-INFINITY);
    each([&](Floats x, int i) {
      second[i] = greater(lesser(x, first[i]), second[i]);
      first[i] = greater(x, first[i]);
    });
    for (int i = 1; i < kAhead; i++) {
      second[0] = greater(greater(second[0], second[i]), lesser(first[0], first[i]));
      first[0] = greater(first[0], first[i]);
    }
    float one[kLanes], two[kLanes];
    store(one, first[0]);
    store(two, second[0]);
    const int lane = static_cast<int>(std::max_element(one, one + kLanes) - one);
    *top = one[lane], *next = two[lane];
    for (int i = 0; i < kLanes; i++) {
      if (i != lane) *next = std::max(*next, one[i]);
    }
    *token = -1, *sum = 1, *moment = 0;
    if (!std::isfinite(*top)) return;
    const Floats greatest = splat(*top), lowest = splat(-87.0f);  // a token below, or forbidden, adds nothing to a float
    each<true>([&](Floats x, int i) {  // the next law comes nearer meanwhile
      const Floats below = greater(lowest, x - greatest), part = decayed(below);
      mass[i] += part;
      spread[i] = fma(part, below, spread[i]);  // what is no number shows here, whatever its bits
    });
    const float total = sum_lanes((spread[0] + spread[1]) + (spread[2] + spread[3]));
    if (std::isnan(total)) return;
    *sum = sum_lanes((mass[0] + mass[1]) + (mass[2] + mass[3])), *moment = total;
    *token = find(*top);
  }

 private:
  template <bool kFetches = false, class Part>
  void each(const Part& part) const {
    int64_t at = 0;
    for (; at + kAhead * kLanes <= whole_; at += kAhead * kLanes) {
      for (int i = 0; kFetches && i < kAhead * kLanes; i += kLine) __builtin_prefetch(from_ + whole_ + at + i);
      Floats x[kAhead];
      for (int i = 0; i < kAhead; i += 2) read_two<Type>(from_ + at + i * kLanes, x + i);
      for (int i = 0; i < kAhead; i++) part(x[i], i);
    }
    for (; at < whole_; at += kLanes) part(Type::read(from_ + at), 0);
    part(tail_, 1);
  }

  int64_t find(float top) const {
    for (int64_t at = 0; at < whole_; at += kLanes) {
      if (const uint32_t equal = lanes_from(Type::read(from_ + at), top)) return at + __builtin_ctz(equal);
    }
    return whole_ + __builtin_ctz(lanes_from(tail_, top));
  }

  const Element* from_;
  int64_t whole_;
  Floats tail_;
};

template <class Type>
void measure_all(const LawCall& call) {
  auto* logits = static_cast<typename Type::Element*>(call.logits);
  const int64_t count = call.count;
  for (int64_t at = 0; at < count; at++) {
    float* found = call.found + at;
    if (call.barred >= 0) logits[at * call.vocab + call.barred] = Type::narrow_one(-INFINITY);
    Look<Type>(logits + at * call.vocab, call.vocab)
        .measure(call.tokens + at, found, found + count, found + 2 * count, found + 3 * count);
  }
}

}  // namespace outpace

extern "C" void outpace_laws(const outpace::LawCall* call) {
  if (call->is_bfloat16) outpace::measure_all<outpace::Bfloat16>(*call);
  else outpace::measure_all<outpace::Float32>(*call);
}
