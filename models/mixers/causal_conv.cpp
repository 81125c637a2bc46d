// Depthwise causal convolution within segments: CPU, float32, OpenMP, vectorized over the channels.
//
// x (B, L, E) with slots `stride` floats apart; weight (K, E), where tap K - 1 is the current slot; starts (B, L) bool.
// The order of every sum depends on the shapes alone, so results are bitwise equal for any number of threads.

#include <algorithm>
#include <cstdint>

namespace {

constexpr int64_t kBlock = 64;  // channels per job: K slots of them fit in the L1 cache

// The same fields as causal_conv._Sizes.
struct Sizes {
  int64_t rows, slots, channels, taps, stride, threads;
};

// Call work(row, first channel, number of channels) for every block of channels of every row.
template <typename Work>
void for_each_block(const Sizes& s, const Work& work) {
  const int64_t blocks = (s.channels + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) num_threads(s.threads)
  for (int64_t job = 0; job < s.rows * blocks; job++) {
    const int64_t first = job % blocks * kBlock;
    work(job / blocks, first, std::min(kBlock, s.channels - first));
  }
}

// Return the number of earlier slots read at slot t, given that number at slot t - 1.
inline int64_t reach(const Sizes& s, bool start, int64_t before) {
  return start ? 0 : std::min(before + 1, s.taps - 1);
}

}  // namespace

extern "C" {

void causal_conv_forward(const Sizes* sizes, const float* x, const float* weight, const float* bias,
                         const bool* starts, float* y) {
  const Sizes s = *sizes;
  for_each_block(s, [=](int64_t row, int64_t first, int64_t width) {
    int64_t reached = 0;
    for (int64_t t = 0; t < s.slots; t++) {
      const int64_t slot = row * s.slots + t;
      reached = reach(s, starts[slot], reached);
      float* out = y + slot * s.channels + first;
      std::copy_n(bias + first, width, out);
      for (int64_t k = 0; k <= reached; k++) {
        const float* in = x + (slot - k) * s.stride + first;
        const float* tap = weight + (s.taps - 1 - k) * s.channels + first;
#pragma omp simd
        for (int64_t e = 0; e < width; e++) out[e] += tap[e] * in[e];
      }
    }
  });
}

// dx (B, L, E), dweight (B, K, E) and dbias (B, E) must be zero on entry; the last two have one partial sum per row.
void causal_conv_backward(const Sizes* sizes, const float* x, const float* weight, const bool* starts, const float* dy,
                          float* dx, float* dweight, float* dbias) {
  const Sizes s = *sizes;
  for_each_block(s, [=](int64_t row, int64_t first, int64_t width) {
    int64_t reached = 0;
    float* db = dbias + row * s.channels + first;
    for (int64_t t = 0; t < s.slots; t++) {
      const int64_t slot = row * s.slots + t;
      reached = reach(s, starts[slot], reached);
      const float* g = dy + slot * s.channels + first;
#pragma omp simd
      for (int64_t e = 0; e < width; e++) db[e] += g[e];
      for (int64_t k = 0; k <= reached; k++) {
        const int64_t tap = s.taps - 1 - k;
        const float* w = weight + tap * s.channels + first;
        const float* in = x + (slot - k) * s.stride + first;
        float* din = dx + (slot - k) * s.channels + first;
        float* dw = dweight + (row * s.taps + tap) * s.channels + first;
#pragma omp simd
        for (int64_t e = 0; e < width; e++) {
          din[e] += w[e] * g[e];
          dw[e] += in[e] * g[e];
        }
      }
    }
  });
}

}  // extern "C"
