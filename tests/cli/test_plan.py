"""`longplay plan` is close to the measured memory and names settings that make a run fit."""

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
from longplay.models.encoder import build_encoder
from longplay.models.encoder_size import num_parameters

OVERRIDES = ["--encoder.d_model", "32", "--context_length", "100"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("plan"))


@pytest.fixture
def small() -> None:
    recipes.RECIPES.register("small", small_settings)


def allocated(world: World, data: Path, config: RunConfig) -> int:
    """Return the peak bytes of tensors while a model is built and trains two steps."""
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
def test_estimate_is_within_a_quarter_of_the_allocated_peak(data: Path, model: str, loss: str) -> None:
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
def test_estimated_row_traffic_is_within_a_quarter_of_the_bytes_sent(data: Path, loss: str) -> None:
    config = small_config("--loss.name", loss)
    sent = run_ranks(bytes_sent, 2, data, config)
    planned = estimate_run(config, Dataset.open(data), world_size=2).wire["table rows and their gradients"]
    assert planned == pytest.approx(max(sent), rel=0.25)


def test_estimated_table_bytes_are_exact(data: Path) -> None:
    dataset = Dataset.open(data)
    for overrides in (
        [],
        ["--table.optimizer.name", "adagrad"],
        ["--table.update", "zero_dense", "--engine.zero_stage", "3"],
    ):
        config = small_config(*overrides)
        (measured,) = run_ranks(table_bytes, 1, data, config)
        planned = estimate_run(config, dataset).persistent
        assert {name: planned.get(f"table {name}", 0) for name in ("weights", "optimizer", "gradient")} == {
            "weights": measured["weights"],
            "optimizer": measured["optimizer_state"],
            "gradient": measured["gradient"],
        }


def table_bytes(world: World, data: Path, config: RunConfig) -> dict[str, int]:
    return build_model(config, Dataset.open(data), world).table.bytes_per_rank()


def test_table_in_host_memory_does_not_count_towards_the_gpu(data: Path) -> None:
    dataset = Dataset.open(data)
    on_gpu, on_host = (
        estimate_run(
            small_config("--loss.name", "bce", "--table.placement", placement), dataset, device_type="cuda"
        )
        for placement in ("device", "host")
    )
    table = {name: size for name, size in on_gpu.persistent.items() if name.startswith("table ")}
    assert set(table) == {"table weights", "table optimizer"}
    assert not set(table) & set(on_host.persistent)
    assert table.items() <= on_host.host.items()
    assert on_gpu.total_bytes - on_host.total_bytes == sum(table.values())


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
@pytest.mark.parametrize("cached_rows", [40, 10**6])
def test_cached_rows_are_counted_as_they_are_allocated(data: Path, optimizer: str, cached_rows: int) -> None:
    config = small_config(
        *("--loss.name", "bce", "--table.placement", "host", "--table.cached_rows", str(cached_rows)),
        *("--table.optimizer.name", optimizer),
    )
    estimate = estimate_run(config, Dataset.open(data), device_type="cuda")
    (allocated,) = run_ranks(table_bytes, 1, data, config)
    assert estimate.persistent["table rows on the device"] == allocated["cached_rows"]


def test_graphs_of_the_encoder_keep_copies_of_its_inputs_and_gradients(data: Path) -> None:
    plain, graphed = (
        estimate_run(small_config("--engine.cuda_graph", on), Dataset.open(data), device_type="cuda")
        for on in ("false", "true")
    )
    copies = 2 * 4 * graphed.slots * small_config().encoder.d_model
    assert graphed.total_bytes - plain.total_bytes == graphed.transient["encoder CUDA graphs"] > copies


def test_table_and_batch_are_divided_over_the_ranks(data: Path) -> None:
    dataset = Dataset.open(data)
    estimates = [estimate_run(small_config(), dataset, world_size=size) for size in (1, 2, 4)]
    assert [estimate.persistent["table weights"] for estimate in estimates] == [300 * 64, 150 * 64, 75 * 64]
    assert [estimate.slots for estimate in estimates] == [24 * 40, 12 * 40, 6 * 40]
    assert estimates[0].wire == {}
    assert len({estimate.steps_per_epoch for estimate in estimates}) == 1


@pytest.mark.usefixtures("small")
def test_command_prints_the_estimate_as_text_and_as_json(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "small", "--data", str(data), "--world-size", "2", "--encoder.num_blocks", "2"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    for part in ("table weights", "encoder optimizer", "activations", "sent per step", "an epoch: "):
        assert part in printed
    assert main([*words, "--memory", "80GiB", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["fits"] is True
    assert printed["limit_bytes"] == 80 * 2**30
    stream = TrainStream(Dataset.open(data), small_config().data)
    assert (printed["steps_per_epoch"], printed["targets_per_epoch"]) == (
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
def test_run_that_cannot_fit_is_refused_with_two_settings_that_make_it_fit(
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
def test_two_settings_together_are_named_if_no_single_setting_is_enough(data: Path) -> None:
    big = {"--data.rows_per_step": "2400", "--encoder.d_model": "512", "--context_length": "400"}
    config, dataset = small_config(*(word for pair in big.items() for word in pair)), Dataset.open(data)
    memory_bytes = 500 << 20
    estimate = estimate_run(config, dataset, memory_bytes=memory_bytes, device_type="cpu")
    with pytest.raises(ConfigError, match="together") as refused:
        check_fits(estimate, config, dataset)
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


def test_tolerance_accepts_an_estimate_slightly_above_the_limit(data: Path) -> None:
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
        (["--world-size", "0"], "--world-size: '0': must be a whole number, at least 1"),
        (["--world-size", "64"], "every rank needs a lane"),
        (["--encoder.d_modle", "64"], "did you mean --encoder.d_model"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(
    data: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    try:
        code = main(["plan", "small", "--data", str(data), *words])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert complaint in capsys.readouterr().err


def test_gpu_is_estimated_on_a_machine_without_one(data: Path) -> None:
    dataset = Dataset.open(data)
    on_gpu = estimate_run(small_config(), dataset, device_type="cuda", memory_bytes=80 << 30)
    on_cpu = estimate_run(small_config(), dataset, device_type="cpu")
    assert on_gpu.persistent["encoder reduction buckets"] > on_cpu.persistent["encoder reduction buckets"]
    assert on_gpu.fits()


ABSURD = {
    "context_length": "1000000000",
    "encoder.d_model": "1000000000",
    "encoder.d_state": "1000000000",
    "encoder.d_conv": "1000000000",
    "encoder.expand": "1000000000",
    "encoder.num_blocks": "100000000",
    "data.rows_per_step": "1200000000",
    "data.prefetch_steps": "1000000000",
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ABSURD)
def test_an_absurd_setting_is_named_before_anything_is_measured_or_built(
    data: Path,
    tmp_path: Path,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def measured(*_: object, **__: object) -> None:
        pytest.fail("measured the dataset or built the model")

    monkeypatch.setattr("longplay.launch.estimates.estimate_run.measure_workload", measured)
    monkeypatch.setattr("longplay.launch.training.train.check_stream", measured)
    words = ["small", "--data", str(data), f"--{name}", ABSURD[name], "--encoder.model", "recmamba"]
    for command in (["plan"], ["train", "--run", str(tmp_path / "run")]):
        assert main([*command, *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{name}" in line
        assert re.search(r"needs at least [\d,.]+ GiB per rank, more than .*; lower --|must be at most", line)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("model", ["gru4rec", "sasrec", "recmamba", "mambarec", "moematrrec"])
def test_parameters_of_many_blocks_are_counted_without_building_them(model: str) -> None:
    config = small_config("--encoder.num_blocks", "40", model=model).encoder
    built = build_encoder(config, device="meta")
    assert num_parameters(config) == sum(parameter.numel() for parameter in built.parameters())
