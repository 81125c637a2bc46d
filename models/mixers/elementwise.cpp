// Fused element-wise operations of the Mamba mixer: CPU, float32, OpenMP, vectorized over the channels.
//
// Matrices are (M, E): M slots, E channels, E a multiple of 8. In z, slots are `stride` floats apart. Sums over slots are taken
// per block of kBlock slots, so results do not depend on the number of threads.

#include <algorithm>
#include <cstdint>

#include "vectors.h"

namespace {

constexpr int64_t kBlock = 512;  // slots

// The same fields as elementwise._Sizes.
struct Sizes {
  int64_t slots, channels, stride, threads;
};

inline Vec exp_vec(Vec x) { return exp2_vec(x * splat(1.4426950408889634f)); }

inline Vec sigmoid(Vec x) { return splat(1.f) / (splat(1.f) + exp_vec(-at_least(x, splat(-87.f)))); }

// log(1 + e) for e in [0, 1], with a relative error of 2e-8: 2 atanh(s) with s = e / (2 + e).
inline Vec log1p_vec(Vec e) {
  const Vec s = e / (splat(2.f) + e), w = s * s;
  Vec p = splat(1.f / 13.f);
  for (const float c : {1.f / 11.f, 1.f / 9.f, 1.f / 7.f, 1.f / 5.f, 1.f / 3.f, 1.f}) p = p * w + splat(c);
  return splat(2.f) * s * p;
}

// log(1 + exp(x)).
inline Vec softplus(Vec x) { return at_least(x, splat(0.f)) + log1p_vec(exp_vec(-at_least(x, -x))); }

// Call work(block, slot) for every slot. One thread runs the slots of a block, in order.
template <typename Work>
void for_each_slot(const Sizes& s, const Work& work) {
#pragma omp parallel for schedule(static) num_threads(s.threads)
  for (int64_t block = 0; block < (s.slots + kBlock - 1) / kBlock; block++)
    for (int64_t m = block * kBlock; m < std::min(s.slots, (block + 1) * kBlock); m++) work(block, m);
}

}  // namespace

extern "C" {

// y = softplus(x + bias)
void softplus_forward(const Sizes* sizes, const float* x, const float* bias, float* y) {
  const Sizes s = *sizes;
  for_each_slot(s, [=](int64_t, int64_t m) {
    for (int64_t e = 0; e < s.channels; e += kLanes) {
      const int64_t i = m * s.channels + e;
      store(y + i, softplus(load(x + i) + load(bias + e)));
    }
  });
}

// dbias (blocks, E) has one partial sum per block of slots and must be zero on entry.
void softplus_backward(const Sizes* sizes, const float* x, const float* bias, const float* dy, float* dx, float* dbias) {
  const Sizes s = *sizes;
  for_each_slot(s, [=](int64_t block, int64_t m) {
    for (int64_t e = 0; e < s.channels; e += kLanes) {
      const int64_t i = m * s.channels + e, part = block * s.channels + e;
      const Vec d = load(dy + i) * sigmoid(load(x + i) + load(bias + e));
      store(dx + i, d);
      store(dbias + part, load(dbias + part) + d);
    }
  });
}

// out = (y + D u) silu(z)
void skip_gate_forward(const Sizes* sizes, const float* y, const float* u, const float* D, const float* z, float* out) {
  const Sizes s = *sizes;
  for_each_slot(s, [=](int64_t, int64_t m) {
    for (int64_t e = 0; e < s.channels; e += kLanes) {
      const int64_t i = m * s.channels + e;
      const Vec gate = load(z + m * s.stride + e);
      store(out + i, (load(y + i) + load(D + e) * load(u + i)) * (gate * sigmoid(gate)));
    }
  });
}

// dz (M, E) is contiguous. dD (blocks, E) has one partial sum per block of slots and must be zero on entry.
void skip_gate_backward(const Sizes* sizes, const float* y, const float* u, const float* D, const float* z, const float* dout,
                        float* dy, float* du, float* dD, float* dz) {
  const Sizes s = *sizes;
  for_each_slot(s, [=](int64_t block, int64_t m) {
    for (int64_t e = 0; e < s.channels; e += kLanes) {
      const int64_t i = m * s.channels + e, part = block * s.channels + e;
      const Vec gate = load(z + m * s.stride + e), open = sigmoid(gate), silu = gate * open;
      const Vec g = load(dout + i), in = load(u + i), skip = load(D + e), d = g * silu;
      store(dy + i, d);
      store(du + i, skip * d);
      store(dD + part, load(dD + part) + in * d);
      store(dz + i, g * (load(y + i) + skip * in) * (open + silu * (splat(1.f) - open)));
    }
  });
}

}  // extern "C"
