"""The commands, their configuration, and what they print."""

import os

# Keeps PyTorch's profiler from printing when it starts and stops. It must be set before torch is loaded.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
