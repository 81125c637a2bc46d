"""Benchmarks. Run them as `python -m benchmarks.NAME` from the root of the repository; see README.md."""
