"""C++ beside the Python that calls it: built at first use, never required."""
