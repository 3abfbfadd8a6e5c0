// Which tokens may win a draw: argmax(logit + Gumbel), where Gumbel = -log(-log u) and u is the noise of
// `outpace.sampling.noise`. Python draws among them; here a token is left out only where it cannot win.

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace outpace {

// What Python fills in; every field is 8 bytes. Mirrored by the ctypes structure of `draws.py`.
struct DrawCall {
  int64_t count, vocab, room;
  const double* logits;  // [count, vocab]
  const int64_t* keys;   // [count]
  int64_t* found;        // [count, room] ascending tokens that may win
  int64_t* sizes;        // [count] how many there are; more than `room` = they did not fit
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

int64_t contenders(const double* logits, int64_t vocab, uint64_t key, int64_t* found, int64_t room) {
  double lanes[8];
  std::fill(lanes, lanes + 8, -INFINITY);
  int64_t at = 0;
  for (; at + 8 <= vocab; at += 8)
    for (int lane = 0; lane < 8; lane++) lanes[lane] = lanes[lane] < logits[at + lane] ? logits[at + lane] : lanes[lane];
  double top = *std::max_element(lanes, lanes + 8);
  for (; at < vocab; at++) top = std::max(top, logits[at]);
  const int64_t best = std::find(logits, logits + vocab, top) - logits;
  if (best == vocab) return found[0] = 0, 1;  // no law: whatever is drawn is not written

  const double slack = kSlack * std::max(1.0, std::fabs(top));
  double least = top + gumbel(rest(key, best)) - slack;  // what the winner has at the least
  int64_t size = 0;
  uint64_t rests[kBlock];
  for (int64_t begin = 0; begin < vocab; begin += kBlock) {
    const int64_t count = std::min<int64_t>(kBlock, vocab - begin);
    const double* own = logits + begin;
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

}  // namespace outpace

extern "C" void outpace_draws(const outpace::DrawCall* call) {
  for (int64_t row = 0; row < call->count; row++)
    call->sizes[row] = outpace::contenders(call->logits + row * call->vocab, call->vocab,
                                           static_cast<uint64_t>(call->keys[row]), call->found + row * call->room,
                                           call->room);
}
