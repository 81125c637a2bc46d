// Mamba-1's selective scan with resets at segment starts: CPU, float32, OpenMP, vectorized over the state.
//
//   h_t = keep_t * exp(dt_t A) h_{t-1} + dt_t u_t B_t        y_t = C_t . h_t
//
// Shapes: u, dt, y (B, L, E); A (E, N); B, C (B, L, N); starts (B, L) bool. All contiguous, N a multiple of 8.
// The forward saves the state at the entry of each of K chunks, (B, K, E, N), and the backward recomputes the states chunk by
// chunk. Without a backward, K is 1: a row carries one state from block to block.
//
// The order of every sum depends on the shapes alone, so results are bitwise equal for any number of threads.
// Compiled without -ffast-math, so that NaN and infinity in the input reach the output.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vectors.h"

namespace {

constexpr int64_t kChunk = 32;     // slots between saved states
constexpr int64_t kChannels = 4;   // channels of E that share each load of B and C
constexpr int64_t kBlock = 128;  // slots per block; all channels finish a block before the next one, which keeps B and C in cache
constexpr int64_t kMaxVectors = 32;  // N up to 256
constexpr int64_t kPrefetchSlots = 4;  // prefetch distance: the same channels of consecutive slots are far apart in memory

inline float sum(Vec v) { return ((v[0] + v[2]) + (v[1] + v[3])) + ((v[4] + v[6]) + (v[5] + v[7])); }

// out[w] = sum(v[w]), bitwise equal.
template <int W>
inline void sums(const Vec (&v)[W], float* out) {
#ifdef __AVX__
  if constexpr (W == 4) {
    const __m256 low = _mm256_add_ps(_mm256_unpacklo_ps(v[0], v[1]), _mm256_unpackhi_ps(v[0], v[1]));
    const __m256 high = _mm256_add_ps(_mm256_unpacklo_ps(v[2], v[3]), _mm256_unpackhi_ps(v[2], v[3]));
    const __m256 all = _mm256_add_ps(_mm256_shuffle_ps(low, high, 0x44), _mm256_shuffle_ps(low, high, 0xee));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
    return;
  }
#endif
  for (int w = 0; w < W; w++) out[w] = sum(v[w]);
}

// The same fields as cpp._Sizes.
struct Sizes {
  int64_t rows, slots, channels, state;
  int64_t chunks;   // saved entry states per row: one for each chunk of kChunk slots, or 1
  int64_t parts;    // groups that the channels of a row are split into, so that a few rows can use several threads
  int64_t threads;
};

// W channels of one row. V is the number of vectors of the state, or 0 if it is only known at run time.
template <int V, int W>
struct ChannelGroup {
  static constexpr int64_t kBound = V ? V : kMaxVectors;
  const Sizes& s;
  const int64_t vectors;
  const int64_t row, channel;
  Vec rate[W][kBound];  // A log2(e): exp(dt A) = 2^(dt rate)

  ChannelGroup(const Sizes& sizes, const float* A, int64_t row, int64_t channel)
      : s(sizes), vectors(V ? V : sizes.state / kLanes), row(row), channel(channel) {
    const Vec log2e = splat(1.4426950408889634f);
    for (int w = 0; w < W; w++)
      for (int64_t v = 0; v < count(); v++) rate[w][v] = load(A + (channel + w) * s.state + v * kLanes) * log2e;
  }

  int64_t count() const { return V ? V : vectors; }
  int64_t slot(int64_t t) const { return row * s.slots + t; }
  int64_t element(int64_t t) const { return slot(t) * s.channels + channel; }
  int64_t entry(int64_t chunk, int w) const {
    return ((row * s.chunks + std::min(chunk, s.chunks - 1)) * s.channels + channel + w) * s.state;
  }

  // Scan slots [begin, end). Both bounds are chunk starts or the end of the row. Read the saved state at begin and write that
  // at end.
  void forward(int64_t begin, int64_t end, const float* u, const float* dt, const float* B, const float* C,
               const bool* starts, float* y, float* entries) const {
    Vec h[W][kBound] = {};
    if (begin)
      for (int w = 0; w < W; w++)
        for (int64_t v = 0; v < count(); v++) h[w][v] = load(entries + entry(begin / kChunk, w) + v * kLanes);
    for (int64_t t = begin; t < end; t++) {
      if (t % kChunk == 0 && t / kChunk < s.chunks)
        for (int w = 0; w < W; w++)
          for (int64_t v = 0; v < count(); v++) store(entries + entry(t / kChunk, w) + v * kLanes, h[w][v]);
      if (starts[slot(t)])
        for (int w = 0; w < W; w++)
          for (int64_t v = 0; v < count(); v++) h[w][v] = splat(0.f);
      for (const float* next : {u, dt, static_cast<const float*>(y)}) __builtin_prefetch(next + element(t + kPrefetchSlots));
      const float *Bt = B + slot(t) * s.state, *Ct = C + slot(t) * s.state;
      Vec out[W];
      for (int w = 0; w < W; w++) {
        const int64_t i = element(t) + w;
        const Vec step = splat(dt[i]), x = splat(dt[i] * u[i]);
        out[w] = splat(0.f);
        for (int64_t v = 0; v < count(); v++) {
          h[w][v] = exp2_vec(step * rate[w][v]) * h[w][v] + x * load(Bt + v * kLanes);
          out[w] += h[w][v] * load(Ct + v * kLanes);
        }
      }
      sums(out, y + element(t));
    }
    if (end < s.slots)
      for (int w = 0; w < W; w++)
        for (int64_t v = 0; v < count(); v++) store(entries + entry(end / kChunk, w) + v * kLanes, h[w][v]);
  }

  // Backward of slots [first, last), chunk by chunk from the end. Accumulate into dB, dC and this row's part of dA; write du and
  // ddt. `carried` (W, N) is the gradient of the state at `last` on entry (zero at the end of the row) and at `first` on exit.
  void backward(int64_t first, int64_t last, const float* u, const float* dt, const float* B, const float* C,
                const bool* starts, const float* entries, const float* dy, float* carried, float* du, float* ddt,
                float* dA, float* dB, float* dC) const {
    thread_local std::vector<float> buffer;
    const int64_t per_slot = W * count() * kLanes;
    buffer.resize((2 * kChunk + 2) * per_slot);
    float* decays = buffer.data();
    float* states = decays + kChunk * per_slot;  // the first one is the entry state of the chunk
    float* zeros = states + (kChunk + 1) * per_slot;
    std::fill(zeros, zeros + per_slot, 0.f);
    Vec g[W][kBound], dA_sum[W][kBound];
    float* dA_row = dA + (row * s.channels + channel) * s.state;
    for (int w = 0; w < W; w++)
      for (int64_t v = 0; v < count(); v++) {
        g[w][v] = load(carried + w * s.state + v * kLanes);
        dA_sum[w][v] = load(dA_row + w * s.state + v * kLanes);
      }
    for (int64_t chunk = (last - 1) / kChunk; chunk >= first / kChunk; chunk--) {
      const int64_t begin = chunk * kChunk, end = std::min(s.slots, begin + kChunk);
      for (int w = 0; w < W; w++)
        std::copy_n(entries + entry(chunk, w), count() * kLanes, states + w * count() * kLanes);
      for (int64_t t = begin; t < end; t++) {
        const float* before = starts[slot(t)] ? zeros : states + (t - begin) * per_slot;
        for (const float* next : {u, dt, dy}) __builtin_prefetch(next + element(t - kChunk));
        for (const float* next : {du, ddt}) __builtin_prefetch(next + element(t), 1);
        recompute(t, u, dt, B, before, decays + (t - begin) * per_slot, states + (t - begin + 1) * per_slot);
      }
      for (int64_t t = end - 1; t >= begin; t--) {
        const bool start = starts[slot(t)];
        const float* before = start ? zeros : states + (t - begin) * per_slot;
        backward_slot(t, dy, u, dt, B, C, before, decays + (t - begin) * per_slot, states + (t - begin + 1) * per_slot, du,
                  ddt, dB, dC, g, dA_sum);
        if (start)
          for (int w = 0; w < W; w++)
            for (int64_t v = 0; v < count(); v++) g[w][v] = splat(0.f);
      }
    }
    for (int w = 0; w < W; w++)
      for (int64_t v = 0; v < count(); v++) {
        store(carried + w * s.state + v * kLanes, g[w][v]);
        store(dA_row + w * s.state + v * kLanes, dA_sum[w][v]);
      }
  }

 private:
  void recompute(int64_t t, const float* u, const float* dt, const float* B, const float* before, float* decay,
                 float* state) const {
    const float* Bt = B + slot(t) * s.state;
    for (int w = 0; w < W; w++) {
      const int64_t i = element(t) + w;
      const Vec step = splat(dt[i]), x = splat(dt[i] * u[i]);
      for (int64_t v = 0; v < count(); v++) {
        const int64_t at = (w * count() + v) * kLanes;
        const Vec a = exp2_vec(step * rate[w][v]);
        store(decay + at, a);
        store(state + at, a * load(before + at) + x * load(Bt + v * kLanes));
      }
    }
  }

  // Backward of one slot. On entry g is the gradient of h_t from later slots; on exit it is the gradient of h_{t-1}.
  void backward_slot(int64_t t, const float* dy, const float* u, const float* dt, const float* B, const float* C,
                 const float* before, const float* decay, const float* state, float* du, float* ddt, float* dB,
                 float* dC, Vec (*g)[kBound], Vec (*dA_sum)[kBound]) const {
    constexpr float ln2 = 0.6931471805599453f;
    const int64_t at_slot = slot(t) * s.state;
    Vec dx[W], dstep[W];
    for (int w = 0; w < W; w++) dx[w] = dstep[w] = splat(0.f);
    for (int64_t v = 0; v < count(); v++) {
      const int64_t n = at_slot + v * kLanes;
      const Vec Bt = load(B + n), Ct = load(C + n);
      Vec dBt = load(dB + n), dCt = load(dC + n);
      for (int w = 0; w < W; w++) {
        const int64_t i = element(t) + w, at = (w * count() + v) * kLanes;
        const Vec out = splat(dy[i]);
        const Vec dh = g[w][v] + out * Ct;
        dCt += out * load(state + at);
        dBt += dh * splat(dt[i] * u[i]);
        dx[w] += dh * Bt;
        g[w][v] = dh * load(decay + at);
        const Vec dlog = g[w][v] * load(before + at);
        dstep[w] += dlog * rate[w][v];
        dA_sum[w][v] += dlog * splat(dt[i]);
      }
      store(dB + n, dBt);
      store(dC + n, dCt);
    }
    float dx_sums[W], dstep_sums[W];
    sums(dx, dx_sums);
    sums(dstep, dstep_sums);
    for (int w = 0; w < W; w++) {
      const int64_t i = element(t) + w;
      du[i] = dx_sums[w] * dt[i];
      ddt[i] = dx_sums[w] * u[i] + dstep_sums[w] * ln2;
    }
  }
};

// Call work(ChannelGroup, part, begin, end) for every channel group of every row and every block of slots, with the blocks in
// forward or reverse order. One thread runs all blocks of a part, so that state carries from block to block.
template <int V, typename Work>
void run_jobs(const Sizes& s, const float* A, bool reversed, const Work& work) {
  const int64_t width = (s.channels + s.parts - 1) / s.parts, blocks = (s.slots + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(dynamic) num_threads(s.threads)
  for (int64_t job = 0; job < s.rows * s.parts; job++) {
    const int64_t row = job / s.parts, part = job % s.parts, last = std::min(s.channels, (part + 1) * width);
    for (int64_t number = 0; number < blocks; number++) {
      const int64_t begin = (reversed ? blocks - 1 - number : number) * kBlock, end = std::min(s.slots, begin + kBlock);
      int64_t channel = part * width;
      for (; channel + kChannels <= last; channel += kChannels)
        work(ChannelGroup<V, kChannels>(s, A, row, channel), part, begin, end);
      for (; channel < last; channel++) work(ChannelGroup<V, 1>(s, A, row, channel), part, begin, end);
    }
  }
}

template <typename Work>
void for_each_job(const Sizes& s, const float* A, bool reversed, const Work& work) {
  switch (s.state / kLanes) {
    case 1: return run_jobs<1>(s, A, reversed, work);
    case 2: return run_jobs<2>(s, A, reversed, work);
    case 4: return run_jobs<4>(s, A, reversed, work);
    case 8: return run_jobs<8>(s, A, reversed, work);
    default: return run_jobs<0>(s, A, reversed, work);
  }
}

}  // namespace

extern "C" {

void selective_scan_forward(const Sizes* sizes, const float* u, const float* dt, const float* A, const float* B,
                            const float* C, const bool* starts, float* y, float* entries) {
  for_each_job(*sizes, A, false, [=](const auto& group, int64_t, int64_t begin, int64_t end) {
    group.forward(begin, end, u, dt, B, C, starts, y, entries);
  });
}

// dA (B, E, N) has one partial sum per row; dB and dC (parts, B, L, N) have one per part of the channels. `carried` (B, E, N)
// is scratch. All four must be zero on entry.
void selective_scan_backward(const Sizes* sizes, const float* u, const float* dt, const float* A, const float* B,
                             const float* C, const bool* starts, const float* entries, const float* dy, float* du,
                             float* ddt, float* dA, float* dB, float* dC, float* carried) {
  const int64_t part_elements = sizes->rows * sizes->slots * sizes->state;
  const int64_t channels = sizes->channels, state = sizes->state;
  for_each_job(*sizes, A, true, [=](const auto& group, int64_t part, int64_t begin, int64_t end) {
    group.backward(begin, end, u, dt, B, C, starts, entries, dy,
                   carried + (group.row * channels + group.channel) * state, du, ddt, dA, dB + part * part_elements,
                   dC + part * part_elements);
  });
}

}  // extern "C"
