// Depthwise causal convolution that does not reach over a segment's start, on the CPU: float32, OpenMP, vectorised over
// the channels.
//
// x (B, L, E) with `stride` floats from slot to slot; weight (K, E), tap K - 1 being the current slot; starts (B, L) bool.
// Every sum is taken in an order that depends on the shapes alone, so results are bitwise equal at any thread count.

#include <algorithm>
#include <cstdint>

namespace {

constexpr int64_t kBlock = 64;  // channels of a job: its rows of K slots stay in the first cache

// Mirrored by causal_conv._Sizes.
struct Sizes {
  int64_t rows, slots, channels, taps, stride, threads;
};

// Calls work(row, first channel, number of channels) for every block of channels of every row.
template <typename Work>
void for_each_block(const Sizes& s, const Work& work) {
  const int64_t blocks = (s.channels + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) num_threads(s.threads)
  for (int64_t job = 0; job < s.rows * blocks; job++) {
    const int64_t first = job % blocks * kBlock;
    work(job / blocks, first, std::min(kBlock, s.channels - first));
  }
}

// How many earlier slots the taps reach at slot t, given how many they reached at t - 1.
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

// dx (B, L, E), dweight (B, K, E) and dbias (B, E), a part for each row, are zero on entry.
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
