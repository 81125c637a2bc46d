"""The `World` of this process: its rank, as started by torchrun, by srun or as a single process."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta

import torch

from longplay.distributed.runtime.allocator import keep_freed_memory
from longplay.distributed.runtime.launchers import read_environment
from longplay.distributed.runtime.rendezvous import agree_on_port, read_port, slurm_rendezvous
from longplay.distributed.runtime.waiting import waiting
from longplay.distributed.zero.deepspeed_env import comm, load_deepspeed, use_default_group

LOCAL_JOB = "LONGPLAY_LOCAL_JOB"
"""Variable with the number of a local job of a sweep, whose ranks agree on a port."""
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_variables_before: dict[str, str | None] = {}


@dataclass(frozen=True, kw_only=True)
class World:
    """This process's rank among all ranks.

    Attributes:
        rank: number of this process, 0..world_size - 1.
        local_rank: its number on this machine.
        world_size: number of ranks.
        device: the device of its encoder and of its shard of the item table.
        launcher: "single process", "torchrun" or "srun".
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    launcher: str = "single process"

    @property
    def is_rank0(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0


def local_world_size(world_size: int) -> int:
    """Return the number of ranks on this machine, from torchrun or srun; else `world_size`.

    The counts of an srun step apply only to a world of that step's size.
    """
    env = os.environ
    if env.get("LOCAL_WORLD_SIZE", "").isdigit():
        return int(env["LOCAL_WORLD_SIZE"])
    counts: list[int] = []  # Slurm writes 4(x2),1 for nodes of 4, 4 and 1 tasks
    for tasks, nodes in re.findall(r"(\d+)(?:\(x(\d+)\))?", env.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(tasks)] * int(nodes or 1)
    node = int(env.get("SLURM_NODEID", "0"))
    return counts[node] if sum(counts) == world_size and node < len(counts) else world_size


def select_device(device: str) -> str:
    """Return "cpu" or "cuda" for "auto", "cpu" or "cuda"; with "cpu", CUDA is not touched.

    Raises:
        ValueError: the device is unknown or absent.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: {device!r} is not one of auto, cpu, cuda")
    if device == "cpu" or torch.cuda.is_available():
        return "cpu" if device == "cpu" else "cuda"
    if device == "cuda":
        raise ValueError("device: cuda needs a GPU and torch finds none; use cpu or auto")
    return "cpu"


def init_world(*, device: str = "auto", timeout_s: float = 600.0) -> World:
    """Join the process group (NCCL on GPUs, gloo on CPUs) and return this rank's `World`. Collective.

    On a CPU, also call `keep_freed_memory`.

    Args:
        device: "cpu", "cuda", or "auto" for a GPU if there is one, else the CPU.
        timeout_s: a collective fails if the other ranks do not respond for this long, so that a dead rank
            ends the job.

    Raises:
        ValueError: the device is unknown or absent, this process has used another one, or the launcher's
            variables are inconsistent.
    """
    device_type = select_device(device)
    rank, local_rank, world_size, launcher = read_environment(os.environ)
    load_deepspeed(device_type)
    if device_type == "cuda":
        # A launcher may show each rank all GPUs of the machine, or only its own as number 0.
        where = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(where)
    else:
        where = torch.device("cpu")
        keep_freed_memory()

    met = _rendezvous(rank, world_size, launcher, timeout_s)
    # DeepSpeed takes LOCAL_RANK as the number of the GPU.
    device_index = local_rank if where.index is None else where.index
    values = (str(rank), str(device_index), str(world_size), *(map(str, met) if met else (None, None)))
    if not _variables_before:
        _variables_before.update({name: os.environ.get(name) for name in _VARIABLES})
    _set_variables(zip(_VARIABLES, values, strict=True))
    backend, timeout = "nccl" if device_type == "cuda" else "gloo", timedelta(seconds=timeout_s)
    if met is None and not torch.distributed.is_initialized():  # an earlier command may have failed
        store = torch.distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]  # it is documented
        torch.distributed.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=timeout
        )
    comm.init_distributed(
        dist_backend=backend,
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timeout,
        rank=rank,
        world_size=world_size,
    )
    use_default_group()
    return World(rank=rank, local_rank=local_rank, world_size=world_size, device=where, launcher=launcher)


def _rendezvous(rank: int, world_size: int, launcher: str, timeout_s: float) -> tuple[str, int] | None:
    """Return the address and the port at which the ranks meet. Collective under srun and in local jobs.

    None = a single process, which needs no port, so that any number of them may run in one srun step. Under
    torchrun, or with both MASTER_ADDR and MASTER_PORT set by hand, it uses that port.
    """
    env = os.environ
    if world_size > 1 and LOCAL_JOB in env:
        job, address = env[LOCAL_JOB], "127.0.0.1"
        return address, agree_on_port(
            address,
            name=f"local-{job}",
            first=int(job) * 7,
            rank=rank,
            world_size=world_size,
            timeout_s=timeout_s,
        )
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not env.get(name)]
    if world_size == 1 and (launcher != "torchrun" or len(missing) == 2):
        return None
    if launcher == "srun":
        return slurm_rendezvous(env, rank=rank, world_size=world_size, timeout_s=timeout_s)
    if missing:
        raise ValueError(
            f"RANK is set but {' and '.join(missing)} not: set both variables, or start with torchrun or srun"
        )
    return env["MASTER_ADDR"], read_port(env["MASTER_PORT"])


def barrier(world: World) -> None:
    """Wait until every rank is here. Collective."""
    if world.world_size > 1:
        with waiting("the other ranks"):
            comm.barrier(device_ids=None if world.device.index is None else [world.device.index])


def close_world(world: World) -> None:
    """Leave the process group and restore the variables that `init_world` set. Collective.

    Call it only after success: if a rank fails, it never reaches the barrier.
    """
    barrier(world)
    comm.destroy_process_group()
    _set_variables(_variables_before.items())
    _variables_before.clear()


def _set_variables(values: Iterable[tuple[str, str | None]]) -> None:
    """Set variables of the environment, or unset those that are None."""
    for name, value in values:
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
