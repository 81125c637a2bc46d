"""Import DeepSpeed for the CPU; the fork server preloads this module."""

from longplay.distributed.zero.deepspeed_env import load_deepspeed

load_deepspeed("cpu")
