"""The rank of this process, from the variables of torchrun or srun. Imports nothing that takes long."""

from collections.abc import Mapping

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_REMEDY = "start with torchrun or srun, or unset it"


def read_environment(env: Mapping[str, str]) -> tuple[int, int, int, str]:
    """Read (rank, local_rank, world_size, launcher) from torchrun's or srun's variables.

    A process of a Slurm batch script that `srun` did not start is a single process, for any SLURM_NTASKS.

    Raises:
        ValueError: only some of torchrun's variables are set, or they are not the numbers of a rank.
    """
    torchrun = [name for name in _TORCHRUN if name in env]
    if torchrun and len(torchrun) < 3:
        missing = sorted({*_TORCHRUN} - {*torchrun})
        raise ValueError(f"{', '.join(torchrun)} is set but {', '.join(missing)} is not: {_REMEDY}")
    if torchrun:
        return *_numbers(env, *_TORCHRUN), "torchrun"
    if "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
        size = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
        return *_numbers(env, "SLURM_PROCID", "SLURM_LOCALID", size), "srun"
    return 0, 0, 1, "single process"


def is_other_rank(env: Mapping[str, str]) -> bool:
    """Return whether this is not rank 0, which prints what concerns all ranks."""
    try:
        return read_environment(env)[0] != 0
    except ValueError:
        return False


def _numbers(env: Mapping[str, str], rank: str, local_rank: str, size: str) -> tuple[int, int, int]:
    numbers = []
    for name, default in ((rank, "0"), (local_rank, "0"), (size, "1")):
        text = env.get(name, default)
        if not text.isdecimal():
            raise ValueError(f"{name}={text}: is not a number; {_REMEDY}")
        numbers.append(int(text))
    if numbers[0] >= numbers[2]:
        raise ValueError(f"{rank}={numbers[0]}: is not below {size}={numbers[2]}; {_REMEDY}")
    return numbers[0], numbers[1], numbers[2]
