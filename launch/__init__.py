"""The commands, their configuration, and what they print."""

import os

# Set before torch is loaded. This one keeps PyTorch's profiler from printing when it starts and stops.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
# OpenMP's threads sleep while they wait for each other. By default they spin, and on cores that also run
# other programs a step then takes ten times as long; see benchmarks/results/2026-11-27-busy-cores.md.
if "GOMP_SPINCOUNT" not in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
