// The short list that top-k is chosen from: one look at the logits, while a row lies in the nearest cache.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "simd.h"

namespace outpace {

constexpr int kGroups = 8;  // vectors of running maxima: kGroups * kLanes groups of tokens

// Mask of the lanes at or above `least`.
inline uint32_t lanes_from(Floats value, float least) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)value, _mm512_set1_ps(least), _CMP_GE_OQ);
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)value, _mm256_set1_ps(least), _CMP_GE_OQ));
#else
  uint32_t mask = 0;
  for (int lane = 0; lane < kLanes; lane++) mask |= static_cast<uint32_t>(value[lane] >= least) << lane;
  return mask;
#endif
}

template <class Type>
class Selector {
  using Element = typename Type::Element;

 public:
  Selector(const void* logits, int64_t vocab) : logits_(static_cast<const Element*>(logits)), vocab_(vocab) {}

  // A number that `count` tokens of a row reach, as do the tokens that top-k of `count` keeps: the k-th largest of the
  // maxima of groups. NaN where the row has a NaN or its largest logit is infinite.
  float bound(int64_t row, int64_t count) const {
    const Element* from = logits_ + row * vocab_;
    Floats largest[kGroups], doubt{};
    for (Floats& group : largest) group = splat(-INFINITY);
    const int64_t whole = vocab_ / kLanes * kLanes;
    for (int64_t i = 0, group = 0; i < whole; i += kLanes, group = (group + 1) % kGroups) {
      const Floats value = Type::read(from + i);
      largest[group] = value > largest[group] ? value : largest[group];
      doubt += value - value;  // 0, but NaN from NaN and from infinities
    }
    std::vector<float> maxima(kGroups * kLanes);
    memcpy(maxima.data(), largest, sizeof largest);
    float sum = sum_lanes(doubt);
    for (int64_t i = whole; i < vocab_; i++) {
      const float value = Type::read_one(from[i]);
      maxima.push_back(value);
      sum += value - value;
    }
    if (!(sum == 0) && !is_sound(from)) return NAN;
    std::nth_element(maxima.begin(), maxima.begin() + count - 1, maxima.end(), std::greater<float>());
    return maxima[count - 1];
  }

  // Write the tokens of a row whose logits are finite and at least `least`; returns how many, -1 beyond `capacity`.
  int64_t take(int64_t row, float least, int64_t capacity, float* values, int64_t* ids) const {
    const Element* from = logits_ + row * vocab_;
    least = std::max(least, -__FLT_MAX__);
    int64_t count = 0;
    const auto add = [&](int64_t token) {
      if (count == capacity) return false;
      values[count] = Type::read_one(from[token]);
      ids[count++] = token;
      return true;
    };
    const int64_t whole = vocab_ / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) {
      for (uint32_t mask = lanes_from(Type::read(from + i), least); mask; mask &= mask - 1) {
        if (!add(i + __builtin_ctz(mask))) return -1;
      }
    }
    for (int64_t i = whole; i < vocab_; i++) {
      if (Type::read_one(from[i]) >= least && !add(i)) return -1;
    }
    return count;
  }

 private:
  // -inf is a forbidden token, of which there may be many; NaN and a largest of +inf are faults of the model.
  bool is_sound(const Element* from) const {
    float largest = -INFINITY;
    for (int64_t i = 0; i < vocab_; i++) {
      const float value = Type::read_one(from[i]);
      if (std::isnan(value)) return false;
      largest = std::max(largest, value);
    }
    return std::isfinite(largest);
  }

  const Element* logits_;
  int64_t vocab_;
};

// Lists of `capacity` candidates per row, in order of their ids, padded with token 0 at -inf. Returns the length of the
// longest, -1 where a row has no sound logits or too many candidates.
template <class Type>
int64_t select(const void* logits, int64_t rows, int64_t vocab, int64_t count, int64_t capacity, float* values,
               int64_t* ids) {
  const Selector<Type> selector(logits, vocab);
  int64_t longest = 0;
  for (int64_t row = 0; row < rows; row++) {
    const float least = selector.bound(row, count);
    if (std::isnan(least)) return -1;
    const int64_t found = selector.take(row, least, capacity, values + row * capacity, ids + row * capacity);
    if (found < 0) return -1;
    std::fill(values + row * capacity + found, values + (row + 1) * capacity, -INFINITY);
    std::fill(ids + row * capacity + found, ids + (row + 1) * capacity, 0);
    longest = std::max(longest, found);
  }
  return longest;
}

}  // namespace outpace
