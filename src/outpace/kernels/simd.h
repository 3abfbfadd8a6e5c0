// Vectors of 32-bit lanes, written once: GCC and clang lower these types to AVX-512, AVX2 or NEON.
//
// Contraction is off in the build (-ffp-contract=off) and `fma` below is explicit, so that the compiler cannot fuse
// an expression in one instantiation and not in another: equal inputs must give equal bits everywhere.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>
#define OUTPACE_NEON 1  // a vector is two registers there
#endif

namespace outpace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
constexpr int kPadding = 32;  // every row of floats is padded with zeros to this, so that no loop has a tail

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes)));

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Unaligned load and store; the compiler turns the copy into one instruction.
template <class Vector, class Element>
inline Vector load(const Element* from) {
  static_assert(sizeof(Vector) == kLanes * sizeof(Element), "lanes and elements must agree");
  Vector value;
  memcpy(&value, from, sizeof value);
  return value;
}

template <class Vector, class Element>
inline void store(Element* to, Vector value) {
  static_assert(sizeof(Vector) == kLanes * sizeof(Element), "lanes and elements must agree");
  memcpy(to, &value, sizeof value);
}

template <class To, class From>
inline To bits(From value) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps the size");
  To result;
  memcpy(&result, &value, sizeof result);
  return result;
}

inline Floats splat(float value) { return value - Floats{}; }
inline Words splat_word(uint32_t value) { return value - Words{}; }

#if defined(OUTPACE_NEON)
template <class Register>
struct Two {
  Register half[2];
};

// `part(a, b, c)` of vectors taken for registers, half by half.
template <class Result, class A, class B, class C, class Part>
inline Result by_halves(Result a, Words b, Words c, const Part& part) {
  const Two<A> first = bits<Two<A>>(a);
  const Two<B> second = bits<Two<B>>(b);
  const Two<C> third = bits<Two<C>>(c);
  return bits<Result>(Two<A>{{part(first.half[0], second.half[0], third.half[0]),
                              part(first.half[1], second.half[1], third.half[1])}});
}
#endif

inline Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(OUTPACE_NEON)
  return by_halves<Floats, float32x4_t, float32x4_t, float32x4_t>(c, bits<Words>(a), bits<Words>(b), vfmaq_f32);
#else
  return a * b + c;
#endif
}

// One lane of the above: the same rounding.
inline float fma(float a, float b, float c) {
#if defined(__AVX512F__) || defined(__FMA__) || defined(OUTPACE_NEON)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// Sum of the lanes, halves first: one fixed tree.
inline float sum_lanes(Floats value) {
  float lanes[kLanes];
  store(lanes, value);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  }
  return lanes[0];
}

// e^x to about 2 units in the last place; exactly 0 below the normal range, so that a masked score (-inf) weighs 0.
inline Floats exponential(Floats x) {
  const Floats lowest = splat(-87.33654f), highest = splat(88.3762626f);
  const Floats shift = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer held in the low bits
  const Floats clamped = x < lowest ? lowest : (x > highest ? highest : x);
  const Floats rounded = fma(clamped, splat(1.44269504f), shift);
  const Floats count = rounded - shift;
  Floats rest = fma(count, splat(-0.693359375f), clamped);
  rest = fma(count, splat(2.12194440e-4f), rest);
  Floats series = splat(1.9875691500e-4f);
  for (float term : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f}) {
    series = fma(series, rest, splat(term));
  }
  series = fma(series, rest * rest, rest + splat(1.0f));
  const Ints exponent = (bits<Ints>(rounded) - bits<Ints>(shift) + 127) << 23;
  return x < lowest ? Floats{} : series * bits<Floats>(exponent);
}

// 16-bit floats (IEEE, not bfloat16) to 32 bits: exact, also below the normal range.
inline Floats from_half(const uint8_t* from) {
  Halves half;
  memcpy(&half, from, sizeof half);
#if defined(__AVX512F__)
  return _mm512_cvtph_ps((__m256i)half);
#elif defined(__F16C__)
  return _mm256_cvtph_ps((__m128i)half);
#elif defined(OUTPACE_NEON)
  const Two<float16x4_t> parts = bits<Two<float16x4_t>>(half);
  return bits<Floats>(Two<float32x4_t>{{vcvt_f32_f16(parts.half[0]), vcvt_f32_f16(parts.half[1])}});
#else
  const Words word = __builtin_convertvector(half, Words);
  const Floats size = bits<Floats>((word & 0x7fff) << 13) * splat(0x1p112f);
  return bits<Floats>(bits<Words>(size) | (word & 0x8000) << 16);
#endif
}

inline float half_to_float(const uint8_t* from) {
  uint8_t lanes[2 * kLanes] = {};
  memcpy(lanes, from, 2);
  return from_half(lanes)[0];
}

inline Floats to_floats(Ints value) { return __builtin_convertvector(value, Floats); }

// Signed bytes to and from 32 bits; what does not fit is cut off.
inline Ints widen_bytes(const uint8_t* from) {
  typedef int8_t Bytes __attribute__((vector_size(kLanes)));
  const Bytes bytes = load<Bytes>(from);
#if defined(__AVX512F__)
  return (Ints)_mm512_cvtepi8_epi32((__m128i)bytes);
#else
  return __builtin_convertvector(bytes, Ints);
#endif
}

inline void narrow_bytes(int8_t* to, Ints value) {
  typedef int8_t Bytes __attribute__((vector_size(kLanes)));
#if defined(__AVX512F__)
  store(to, (Bytes)_mm512_cvtepi32_epi8((__m512i)value));
#else
  store(to, __builtin_convertvector(value, Bytes));
#endif
}

inline int32_t sum_lanes(Ints value) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)value);
#else
  int32_t total = 0;
  for (int i = 0; i < kLanes; i++) total += value[i];
  return total;
#endif
}

#if !defined(__AVX512VNNI__) && !defined(__AVXVNNI__) && \
    (defined(__AVX512BW__) || (defined(__AVX2__) && !defined(__AVX512F__)))
#define OUTPACE_BYTE_PAIRS 1
// Products of bytes, added in pairs to 16 bits (the caller sees to it that they fit), then in pairs to 32.
inline Ints add_fours(Words codes, Words input) {
#if defined(__AVX512BW__)
  return (Ints)_mm512_madd_epi16(_mm512_maddubs_epi16((__m512i)codes, (__m512i)input), _mm512_set1_epi16(1));
#else
  return (Ints)_mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)codes, (__m256i)input), _mm256_set1_epi16(1));
#endif
}
#endif

#if defined(__ARM_FEATURE_DOTPROD) && defined(OUTPACE_NEON)
// The same where codes, of 7 bits at most, may be taken for signed bytes.
inline Ints add_signed(Ints sum, Words codes, Words input) {
  return by_halves<Ints, int32x4_t, int8x16_t, int8x16_t>(sum, codes, input, vdotq_s32);
}
#endif

// Add to each lane the products of its four unsigned bytes, of kBits bits, and four signed ones of at most +-127: exact.
template <int kBits>
inline Ints dot(Ints sum, Words codes, Words input) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)codes, (__m512i)input);
#elif defined(__AVXVNNI__)
  return (Ints)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)codes, (__m256i)input);
#elif defined(OUTPACE_BYTE_PAIRS)
  if constexpr (kBits < 8) return sum + add_fours(codes, input);
  sum += add_fours(codes & 0x7f7f7f7f, input);  // a pair is at most 2 * 128 * 127: 16 bits hold it
  return sum + add_fours(codes & 0x80808080, input);
#elif defined(__ARM_FEATURE_MATMUL_INT8) && defined(OUTPACE_NEON)
  return by_halves<Ints, int32x4_t, uint8x16_t, int8x16_t>(sum, codes, input, vusdotq_s32);
#elif defined(__ARM_FEATURE_DOTPROD) && defined(OUTPACE_NEON)
  if constexpr (kBits < 8) return add_signed(sum, codes, input);
  sum = add_signed(sum, codes & 0x7f7f7f7f, input);
  return sum + (add_signed(Ints{}, codes >> 7 & 0x01010101, input) << 7);
#else
#pragma GCC unroll 4
  for (int byte = 0; byte < 4; byte++) {
    sum += bits<Ints>(codes >> 8 * byte & 0xff) * (bits<Ints>(input << (24 - 8 * byte)) >> 24);
  }
  return sum;
#endif
}

inline int32_t max_lanes(Ints value) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epi32((__m512i)value);
#else
  int32_t most = value[0];
  for (int i = 1; i < kLanes; i++) most = value[i] > most ? value[i] : most;
  return most;
#endif
}

// Replace each byte, below 16, by the byte of a table; `table` repeats its 16 bytes.
inline Words look_up(Words table, Words index) {
#if defined(__AVX512BW__)
  return (Words)_mm512_shuffle_epi8((__m512i)table, (__m512i)index);
#elif defined(__AVX2__) && !defined(__AVX512F__)
  return (Words)_mm256_shuffle_epi8((__m256i)table, (__m256i)index);
#elif defined(OUTPACE_NEON)
  const auto part = [](uint8x16_t from, uint8x16_t at, uint8x16_t) { return vqtbl1q_u8(from, at); };
  return by_halves<Words, uint8x16_t, uint8x16_t, uint8x16_t>(table, index, index, part);
#else
  uint8_t from[sizeof table], at[sizeof index];
  memcpy(from, &table, sizeof table);
  memcpy(at, &index, sizeof index);
  for (uint8_t& byte : at) byte = from[byte];
  memcpy(&index, at, sizeof index);
  return index;
#endif
}

inline Words widen_halves(Halves half) {
#if defined(__AVX512F__)
  return (Words)_mm512_cvtepu16_epi32((__m256i)half);  // compilers widen by parts, which takes four instructions
#else
  return __builtin_convertvector(half, Words);
#endif
}

inline Halves narrow_words(Words word) {
#if defined(__AVX512F__)
  return (Halves)_mm512_cvtepi32_epi16((__m512i)word);
#else
  return __builtin_convertvector(word, Halves);
#endif
}

inline Floats widen(Halves half) { return bits<Floats>(widen_halves(half) << 16); }

// To bfloat16, nearest even; NaN stays NaN.
inline Halves narrow(Floats value) {
  const Words word = bits<Words>(value);
  const Words rounded = (word + 0x7fff + ((word >> 16) & 1)) >> 16;
  const Words quiet = (word >> 16) | 0x40;
  return narrow_words((word & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
}

#if defined(__AVX512F__)
// Rows become columns: 16 vectors of 16 words, in place.
inline void transpose(Words (&row)[16]) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32((__m512i)row[i], (__m512i)row[i + 1]);
    a[i + 1] = _mm512_unpackhi_epi32((__m512i)row[i], (__m512i)row[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    a[i] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88);
    a[i + 4] = _mm512_shuffle_i32x4(b[i], b[i + 4], 0xdd);
    a[i + 8] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88);
    a[i + 12] = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xdd);
  }
  for (int i = 0; i < 8; i++) {
    row[i] = (Words)_mm512_shuffle_i32x4(a[i], a[i + 8], 0x88);
    row[i + 8] = (Words)_mm512_shuffle_i32x4(a[i], a[i + 8], 0xdd);
  }
}
#endif

// What differs between the two dtypes. A GEMM input is a row of 32-bit words: one float, or two neighbouring
// bfloat16 values, the lower index in the lower half; a weight panel holds the same words (see gemm.h).
struct Float32 {
  using Element = float;
  static constexpr int kPerWord = 1;
  static Floats step(Floats sum, Words weight, Words input) {
    return fma(bits<Floats>(weight), bits<Floats>(input), sum);
  }
  static Floats read(const float* from) { return load<Floats>(from); }
  static float read_one(float value) { return value; }
  static void write(float* to, Floats value) { store(to, value); }
  static float narrow_one(float value) { return value; }
};

struct Bfloat16 {
  using Element = uint16_t;
  static constexpr int kPerWord = 2;
  // A machine with AMX (__AMX_BF16__) could read the same panels as tiles of 16 words by 16 columns, with a stride of
  // one step; every width would then have to use them, a single token included, to keep equal bits.
  static Floats step(Floats sum, Words weight, Words input) {
#if defined(__AVX512BF16__)
    return _mm512_dpbf16_ps(sum, (__m512bh)weight, (__m512bh)input);
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && defined(OUTPACE_NEON)
    return by_halves<Floats, float32x4_t, bfloat16x8_t, bfloat16x8_t>(sum, weight, input, vbfdotq_f32);
#else
    sum = fma(bits<Floats>(weight << 16), bits<Floats>(input << 16), sum);
    return fma(bits<Floats>(weight & 0xffff0000u), bits<Floats>(input & 0xffff0000u), sum);
#endif
  }
  static Floats read(const uint16_t* from) { return widen(load<Halves>(from)); }
  static float read_one(uint16_t value) { return bits<float>(static_cast<uint32_t>(value) << 16); }
  static void write(uint16_t* to, Floats value) { store(to, narrow(value)); }
  static uint16_t narrow_one(float value) {
    uint16_t lanes[kLanes];
    write(lanes, splat(value));
    return lanes[0];
  }
};

}  // namespace outpace
