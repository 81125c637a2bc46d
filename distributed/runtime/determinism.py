"""Deterministic algorithms on a GPU (`train.deterministic`)."""

import os

import torch

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
_DETERMINISTIC_WORKSPACES = ":4096:8", ":16:8"


def use_deterministic_algorithms(device: torch.device) -> None:
    """Let PyTorch and cuBLAS use deterministic algorithms only, and raise for an operation without one.

    Changes nothing on a CPU, where all of Longplay's algorithms are deterministic. Call it before the first
    matrix product and before mamba-ssm is imported: cuBLAS and mamba-ssm choose their algorithms then.

    Raises:
        ValueError: CUBLAS_WORKSPACE_CONFIG has a value with which cuBLAS is not deterministic.
    """
    if device.type != "cuda":
        return
    workspace = os.environ.setdefault(_WORKSPACE, _DETERMINISTIC_WORKSPACES[0])
    if workspace not in _DETERMINISTIC_WORKSPACES:
        raise ValueError(
            f"train.deterministic: with {_WORKSPACE}={workspace!r} in the environment, matrix products "
            f"differ between runs; set it to {' or '.join(_DETERMINISTIC_WORKSPACES)}, or unset it"
        )
    torch.use_deterministic_algorithms(True)
    # Otherwise PyTorch fills each new tensor. Longplay reads no element that it has not written.
    vars(torch.utils)["deterministic"].fill_uninitialized_memory = False
