// Float32 scores and counts for exact rankings on the CPU, parallel by OpenMP.

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace {

constexpr int64_t kBlock = 1 << 20;  // scores counted in one 32-bit counter

}  // namespace

// score_counts._Sizes has the same fields.
struct Sizes {
  int64_t count, width, threads;
};

extern "C" {

// scores[p] = queries[query[p]] . rows[row[p]] and norms[p] = |rows[row[p]]|; queries (Q, D), rows (R, D), the rest (P,).
void pair_scores(const Sizes* sizes, const float* queries, const int64_t* query, const float* rows, const int64_t* row,
                 float* scores, float* norms) {
  const Sizes s = *sizes;
#pragma omp parallel for schedule(static) num_threads(s.threads)
  for (int64_t p = 0; p < s.count; p++) {
    const float *a = queries + query[p] * s.width, *b = rows + row[p] * s.width;
    float dot = 0.f, square = 0.f;
#pragma omp simd reduction(+ : dot, square)
    for (int64_t d = 0; d < s.width; d++) {
      dot += a[d] * b[d];
      square += b[d] * b[d];
    }
    scores[p] = dot;
    norms[p] = std::sqrt(square);
  }
}

// Count each query's scores > above[q] (surely) and >= below[q] (perhaps); scores (Q, R), the rest (Q,).
void count_scores(const Sizes* sizes, const float* scores, const float* above, const float* below, int64_t* surely,
                  int64_t* perhaps) {
  const Sizes s = *sizes;
#pragma omp parallel for schedule(static) num_threads(s.threads)
  for (int64_t q = 0; q < s.count; q++) {
    const float *own = scores + q * s.width, high = above[q], low = below[q];
    int64_t highs = 0, lows = 0;
    for (int64_t begin = 0; begin < s.width; begin += kBlock) {
      int32_t higher = 0, not_lower = 0;
#pragma omp simd reduction(+ : higher, not_lower)
      for (int64_t r = begin; r < std::min(s.width, begin + kBlock); r++) {
        higher += own[r] > high;
        not_lower += own[r] >= low;
      }
      highs += higher;
      lows += not_lower;
    }
    surely[q] = highs;
    perhaps[q] = lows;
  }
}

}  // extern "C"
