"""`longplay plan`: near what is allocated, and a way out where a run cannot fit."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from support.ranks import run_ranks
from support.runs import small_config, small_dataset, small_settings
from torch.profiler import ProfilerActivity, profile

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.train_stream import TrainStream
from longplay.distributed.runtime.world import World
from longplay.launch.cli import main
from longplay.launch.estimates.estimate_run import estimate_run
from longplay.launch.estimates.fitting import check_fits
from longplay.launch.settings import recipes
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.errors import ConfigError
from longplay.launch.training.model import build_model
from longplay.launch.training.step_pipeline import StepPipeline
from longplay.launch.training.train_step import train_step
from longplay.models.encoder import num_parameters

OVERRIDES = ["--encoder.d_model", "32", "--context_length", "100"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("plan"))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes.RECIPES.register("small", small_settings)


def allocated(world: World, data: Path, config: RunConfig) -> int:
    """The peak of tensors' bytes while a model is built and takes two steps."""
    dataset = Dataset.open(data)
    batches = iter(TrainStream(dataset, config.data))
    few = [next(batches) for _ in range(2)]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model = build_model(config, dataset, world)
        pipeline = StepPipeline(model, iter(few))
        for _ in few:
            train_step(model, pipeline.take(), lr=1e-3)
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    peak = total = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


@pytest.mark.parametrize("model", ["sasrec", "mambarec"])
@pytest.mark.parametrize("loss", ["full_softmax", "bce"])
def test_the_plan_is_near_what_is_allocated(data: Path, model: str, loss: str) -> None:
    config = small_config(*OVERRIDES, "--loss.name", loss, model=model)
    bucket = str(num_parameters(config.encoder))
    config = small_config(
        *OVERRIDES, "--loss.name", loss, "--engine.reduce_bucket_elements", bucket, model=model
    )
    (measured,) = run_ranks(allocated, 1, data, config)
    planned = estimate_run(config, Dataset.open(data), device_type="cpu").step_bytes
    assert planned == pytest.approx(measured, rel=0.25)


def bytes_sent(world: World, data: Path, config: RunConfig) -> int:
    dataset = Dataset.open(data)
    model = build_model(config, dataset, world)
    batches = iter(TrainStream(dataset, config.data, rank=world.rank, world_size=world.world_size))
    return train_step(model, StepPipeline(model, batches).take(), lr=1e-3).table_bytes


@pytest.mark.parametrize("loss", ["full_softmax", "bce"])
def test_the_planned_traffic_of_rows_is_near_what_is_sent(data: Path, loss: str) -> None:
    config = small_config("--loss.name", loss)
    sent = run_ranks(bytes_sent, 2, data, config)
    planned = estimate_run(config, Dataset.open(data), world_size=2).wire["table rows and their gradients"]
    assert planned == pytest.approx(max(sent), rel=0.25)


def test_what_is_kept_is_what_the_table_says_it_keeps(data: Path) -> None:
    dataset = Dataset.open(data)
    for overrides in (
        [],
        ["--table.optimizer.name", "adagrad"],
        ["--table.update", "zero_dense", "--engine.zero_stage", "3"],
    ):
        config = small_config(*overrides)
        (told,) = run_ranks(table_bytes, 1, data, config)
        planned = estimate_run(config, dataset).kept
        assert {name: planned.get(f"table {name}", 0) for name in ("weights", "optimizer", "gradient")} == {
            "weights": told["weights"],
            "optimizer": told["optimizer_state"],
            "gradient": told["gradient"],
        }


def table_bytes(world: World, data: Path, config: RunConfig) -> dict[str, int]:
    return build_model(config, Dataset.open(data), world).table.bytes_per_rank()


def test_a_table_in_the_hosts_memory_leaves_the_gpu_to_the_encoder(data: Path) -> None:
    dataset = Dataset.open(data)
    beside, apart = (
        estimate_run(
            small_config("--loss.name", "bce", "--table.placement", placement), dataset, device_type="cuda"
        )
        for placement in ("device", "host")
    )
    table = {name: size for name, size in beside.kept.items() if name.startswith("table ")}
    assert set(table) == {"table weights", "table optimizer"}
    assert not set(table) & set(apart.kept)
    assert table.items() <= apart.host.items()
    assert beside.total_bytes - apart.total_bytes == sum(table.values())


def test_more_ranks_hold_less_each(data: Path) -> None:
    dataset = Dataset.open(data)
    plans = [estimate_run(small_config(), dataset, world_size=size) for size in (1, 2, 4)]
    assert [plan.kept["table weights"] for plan in plans] == [300 * 64, 150 * 64, 75 * 64]
    assert [plan.slots for plan in plans] == [24 * 40, 12 * 40, 6 * 40]
    assert plans[0].wire == {}
    assert len({plan.steps_per_epoch for plan in plans}) == 1


@pytest.mark.usefixtures("small")
def test_the_command_prints_the_plan(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "small", "--data", str(data), "--world-size", "2", "--encoder.num_blocks", "2"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    for part in ("table weights", "encoder optimizer", "activations", "sent per step", "an epoch: "):
        assert part in printed
    assert main([*words, "--memory", "80GiB", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["fits"] is True
    assert plan["limit_bytes"] == 80 * 2**30
    stream = TrainStream(Dataset.open(data), small_config().data)
    assert (plan["steps_per_epoch"], plan["targets_per_epoch"]) == (
        stream.order(0).num_steps,
        stream.order(0).num_targets,
    )


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "overrides",
    [
        ["--encoder.d_model", "512", "--encoder.num_blocks", "4"],
        ["--data.rows_per_step", "2400"],
        ["--loss.name", "sampled_softmax", "--loss.num_negatives", "3000", "--data.rows_per_step", "960"],
        ["--table.update", "zero_dense", "--engine.zero_stage", "3", "--data.rows_per_step", "2400"],
    ],
)
def test_a_run_that_cannot_fit_is_refused_with_two_ways_that_do(
    data: Path, capsys: pytest.CaptureFixture[str], overrides: list[str]
) -> None:
    words = ["plan", "small", "--data", str(data), *overrides]
    assert main([*words, "--json"]) == 0
    needed = json.loads(capsys.readouterr().out)["total_bytes"]
    memory = f"{0.85 * needed / 2**20:.0f}MiB"
    assert main([*words, "--memory", memory]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    ways = re.findall(r"with (--\S+ \S+) \(", line)
    assert len(ways) == 2, line
    for way in ways:
        name = way.split()[0]
        kept = [
            word for pair in zip(words[4::2], words[5::2], strict=True) if pair[0] != name for word in pair
        ]
        changed = [*words[:4], *kept, *shlex.split(way), "--memory", memory]
        assert main(changed) == 0, f"{way} does not make it fit"


@pytest.mark.usefixtures("small")
def test_two_settings_together_where_no_single_one_is_enough(data: Path) -> None:
    big = {"--data.rows_per_step": "2400", "--encoder.d_model": "512", "--context_length": "400"}
    config, dataset = small_config(*(word for pair in big.items() for word in pair)), Dataset.open(data)
    memory_bytes = 500 << 20
    plan = estimate_run(config, dataset, memory_bytes=memory_bytes, device_type="cpu")
    with pytest.raises(ConfigError, match="together") as refused:
        check_fits(plan, config, dataset)
    found = re.search(r"with (--\S+) (\S+) and (--\S+) (\S+) together", str(refused.value))
    assert found is not None
    named = dict(zip(found.groups()[::2], found.groups()[1::2], strict=True))
    size = int(named.pop("--world-size", "1"))
    changed = small_config(*(word for pair in (big | named).items() for word in pair))
    assert estimate_run(
        changed, dataset, memory_bytes=memory_bytes, device_type="cpu", world_size=size
    ).fits()
    hopeless = estimate_run(config, dataset, memory_bytes=1 << 20, device_type="cpu")
    with pytest.raises(ConfigError, match="no two settings"):
        check_fits(hopeless, config, dataset)


def test_only_what_surely_does_not_fit_is_refused_at_a_runs_start(data: Path) -> None:
    config, dataset = small_config(), Dataset.open(data)
    needed = estimate_run(config, dataset, device_type="cpu").total_bytes
    tight = estimate_run(config, dataset, device_type="cpu", memory_bytes=int(0.9 * needed))
    check_fits(tight, config, dataset, tolerance=1.25)
    assert "of " in tight.line()
    with pytest.raises(ConfigError, match="needs about"):
        check_fits(tight, config, dataset)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--memory", "24Gigs"], "is not a size"),
        (["--world-size", "0"], "must be at least 1"),
        (["--world-size", "64"], "every rank needs a lane"),
        (["--encoder.d_modle", "64"], "did you mean --encoder.d_model"),
    ],
)
def test_wrong_input_is_one_line(
    data: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    try:
        code = main(["plan", "small", "--data", str(data), *words])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert complaint in capsys.readouterr().err


def test_a_gpu_is_planned_for_without_one(data: Path) -> None:
    dataset = Dataset.open(data)
    on_gpu = estimate_run(small_config(), dataset, device_type="cuda", memory_bytes=80 << 30)
    on_cpu = estimate_run(small_config(), dataset, device_type="cpu")
    assert on_gpu.kept["encoder reduction buckets"] > on_cpu.kept["encoder reduction buckets"]
    assert on_gpu.fits()
