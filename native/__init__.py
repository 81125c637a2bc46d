"""Compile and load C++ sources. The C++ is optional and built at first use."""
