"""Rank, world size and rendezvous from each launcher's environment variables."""

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longplay.distributed.runtime.world import (
    first_host,
    init_world,
    local_world_size,
    read_environment,
    select_device,
    slurm_rendezvous,
)
from longplay.distributed.zero.deepspeed_env import load_deepspeed


def test_a_plain_process_is_a_single_rank() -> None:
    assert read_environment({}) == (0, 0, 1, "single process")


def test_torchrun_variables_take_precedence_over_srun() -> None:
    env = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3"}
    assert read_environment(env) == (5, 1, 8, "torchrun")


def test_an_incomplete_set_of_torchrun_variables_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"RANK is set but LOCAL_RANK, WORLD_SIZE is not"):
        read_environment({"RANK": "0"})


def test_srun_variables_of_the_step_are_read() -> None:
    env = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4"}
    assert read_environment(env) == (3, 1, 4, "srun")


def test_a_batch_script_outside_srun_is_a_single_rank() -> None:
    assert read_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_JOB_ID": "7"})[2] == 1


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("node1", "node1"),
        ("gpu[003-006,9],login1", "gpu003"),
        ("a-[7,9]", "a-7"),
        ("x1,x2", "x1"),
        ("rack[0-63]_blade[0-41]", "rack0_blade0"),
        ("r[02,4]c[3-5]n[07-09]-ib,login1", "r02c3n07-ib"),
        ("nodeA,nodeB[001,003]", "nodeA"),
    ],
)
def test_first_host_of_a_node_list(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


def test_steps_of_one_job_use_different_ports() -> None:
    env = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_ID": "41", "SLURM_STEP_ID": "0"}
    host, port = slurm_rendezvous(env)
    assert host == "n1"
    assert 20000 <= port < 32000
    assert slurm_rendezvous({**env, "SLURM_STEP_ID": "1"})[1] != port


def test_an_unknown_device_is_rejected_before_a_process_group_exists() -> None:
    with pytest.raises(ValueError, match="device: 'tpu' is not one of auto, cpu, cuda"):
        init_world(device="tpu")


@pytest.mark.parametrize(("found", "expected"), [(False, "cpu"), (True, "cuda")])
def test_auto_selects_a_gpu_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, found: bool, expected: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: found)
    assert select_device("auto") == expected
    assert select_device("cpu") == "cpu"


def test_a_rank_that_sees_only_its_own_gpu_uses_number_0_in_deepspeed_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    monkeypatch.setattr("longplay.distributed.runtime.world.load_deepspeed", lambda device_type: None)
    started: dict[str, Any] = {}
    stub = SimpleNamespace(init_distributed=lambda **arguments: started.update(arguments))
    monkeypatch.setattr("longplay.distributed.runtime.world.comm", stub)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    world = init_world(device="cuda")
    assert (world.device, world.local_rank) == (torch.device("cuda", 0), 1)
    assert (started["dist_backend"], started["rank"], os.environ["LOCAL_RANK"]) == ("nccl", 1, "0")


def test_a_process_uses_one_type_of_device(monkeypatch: pytest.MonkeyPatch) -> None:
    load_deepspeed("cpu")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(ValueError, match="this process runs DeepSpeed on cpu; use cpu, or start another"):
        init_world(device="cuda")


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, 9),
        ({"LOCAL_WORLD_SIZE": "2"}, 2),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),1"}, 4),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),1", "SLURM_NODEID": "1"}, 4),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),1", "SLURM_NODEID": "2"}, 1),
        ({"SLURM_STEP_TASKS_PER_NODE": "5,4"}, 5),
        ({"SLURM_STEP_TASKS_PER_NODE": "1"}, 9),
        ({"LOCAL_WORLD_SIZE": "2", "SLURM_STEP_TASKS_PER_NODE": "4"}, 2),
    ],
)
def test_local_world_size_comes_from_the_launcher(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: int
) -> None:
    for name in ("LOCAL_WORLD_SIZE", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert local_world_size(9) == expected
