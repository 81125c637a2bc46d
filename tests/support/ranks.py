"""Run a function on several gloo ranks, each in its own process, with a deadline."""

import multiprocessing as mp
import os
import pickle
import queue
import time
import traceback
from collections.abc import Callable
from typing import Any

FORK_SERVER = mp.get_context("forkserver")
os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed's choice when the server imports it
# The server imports the heavy packages once; every rank is a fork of a process that ran nothing else.
# It finds installed modules only, and passes over others in silence.
FORK_SERVER.set_forkserver_preload(
    [
        "deepspeed",
        "longplay.launch.train",
        "longplay.launch.evaluate",
        "longplay.launch.prepare",
        "longplay.launch.recommend",
        # DeepSpeed imports these at its first engine, which takes seconds.
        "deepspeed.module_inject.auto_ep_layer",
        "deepspeed.runtime.zero.muon.muon_optimizer",
        "torch._dynamo",
        "torch._inductor.compile_fx",
    ]
)


def run_ranks(
    function: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 240.0
) -> list[Any]:
    """Call `function(world, *args)` on `world_size` ranks and return their results in rank order.

    All processes have ended when this returns or raises.

    Raises:
        AssertionError: a rank raised, with its traceback, or did not end in time.
    """
    from longplay.distributed.runtime.rendezvous import free_port

    results: Any = FORK_SERVER.Queue()
    port = free_port()
    ranks = [
        FORK_SERVER.Process(
            target=_rank_main, args=(function, rank, world_size, port, results, args), daemon=True
        )
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    try:
        return _collect(results, world_size, timeout_s)
    finally:
        for process in ranks:
            process.join(timeout=5)
            if process.is_alive():
                process.kill()
                process.join()


def _collect(results: Any, world_size: int, timeout_s: float) -> list[Any]:
    found: dict[int, Any] = {}
    deadline = time.monotonic() + timeout_s
    while len(found) < world_size:
        try:
            rank, value, failure = results.get(timeout=max(0.1, deadline - time.monotonic()))
        except queue.Empty:
            missing = sorted(set(range(world_size)) - set(found))
            raise AssertionError(f"ranks {missing} did not end within {timeout_s:.0f} s") from None
        if failure is not None:
            raise AssertionError(f"rank {rank} failed:\n{failure}")
        found[rank] = pickle.loads(value)
    return [found[rank] for rank in range(world_size)]


def _rank_main(
    function: Any, rank: int, world_size: int, port: int, results: Any, args: tuple[Any, ...]
) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    import torch

    from longplay.distributed.runtime.world import init_world

    torch.set_num_threads(1)
    try:
        world = init_world(device="cpu", timeout_s=60)
        # Bytes, because torch's pickling for queues keeps tensors in this process, which is about to end.
        value, failure = pickle.dumps(function(world, *args)), None
    except BaseException:
        value, failure = None, traceback.format_exc()
    results.put((rank, value, failure))
    results.close()
    results.join_thread()
    os._exit(0)  # no collective at exit: a failed rank must not wait for the others
