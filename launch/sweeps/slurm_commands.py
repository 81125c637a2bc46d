"""Run Slurm's commands, and read the limits of the cluster."""

import os
import re
import subprocess
from dataclasses import dataclass

from longplay.launch.settings.errors import ConfigError

_TIMEOUT_S = 60.0
_DEFAULT_MAX_ARRAY_SIZE = 1001  # of Slurm


def run_slurm(*words: str) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands.

    Raises:
        ConfigError: it is not installed or does not respond.
    """
    env = dict(os.environ, SLURM_TIME_FORMAT="standard")
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=_TIMEOUT_S, env=env)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{words[0]}: no response from Slurm in {_TIMEOUT_S:.0f} s; try later") from None
    except FileNotFoundError:
        raise ConfigError(f"{words[0]}: not found; install Slurm's client commands") from None


@dataclass(frozen=True, kw_only=True)
class ClusterLimits:
    """Settings of a Slurm cluster.

    Attributes:
        name: its ClusterName; "" if unknown.
        max_array_tasks: number of tasks that one job array may have; 1 where arrays are disabled.
    """

    name: str
    max_array_tasks: int


def read_limits() -> ClusterLimits:
    """Return the cluster's settings, from `scontrol show config`; Slurm's defaults where it prints none."""
    printed = run_slurm("scontrol", "show", "config").stdout
    name = re.search(r"^ClusterName\s*= *(\S+)", printed, re.MULTILINE)
    size = re.search(r"^MaxArraySize\s*= *(\d+)", printed, re.MULTILINE)
    limits = [int(size[1]) if size else _DEFAULT_MAX_ARRAY_SIZE]
    limits += map(int, re.findall(r"\bmax_array_tasks=(\d+)", printed))
    return ClusterLimits(name=name[1] if name else "", max_array_tasks=max(1, min(limits)))
