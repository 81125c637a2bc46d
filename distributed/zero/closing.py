"""Free a DeepSpeed engine: its `destroy` removes hooks, but DeepSpeed 0.19.8 keeps other references to it."""

from typing import Any

from longplay.distributed.zero.deepspeed_env import deepspeed


def close_engine(engine: Any) -> None:
    """Remove DeepSpeed's references to `engine` and its module; neither can be used afterwards."""
    engine.destroy()
    modules = set(engine.module.modules())
    # ZeRO-3 pushes the whole module on this stack and never pops it.
    stack = deepspeed.runtime.zero.parameter_offload.FWD_MODULE_STACK
    stack[:] = [module for module in stack if module not in modules]
    _cached_releases().cache_clear()


def _cached_releases() -> Any:
    """Return ZeRO-3's cache of the parameters to release after a module: it holds modules of all engines."""
    coordinator = deepspeed.runtime.zero.partitioned_param_coordinator.PartitionedParameterCoordinator
    method: Any = vars(coordinator)[f"_{coordinator.__name__}__params_to_release"]
    return method.__closure__[0].cell_contents
