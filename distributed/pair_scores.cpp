// Dot products of chosen pairs of vectors, on the CPU: float32, OpenMP. Neither vector of a pair is copied.

#include <cmath>
#include <cstdint>

// Mirrored by score_counts._PairSizes.
struct Sizes {
  int64_t pairs, width, threads;
};

// scores[p] = queries[query[p]] . rows[row[p]] and norms[p] = |rows[row[p]]|; queries (Q, D), rows (R, D), the rest (P,).
extern "C" void pair_scores(const Sizes* sizes, const float* queries, const int64_t* query, const float* rows,
                            const int64_t* row, float* scores, float* norms) {
  const Sizes s = *sizes;
#pragma omp parallel for schedule(static) num_threads(s.threads)
  for (int64_t p = 0; p < s.pairs; p++) {
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
