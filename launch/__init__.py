"""The commands, their configuration, and what they print."""

import os

# PyTorch's profiler announces its start and stop in two lines of its own; it reads this when it is loaded.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
