// Copy the segments of packed rows from the concatenated items, with their targets and segment numbers, or from
// any other column of the events.

#include <algorithm>
#include <cstdint>

// The same fields as fill_rows._Sizes. `value_bytes` is the size of a column's value.
struct Sizes {
  int64_t rows, length, value_bytes;
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

extern "C" void fill_column(const Sizes* sizes, const char* values, const int64_t* sources, const int64_t* lengths,
                            const int64_t* row_ptr, char* out) {
  const int64_t bytes = sizes->value_bytes;
  for (int64_t row = 0; row < sizes->rows; row++) {
    char* slot = out + row * sizes->length * bytes;
    char* const end = slot + sizes->length * bytes;
    for (int64_t segment = row_ptr[row]; segment < row_ptr[row + 1]; segment++) {
      slot = std::copy_n(values + sources[segment] * bytes, lengths[segment] * bytes, slot);
    }
    std::fill(slot, end, 0);
  }
}
