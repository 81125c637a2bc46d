// Vectors of eight floats and their exponential. A vector is one AVX register; without AVX the compiler splits it.

#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX__
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kLanes = 8;

typedef float Vec __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(32)));

inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
inline Vec splat(float x) { return Vec{x, x, x, x, x, x, x, x}; }

// max(x, low); NaN if x is NaN.
inline Vec at_least(Vec x, Vec low) {
#ifdef __AVX__
  return _mm256_max_ps(low, x);
#else
  return low > x ? low : x;
#endif
}

// 2^x to 2 ulp for x in [-125, 127], 2^-125 below: 2^x = 2^n 2^r with n = round(x), r in [-1/2, 1/2]. NaN stays NaN.
inline Vec exp2_vec(Vec x) {
  x = at_least(x, splat(-125.f));
  const Vec magic = splat(12582912.f);  // 1.5 * 2^23: adding it leaves round(x) in the low mantissa bits
  const Vec shifted = x + magic;
  const Vec r = x - (shifted - magic);
  Vec p = splat(1.32647e-3f);  // minimax polynomial with p(0) = 1; relative error 9e-8
  p = p * r + splat(9.67151e-3f);
  p = p * r + splat(5.550734e-2f);
  p = p * r + splat(2.4022242e-1f);
  p = p * r + splat(6.9314698e-1f);
  p = p * r + splat(1.f);
  IntVec n, bits;
  std::memcpy(&n, &shifted, sizeof n);
  std::memcpy(&bits, &p, sizeof bits);
  bits += n << 23;  // multiply p in [0.7, 1.5] by 2^n: add n to its exponent
  std::memcpy(&p, &bits, sizeof p);
  return p;
}

}  // namespace
