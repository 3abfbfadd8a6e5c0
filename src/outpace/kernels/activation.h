// The functions between the two halves of an MLP, for a vector of values.
#pragma once

#include "simd.h"

namespace outpace {

enum Activation : int64_t { kSilu, kGelu, kGeluTanh, kRelu };  // in the order of `ACTIVATIONS` in decoder.py

// x / (1 + e^-steep): a sigmoid of `steep` times x.
inline Floats gated(Floats x, Floats steep) { return x / (splat(1.0f) + exponential(Floats{} - steep)); }

// x times the part of a normal distribution that lies below it, to about 2e-7 of that part: the smaller tail is
// t * exp(series(t) - z^2) / 2 with z = |x| / sqrt(2) and t = 1 / (1 + z / 2), where the series is a Chebyshev fit of
// degree 9 for z up to 10; what lies beyond rounds to nothing.
inline Floats gelu(Floats x) {
  const Floats size = x < Floats{} ? Floats{} - x : x;
  const Floats z = size * splat(0.70710678f), t = splat(1.0f) / fma(z, splat(0.5f), splat(1.0f));
  Floats series = splat(0.144930214f);
  for (float term : {-0.680827178f, 1.15673376f, -0.696251898f, -0.0802804325f, 0.0012675865f, 0.0346028f, 0.386640412f,
                     0.998632783f, -1.265448f}) {
    series = fma(series, t, splat(term));
  }
  const Floats tail = splat(0.5f) * t * exponential(fma(Floats{} - z, z, series));
  return x * (x < Floats{} ? tail : splat(1.0f) - tail);
}

// All but the first are calls: where they stood in line, it would pay for their registers.
__attribute__((noinline)) inline Floats other_activation(int64_t kind, Floats x) {
  switch (kind) {
    case kGelu: return gelu(x);
    case kGeluTanh: return gated(x, x * splat(1.5957691f) * fma(x * x, splat(0.044715f), splat(1.0f)));
    default: return x < Floats{} ? Floats{} : x;  // NaN stays NaN
  }
}

inline Floats activated(int64_t kind, Floats x) { return kind == kSilu ? gated(x, x) : other_activation(kind, x); }

}  // namespace outpace
