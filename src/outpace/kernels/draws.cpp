// Which tokens may win a draw: argmax(logit + Gumbel), where Gumbel = -log(-log u) and u is the noise of
// `outpace.sampling.noise`. Python draws among them; here a token is left out only where it cannot win.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "simd.h"

namespace outpace {

struct Float64 {
  using Element = double;
  static double read_one(double value) { return value; }
};

// What Python fills in; every field is 8 bytes. Mirrored by the ctypes structure of `draws.py`.
struct DrawCall {
  int64_t count, vocab, room, bytes;  // of a logit: 8 = double, 4 = float, 2 = bfloat16
  double temperature;                 // logits are divided by it
  const void* logits;                 // [count, vocab]
  const int64_t* keys;                // [count]
  int64_t* found;                     // [count, room] ascending tokens that may win
  int64_t* sizes;                     // [count] how many there are; more than `room` = they did not fit
  int64_t* sound;                     // [count] whether the law is one: no logit is NaN, and the greatest is finite
};

constexpr int kBlock = 512;
constexpr double kSlack = 1e-9;  // of the greatest logit, or of 1: far above the rounding of two logarithms and a sum

inline uint64_t mixed(uint64_t bits) {
  bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9ull;
  bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBull;
  return bits ^ (bits >> 31);
}

// 2^52 (1 - u) + 1/2, a whole number of 1 to 2^52.
inline uint64_t rest(uint64_t key, int64_t token) {
  return (1ull << 52) - (mixed(key + static_cast<uint64_t>(token) * 0x9E3779B97F4A7C15ull) >> 12);
}

inline double gumbel(uint64_t rest) { return -std::log(-std::log1p(-(static_cast<double>(rest) - 0.5) * 0x1p-52)); }

// Not less than `gumbel`: -log u >= 1 - u >= rest / 2^53, and the logarithm of the rest's greatest bit is cheap.
inline double most(uint64_t rest) { return (__builtin_clzll(rest) - 10) * 0.6931471805599454; }

// The greatest logit; NaN where one is.
template <class Type>
double greatest(const typename Type::Element* logits, int64_t vocab) {
  constexpr int kWide = 32;
  using Number = decltype(Type::read_one(*logits));
  Number lanes[kWide], doubt[kWide] = {};
  std::fill(lanes, lanes + kWide, -std::numeric_limits<Number>::infinity());
  for (int64_t at = 0; at < vocab; at += kWide) {
    const int64_t count = std::min<int64_t>(kWide, vocab - at);
    const auto take = [&](int64_t lane) {
      const Number value = Type::read_one(logits[at + lane]);
      lanes[lane] = lanes[lane] < value ? value : lanes[lane];
      doubt[lane] += value == value ? 0 : 1;
    };
    if (count == kWide)
      for (int64_t lane = 0; lane < kWide; lane++) take(lane);
    else
      for (int64_t lane = 0; lane < count; lane++) take(lane);
  }
  const bool is_none = *std::max_element(doubt, doubt + kWide) > 0;
  return is_none ? NAN : static_cast<double>(*std::max_element(lanes, lanes + kWide));
}

template <class Type>
int64_t contenders(const typename Type::Element* logits, int64_t vocab, double temperature, uint64_t key,
                   int64_t* found, int64_t room, int64_t* is_sound) {
  const double largest = greatest<Type>(logits, vocab), inverse = 1 / temperature;
  if (!(*is_sound = std::isfinite(largest))) return found[0] = 0, 1;  // no law: whatever is drawn is not written
  int64_t best = 0;
  while (static_cast<double>(Type::read_one(logits[best])) != largest) best++;

  // What is sifted is multiplied, and may be off in its last bit, which the slack allows for; Python divides.
  const double top = largest / temperature, slack = kSlack * std::max(1.0, std::fabs(top));
  double least = top + gumbel(rest(key, best)) - slack;  // what the winner has at the least
  int64_t size = 0;
  uint64_t rests[kBlock];
  double own[kBlock];
  for (int64_t begin = 0; begin < vocab; begin += kBlock) {
    const int64_t count = std::min<int64_t>(kBlock, vocab - begin);
    for (int64_t i = 0; i < count; i++) own[i] = static_cast<double>(Type::read_one(logits[begin + i])) * inverse;
    for (int64_t i = 0; i < count; i++) rests[i] = rest(key, begin + i);
    uint64_t lowest = ~0ull;
    for (int64_t i = 0; i < count; i++) lowest = rests[i] < lowest ? rests[i] : lowest;
    const double cut = least - most(lowest);
    for (int64_t i = 0; i < count; i++) {
      if (own[i] < cut || own[i] + most(rests[i]) < least) continue;
      const double whole = own[i] + gumbel(rests[i]);
      if (whole < least) continue;
      least = std::max(least, whole - slack);
      if (size < room) found[size] = begin + i;
      size++;
    }
  }
  return size;
}

template <class Type>
void find_all(const DrawCall& call) {
  const auto* logits = static_cast<const typename Type::Element*>(call.logits);
  for (int64_t row = 0; row < call.count; row++)
    call.sizes[row] = contenders<Type>(logits + row * call.vocab, call.vocab, call.temperature,
                                       static_cast<uint64_t>(call.keys[row]), call.found + row * call.room, call.room,
                                       call.sound + row);
}

}  // namespace outpace

extern "C" void outpace_draws(const outpace::DrawCall* call) {
  if (call->bytes == 2) outpace::find_all<outpace::Bfloat16>(*call);
  else if (call->bytes == 4) outpace::find_all<outpace::Float32>(*call);
  else outpace::find_all<outpace::Float64>(*call);
}
