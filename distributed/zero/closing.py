"""Free a DeepSpeed engine: its `destroy` removes hooks, but DeepSpeed 0.19.8 keeps other references to it."""

from typing import Any

from longplay.distributed.zero.deepspeed_env import deepspeed  # noqa: F401 -- sets DeepSpeed up

from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK  # isort: skip
from deepspeed.runtime.zero.partitioned_param_coordinator import (  # isort: skip
    PartitionedParameterCoordinator,
)


def close_engine(engine: Any) -> None:
    """Remove DeepSpeed's references to `engine` and its module; neither can be used afterwards."""
    engine.destroy()
    modules = set(engine.module.modules())
    # ZeRO-3 pushes the whole module on this stack and never pops it.
    FWD_MODULE_STACK[:] = [module for module in FWD_MODULE_STACK if module not in modules]
    _cached_releases().cache_clear()


def _cached_releases() -> Any:
    """Return ZeRO-3's cache of the parameters to release after a module: it holds modules of all engines."""
    method: Any = vars(PartitionedParameterCoordinator)["_PartitionedParameterCoordinator__params_to_release"]
    return method.__closure__[0].cell_contents
