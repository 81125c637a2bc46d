"""Rank, world size and rendezvous from each launcher's environment variables."""

import contextlib
import os
import socket
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from longplay.distributed.runtime.launchers import is_other_rank, read_environment
from longplay.distributed.runtime.rendezvous import first_host, slurm_rendezvous
from longplay.distributed.runtime.world import (
    close_world,
    init_world,
    local_world_size,
    select_device,
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


@pytest.mark.parametrize(
    ("rank", "size", "problem"),
    [
        ("abc", "2", "RANK=abc: is not a number"),
        ("-1", "2", "RANK=-1: is not a number"),
        ("0", "", "WORLD_SIZE=: is not a number"),
        ("2", "2", "RANK=2: is not below WORLD_SIZE=2"),
    ],
)
def test_numbers_that_are_not_those_of_a_rank_are_refused_aloud(rank: str, size: str, problem: str) -> None:
    env = {"RANK": rank, "LOCAL_RANK": "0", "WORLD_SIZE": size}
    with pytest.raises(ValueError, match=f"{problem}.*; start with torchrun or srun, or unset it"):
        read_environment(env)
    assert not is_other_rank(env)
    assert not is_other_rank({"RANK": "1"})  # left over in a shell
    assert is_other_rank({"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2"})


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


VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
JOB = os.getpid()  # other workers run tests of this file at the same time
STEP = {"SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(JOB), "SLURM_STEP_ID": "3"}


def meet(
    env: dict[str, str],
    ranks: Sequence[int],
    world_size: int,
    timeout_s: float = 20.0,
    command: Sequence[str] | None = None,
) -> list[Any]:
    """Return the rendezvous of each of these ranks, or its error."""
    found: dict[int, Any] = {}

    def run(rank: int) -> None:
        try:
            found[rank] = slurm_rendezvous(
                env, rank=rank, world_size=world_size, timeout_s=timeout_s, command=command
            )
        except (RuntimeError, ValueError) as error:
            found[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in ranks]


def listening(port: int) -> socket.socket | None:
    try:
        return socket.create_server(("", port))
    except OSError:
        return None  # in use on this machine already, which serves the test as well


def test_ranks_of_a_step_agree_on_a_free_port() -> None:
    for _ in range(2):  # also for a second process group in the same step
        found = meet(STEP, [2, 1, 3, 0], 4)
        assert len(set(found)) == 1
        address, port = found[0]
        assert address == "localhost"
        with socket.create_server(("", port)):
            pass


def test_ranks_pass_over_ports_that_other_programs_use() -> None:
    others = [listening(20000 + (JOB * 7 + 3 + more) % 12000) for more in (0, 701)]
    answers = others[0]

    def answer() -> None:
        with contextlib.suppress(OSError):
            while answers is not None:
                connection, _ = answers.accept()
                connection.sendall(b"SSH-2.0-OpenSSH\r\n")
                connection.close()

    threading.Thread(target=answer, daemon=True).start()
    try:
        found = meet(STEP, [0, 1, 2], 3)
    finally:
        for each in others:
            if each is not None:
                each.close()
    assert len(set(found)) == 1
    assert isinstance(found[0], tuple)


def test_steps_with_the_same_ports_do_not_mix() -> None:
    other = {**STEP, "SLURM_JOB_ID": str(JOB + 12000)}
    both: dict[int, list[Any]] = {}
    envs = {0: STEP, 1: other}
    threads = [
        threading.Thread(target=lambda key=key: both.update({key: meet(envs[key], [0, 1], 2)}), daemon=True)
        for key in envs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert both[0][0] == both[0][1]
    assert both[1][0] == both[1][1]
    assert both[0][0] != both[1][0]


def test_two_commands_in_one_step_do_not_mix() -> None:
    """A rank of the second command comes first, when only rank 0 of the first one can answer."""
    found: dict[str, list[Any]] = {}

    def run(key: str, ranks: list[int], command: list[str]) -> threading.Thread:
        thread = threading.Thread(
            target=lambda: found.update({key: meet(STEP, ranks, 2, command=command)}), daemon=True
        )
        thread.start()
        return thread

    first, second = ["train", "a"], ["train", "b"]
    threads = [run("first 0", [0], first), run("second 1", [1], second)]
    threads += [run("second 0", [0], second), run("first 1", [1], first)]
    for thread in threads:
        thread.join()
    assert found["first 0"] == found["first 1"]
    assert found["second 0"] == found["second 1"]
    assert found["first 0"] != found["second 0"]


def test_ranks_that_do_not_start_are_named() -> None:
    (error,) = meet(STEP, [0], 3, timeout_s=0.2)
    assert str(error) == "of 3 ranks, these did not start in time: 1, 2"
    (error,) = meet(STEP, [1], 2, timeout_s=0.2)
    assert str(error).startswith("rank 0 did not respond at localhost in time")


def test_master_address_and_port_each_replace_the_choice() -> None:
    assert meet({**STEP, "MASTER_PORT": "29500"}, [1], 2) == [("localhost", 29500)]
    env = {**STEP, "SLURM_STEP_NODELIST": "nowhere.invalid", "MASTER_ADDR": "127.0.0.1"}
    found = meet(env, [0, 1], 2)
    assert found[0] == found[1]
    assert found[0][0] == "127.0.0.1"
    (error,) = meet({**STEP, "MASTER_PORT": "ib0"}, [1], 2)
    assert str(error).startswith("MASTER_PORT=ib0: is not a port")
    (error,) = meet({**STEP, "SLURM_STEP_NODELIST": ""}, [1], 2)
    assert "set MASTER_ADDR" in str(error)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Unset a launcher's variables, and replace DeepSpeed's process group by nothing."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("longplay.distributed.runtime.world.load_deepspeed", lambda device_type: None)
    nothing = SimpleNamespace(init_distributed=lambda **_: None, destroy_process_group=lambda: None)
    monkeypatch.setattr("longplay.distributed.runtime.world.comm", nothing)
    monkeypatch.setattr("longplay.distributed.runtime.world.use_default_group", lambda: None)
    return monkeypatch


def test_a_process_alone_needs_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a port in the environment of its srun step nor one that was free a moment ago is used."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("", 0)) as other_program:
        port = other_program.getsockname()[1]
        step = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1"}
        for name, value in {**STEP, **step, "MASTER_PORT": str(port)}.items():
            monkeypatch.setenv(name, value)
        # A command that failed earlier in this process may have left its world, and what it restores, behind.
        monkeypatch.setattr("longplay.distributed.runtime.world._variables_before", {})
        for module in ("rendezvous", "world"):
            monkeypatch.setattr(
                f"longplay.distributed.runtime.{module}.free_port", lambda port=port: port, raising=False
            )
        before = {name: os.environ.get(name) for name in VARIABLES}
        for _ in range(2):  # a process may form a world after another
            world = init_world(device="cpu")
            assert (world.world_size, world.launcher, os.environ["RANK"]) == (1, "srun", "0")
            assert "MASTER_PORT" not in os.environ  # what starts in this process meets nobody either
            torch.distributed.all_reduce(torch.ones(1))
            assert read_environment(os.environ) == (0, 0, 1, "torchrun")
            close_world(world)
            assert {name: os.environ.get(name) for name in VARIABLES} == before


@pytest.mark.parametrize(
    ("given", "missing"), [("MASTER_ADDR", "MASTER_PORT"), ("MASTER_PORT", "MASTER_ADDR")]
)
def test_half_a_rendezvous_is_refused_by_name(bare: pytest.MonkeyPatch, given: str, missing: str) -> None:
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", given: "29500"}.items():
        bare.setenv(name, value)
    with pytest.raises(ValueError, match=f"RANK is set but {missing} not: set both"):
        init_world(device="cpu")


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
    monkeypatch.setattr("longplay.distributed.runtime.world.use_default_group", lambda: None)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
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
