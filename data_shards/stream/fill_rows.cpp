// Copy the segments of packed rows from the concatenated items, with their targets and segment numbers.

#include <algorithm>
#include <cstdint>

// The same fields as fill_rows._Sizes.
struct Sizes {
  int64_t rows, length;
};

extern "C" void fill_rows(const Sizes* sizes, const int32_t* items, const int64_t* sources, const int64_t* lengths,
                          const int64_t* row_ptr, int64_t* item_ids, int64_t* targets, int32_t* seq_idx) {
  for (int64_t row = 0; row < sizes->rows; row++) {
    int64_t slot = row * sizes->length;
    const int64_t end = slot + sizes->length;
    for (int64_t segment = row_ptr[row]; segment < row_ptr[row + 1]; segment++) {
      const int32_t* events = items + sources[segment];
      const int64_t count = lengths[segment];
      std::copy_n(events, count, item_ids + slot);
      std::copy_n(events + 1, count, targets + slot);
      std::fill_n(seq_idx + slot, count, static_cast<int32_t>(segment - row_ptr[row]));
      slot += count;
    }
    std::fill(item_ids + slot, item_ids + end, 0);
    std::fill(targets + slot, targets + end, 0);
    std::fill(seq_idx + slot, seq_idx + end, static_cast<int32_t>(row_ptr[row + 1] - row_ptr[row]));
  }
}
