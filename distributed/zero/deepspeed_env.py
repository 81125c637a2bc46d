"""DeepSpeed with the settings that Longplay needs; only distributed/ uses it.

DeepSpeed serves one type of device per process and reads it when it is imported, so `init_world` imports it,
once the device is known. `comm` and `deepspeed` can be imported before, but used only afterwards.
"""

import importlib
import logging
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

import torch

_MODULES = (
    "deepspeed",
    "deepspeed.comm",
    "deepspeed.ops",
    "deepspeed.runtime.zero.parameter_offload",
    "deepspeed.runtime.zero.partition_parameters",
    "deepspeed.runtime.zero.partitioned_param_coordinator",
    "deepspeed.utils.groups",
)


def load_deepspeed(device_type: str) -> None:
    """Import DeepSpeed for "cpu" or "cuda". A second call for the same type does nothing.

    Raises:
        ValueError: this process uses DeepSpeed on the other type of device.
    """
    if "deepspeed" not in sys.modules:
        os.environ["DS_ACCELERATOR"] = device_type
        os.environ.setdefault("DS_LOG_LEVEL", "warning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _MODULES:
            importlib.import_module(name)
    current = sys.modules["deepspeed"].accelerator.get_accelerator().device_name()
    if current != device_type:
        raise ValueError(
            f"device: {device_type} cannot be used, because this process runs DeepSpeed on {current}; "
            f"use {current}, or start another process"
        )
    # DeepSpeed still calls collectives by names that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=r"`torch.distributed..*is deprecated", category=FutureWarning)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Longplay uses none of DeepSpeed's own ops. DeepSpeed would run compilers to see which ones it can build
    # here, and on a CPU compile the one for shared memory, in 25 to 65 s, when its communication starts.
    vars(sys.modules["deepspeed.ops"])["__compatible_ops__"] = {}


def use_default_group() -> None:
    """Let DeepSpeed's engines use the default process group; call it once the group exists.

    Otherwise they clone the group, which on GPUs is a second NCCL communicator. See `runtime.collectives`.
    """
    vars(sys.modules["deepspeed.utils.groups"])["_WORLD_GROUP"] = torch.distributed.group.WORLD


class _Loaded:
    """A module that `load_deepspeed` has imported when an attribute of it is read."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        assert self._name in sys.modules, "init_world comes before any use of DeepSpeed"
        return getattr(sys.modules[self._name], attribute)


if TYPE_CHECKING:
    import deepspeed
    import deepspeed.comm as comm
    import deepspeed.runtime.zero.partitioned_param_coordinator
else:
    deepspeed, comm = _Loaded("deepspeed"), _Loaded("deepspeed.comm")

__all__ = ["comm", "deepspeed", "load_deepspeed", "use_default_group"]
