"""Compare the memory estimate of `longplay plan` with what PyTorch allocates.

    .venv/bin/python -m benchmarks.plan

Each case (a model, sizes, a loss and a table) runs in its own process. It takes three steps under
torch.profiler, which records every allocation and release of a tensor; the peak of their running sum is the
peak of the run and repeats exactly. A second process takes the same steps without the profiler and measures
the growth of its resident memory. That growth also includes what the allocator keeps, what the C++ code
allocates and what libraries allocate on first use; it excludes pages that are never touched.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

MODELS = ("gru4rec", "sasrec", "mambarec", "recmamba", "moematrrec")
SIZES = {
    "small": ["--context_length", "100", "--data.rows_per_step", "24", "--encoder.d_model", "32"],
    "recipe": [],
    "long": [
        *("--context_length", "1000", "--data.rows_per_step", "12", "--encoder.num_blocks", "2"),
        *(
            "--loss.name",
            "sampled_softmax",
            "--loss.num_negatives",
            "512",
            "--engine.gradient_accumulation_steps",
            "2",
        ),
    ],
}
OTHERS = {
    "large": ["mambarec", "--data.rows_per_step", "120", "--context_length", "600", "--loss.name", "bce"],
    "large, padded": [
        "sasrec",
        "--data.rows_per_step",
        "180",
        "--context_length",
        "300",
        "--loss.name",
        "bce",
    ],
    "mamba2": ["mambarec", "--encoder.mixer", "mamba2", "--loss.name", "bce"],
    "chunk": [
        "mambarec",
        "--encoder.scan_backend",
        "chunk",
        "--loss.name",
        "bpr",
        "--loss.num_negatives",
        "4",
    ],
    "bf16": ["recmamba", "--engine.precision", "bf16", "--loss.name", "bce"],
    "zero 3, zero_dense": [
        *("mambarec", "--engine.zero_stage", "3", "--table.update", "zero_dense", "--encoder.d_model", "128"),
        *("--data.rows_per_step", "12", "--context_length", "50"),
    ],
    "adagrad, wide table": [
        *("sasrec", "--table.optimizer.name", "adagrad", "--encoder.d_model", "256", "--data.rows_per_step"),
        *("12", "--context_length", "50", "--loss.name", "sampled_softmax", "--loss.num_negatives", "2000"),
    ],
}


def cases() -> dict[str, list[str]]:
    """Return name -> recipe and overrides."""
    found = {f"{model}, {size}": [model, *words] for model in MODELS for size, words in SIZES.items()}
    return found | {f"{words[0]}, {name}": words for name, words in OTHERS.items()}


def main() -> None:
    """Run the cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="run only cases whose name contains this")
    parser.add_argument("--case", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        what, data, recipe, *overrides = args.case
        print(json.dumps(measure(what, Path(data), recipe, overrides)))
        sys.stdout.flush()
        os._exit(0)  # the process group ends with the process
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(Path(folder))
        print(
            "| case | slots | planned, MiB | allocated, MiB | ratio | with reserve, MiB | RSS, MiB | ratio |"
        )
        print("|---|---|---|---|---|---|---|---|")
        ratios = []
        for name, words in cases().items():
            if args.only not in name:
                continue
            found = run_case("allocated", data, words) | run_case("rss", data, words)
            ratios.append(found["planned"] / found["allocated"])
            print(
                f"| {name} | {found['slots']:,} | {found['planned'] / 2**20:,.1f} "
                f"| {found['allocated'] / 2**20:,.1f} | {ratios[-1]:.2f} "
                f"| {found['planned_rss'] / 2**20:,.1f} | {found['rss'] / 2**20:,.1f} "
                f"| {found['planned_rss'] / found['rss']:.2f} |",
                flush=True,
            )
        print(f"\nfrom {min(ratios):.2f} to {max(ratios):.2f}")


def make_data(folder: Path) -> Path:
    """Prepare a dataset of 600 users, 20,000 items and 120,000 events."""
    from longplay.data_shards.preparation.options import PrepareOptions
    from longplay.data_shards.preparation.pipeline import prepare_dataset
    from longplay.data_shards.readers.synthetic import SyntheticSource

    source = SyntheticSource(users=600, items=20_000, events=120_000, seed=5)
    prepare_dataset(source, folder / "data", PrepareOptions())
    return folder / "data"


def run_case(what: str, data: Path, words: list[str]) -> dict[str, Any]:
    """Measure one case in its own process; `what` as in `measure`."""
    command = [sys.executable, "-m", "benchmarks.plan", "--case", what, str(data), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(what: str, data: Path, recipe: str, overrides: list[str]) -> dict[str, Any]:
    """Return the estimated and the allocated bytes of one configuration on one rank.

    With `what` "rss", return the growth of resident memory instead of the allocated bytes.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    from longplay.data_shards.storage.dataset import Dataset
    from longplay.data_shards.stream.train_stream import TrainStream
    from longplay.distributed.runtime.world import init_world
    from longplay.launch.estimates.estimate_run import estimate_run
    from longplay.launch.estimates.memory_estimate import ALLOCATOR
    from longplay.launch.settings.recipes import get_recipe
    from longplay.launch.settings.resolving import resolve
    from longplay.launch.training.model import build_model
    from longplay.launch.training.step_pipeline import StepPipeline
    from longplay.launch.training.train_step import train_step
    from longplay.models.encoder_size import num_parameters

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    config = resolve(recipe, get_recipe(recipe), overrides)
    # Most pages of DeepSpeed's buckets are never touched on a CPU: the estimate excludes them.
    bucket = str(num_parameters(config.encoder))
    config = resolve(recipe, get_recipe(recipe), [*overrides, "--engine.reduce_bucket_elements", bucket])
    dataset = Dataset.open(data)
    plan = estimate_run(config, dataset, device_type="cpu")
    world = init_world(device="cpu")
    batches = iter(TrainStream(dataset, config.data))
    few = [next(batches) for _ in range(3)]

    def train() -> None:
        model = build_model(config, dataset, world)
        pipeline = StepPipeline(model, iter(few))
        for _ in few:
            train_step(model, pipeline.take(), lr=1e-3)
        model.engine.close()

    if what == "rss":
        # DeepSpeed imports these for its first engine; libraries are not part of the estimate
        for library in ("torch._dynamo", "torch._inductor.compile_fx"):
            importlib.import_module(library)
        before = reset_peak_rss()
        train()
        return {"rss": peak_rss() - before}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train()
    return {
        "planned": plan.step_bytes,
        "planned_rss": plan.step_bytes + plan.host[ALLOCATOR],
        "allocated": allocation_peak(profiler),
        "slots": plan.slots,
        "parts": plan.persistent | plan.transient,
    }


def allocation_peak(profiler: Any) -> int:
    """Return the peak of the running sum of a profile's allocations and releases, in bytes."""
    results = profiler.profiler.kineto_results
    events = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    peak = total = 0
    for _, size in events:
        total += size
        peak = max(peak, total)
    return peak


def reset_peak_rss() -> int:
    """Reset the peak of this process's resident memory and return the resident bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_rss()


def peak_rss() -> int:
    """Return the peak of this process's resident memory in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines["VmHWM"].split()[0])


if __name__ == "__main__":
    main()
