"""Import DeepSpeed with the settings Longplay needs; import it from nowhere else.

DeepSpeed picks its accelerator while it is imported and, on a CPU, compiles a shared-memory op when its
communication starts (25 to 65 s). Both are decided here, once.
"""

import logging
import os
import warnings

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DS_LOG_LEVEL", "warning")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import deepspeed
    import deepspeed.comm as comm
    import deepspeed.ops

# DeepSpeed still calls collectives by the names that torch 2.13 deprecates.
warnings.filterwarnings("ignore", message=r"`torch.distributed..*is deprecated", category=FutureWarning)
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)

# gloo's own all-reduce is what runs on a CPU; the op would only add a compilation at start.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

__all__ = ["comm", "deepspeed"]
