"""Import DeepSpeed with the settings that Longplay needs; only distributed/zero imports it.

DeepSpeed chooses its accelerator when it is imported. On a CPU it compiles a shared-memory op when its
communication starts, which takes 25 to 65 s. This module fixes both choices before the import.
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

# DeepSpeed still calls collectives by names that torch 2.13 deprecates.
warnings.filterwarnings("ignore", message=r"`torch.distributed..*is deprecated", category=FutureWarning)
logging.getLogger("DeepSpeed").setLevel(logging.WARNING)

# Collectives on a CPU run over gloo; compiling the op would only delay the start.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

__all__ = ["comm", "deepspeed"]
