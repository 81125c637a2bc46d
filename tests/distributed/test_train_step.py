"""Training steps of the real models do not depend on the number of ranks, micro-batches or the ZeRO stage."""

from pathlib import Path

import pytest
import torch
from support.ranks import run_ranks
from support.runs import small_config, small_dataset

from longplay.data_shards.storage.dataset import Dataset
from longplay.data_shards.stream.train_stream import TrainStream
from longplay.distributed.runtime.errors import NonFiniteError
from longplay.distributed.runtime.world import World
from longplay.launch.evaluation.evaluation import evaluate
from longplay.launch.training.model import build_model
from longplay.launch.training.step_pipeline import StepPipeline
from longplay.launch.training.train_step import train_step

STEPS = 12


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("train_step"))


def train(
    world: World, data: Path, overrides: list[str], model: str, steps: int = STEPS
) -> list[tuple[float, float]]:
    """Return (loss, gradient norm) of each step, then (hit@10, mrr) of a validation."""
    config, dataset = small_config(*overrides, model=model), Dataset.open(data)
    trained = build_model(config, dataset, world)
    batches = iter(TrainStream(dataset, config.data, rank=world.rank, world_size=world.world_size))
    pipeline, history = StepPipeline(trained, batches), []
    for _ in range(steps):
        result = train_step(trained, pipeline.take(), lr=0.01)
        history.append((result.loss, result.grad_norm))
    trained.engine.train(False)
    metrics = evaluate(trained.engine, trained.table, dataset, config, "validation").metrics
    return [*history, (metrics["full"]["hit@10"], metrics["sampled100"]["mrr"])]


def train_ahead(
    world: World, data: Path, overrides: list[str], model: str, steps: int
) -> list[tuple[float, float]]:
    """Do the same as `train`, without the validation, and start each exchange during the previous step."""
    config, dataset = small_config(*overrides, model=model), Dataset.open(data)
    trained = build_model(config, dataset, world)
    stream = TrainStream(dataset, config.data, rank=world.rank, world_size=world.world_size)
    pipeline = StepPipeline(trained, iter(stream))
    results = [train_step(trained, pipeline.take(), lr=0.01, pipeline=pipeline) for _ in range(steps)]
    return [(result.loss, result.grad_norm) for result in results]


def assert_same(history: list[tuple[float, float]], expected: list[tuple[float, float]]) -> None:
    torch.testing.assert_close(torch.tensor(history), torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        ["--loss.name", "full_softmax"],
        [
            *("--loss.name", "full_softmax"),
            *("--engine.gradient_accumulation_steps", "2", "--engine.zero_stage", "2"),
        ],
        ["--loss.name", "full_softmax", "--table.update", "zero_dense", "--engine.zero_stage", "3"],
        ["--loss.name", "bce", "--loss.num_negatives", "3", "--table.optimizer.name", "adagrad"],
        [
            *("--loss.name", "sampled_softmax", "--loss.num_negatives", "64"),
            *("--engine.gradient_accumulation_steps", "2"),
            *("--table.update", "zero_dense", "--engine.zero_stage", "3"),
        ],
        ["--loss.name", "sampled_softmax", "--loss.num_negatives", "64", "--loss.negatives", "in_batch"],
    ],
    ids=lambda overrides: "-".join(overrides[1::2]),
)
def test_one_and_more_ranks_give_the_same_losses_with_dropout_and_clipping(
    data: Path, overrides: list[str]
) -> None:
    expected = run_ranks(train, 1, data, overrides, "mambarec")[0]
    assert sum(norm > 0.2 for _, norm in expected[:STEPS]) > STEPS // 2, "clipping must be active"
    assert expected[STEPS - 1][0] < expected[0][0]
    world_size = 4 if "bce" in overrides else 3
    for history in run_ranks(train, world_size, data, overrides, "mambarec"):
        assert_same(history, expected)


@pytest.mark.parametrize("model", ["gru4rec", "sasrec", "recmamba", "mambarec", "moematrrec"])
def test_every_model_has_the_same_losses_at_zero_stage_3_with_micro_batches(data: Path, model: str) -> None:
    expected = run_ranks(train, 1, data, [], model, 6)[0]
    overrides = ["--engine.zero_stage", "3", "--engine.gradient_accumulation_steps", "2"]
    for history in run_ranks(train, 2, data, overrides, model, 6):
        assert_same(history, expected)


@pytest.mark.parametrize(
    "overrides",
    [
        ["--loss.name", "bce", "--table.placement", "host"],
        [
            *("--loss.name", "sampled_softmax", "--loss.num_negatives", "64", "--loss.negatives", "in_batch"),
            *("--engine.gradient_accumulation_steps", "2", "--engine.zero_stage", "2"),
        ],
    ],
    ids=["bce", "in_batch"],
)
@pytest.mark.parametrize("world_size", [1, 3])
def test_pipelined_steps_are_bitwise_identical(data: Path, overrides: list[str], world_size: int) -> None:
    plain = run_ranks(train, world_size, data, overrides, "mambarec", 8)
    ahead = run_ranks(train_ahead, world_size, data, overrides, "mambarec", 8)
    assert [history[:8] for history in plain] == ahead


def metrics_by_pass(world: World, data: Path) -> list[dict[str, float]]:
    """Return an untrained model's metrics with 1 query per pass, with a few, and with all."""
    dataset, found = Dataset.open(data), []
    for queries in (1, 37, 10_000):
        config = small_config("--evaluation.queries_per_pass", str(queries))
        model = build_model(config, dataset, world)
        model.engine.train(False)
        found.append(evaluate(model.engine, model.table, dataset, config, "test", max_users=90).flat())
        model.engine.close()
    return found


@pytest.mark.parametrize("world_size", [1, 3])
def test_metrics_do_not_depend_on_how_many_queries_share_a_pass(data: Path, world_size: int) -> None:
    for one, few, every in run_ranks(metrics_by_pass, world_size, data):
        assert one == few == every


def metrics_of_stage(world: World, data: Path, stage: int, model_name: str) -> dict[str, float]:
    """Return an untrained model's metrics at a ZeRO stage."""
    dataset, config = Dataset.open(data), small_config("--engine.zero_stage", str(stage), model=model_name)
    model = build_model(config, dataset, world)
    model.engine.train(False)
    return evaluate(model.engine, model.table, dataset, config, "test").flat()


@pytest.mark.parametrize("model", ["mambarec", "moematrrec"])
def test_metrics_do_not_depend_on_the_zero_stage(data: Path, model: str) -> None:
    expected = run_ranks(metrics_of_stage, 1, data, 1, model)[0]
    for found in run_ranks(metrics_of_stage, 2, data, 3, model):
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mixer", ["mamba", "mamba2"])
def test_bf16_trains_close_to_fp32(data: Path, mixer: str) -> None:
    overrides = ["--encoder.mixer", mixer]
    exact = run_ranks(train, 1, data, overrides, "mambarec")[0]
    rounded = run_ranks(train, 1, data, [*overrides, "--engine.precision", "bf16"], "mambarec")[0]
    assert exact[:STEPS] != rounded[:STEPS]
    losses, others = torch.tensor(exact)[:STEPS, 0], torch.tensor(rounded)[:STEPS, 0]
    torch.testing.assert_close(losses, others, rtol=0.02, atol=0.02)


def poison_one_rank(world: World, data: Path) -> tuple[str, bool]:
    """Run a step with a non-finite value on rank 1; return the error and whether no weight changed."""
    config, dataset = small_config(), Dataset.open(data)
    model = build_model(config, dataset, world)
    before = [parameter.detach().clone() for parameter in model.encoder.parameters()]
    if world.rank == 1:
        model.table.shard[:, 0] = torch.inf
    table = model.table.shard.clone()
    batches = iter(TrainStream(dataset, config.data, rank=world.rank, world_size=world.world_size))
    with pytest.raises(NonFiniteError) as caught:
        train_step(model, StepPipeline(model, batches).take(), lr=0.01)
    same = all(torch.equal(a, b) for a, b in zip(before, model.encoder.parameters(), strict=True))
    return str(caught.value), same and torch.equal(table, model.table.shard)


def test_a_non_finite_value_on_one_rank_stops_all_ranks_before_the_update(data: Path) -> None:
    for message, unchanged in run_ranks(poison_one_rank, 2, data):
        assert unchanged
        assert "is not finite at step 1 (epoch 0, step 0 of the epoch, rows of lanes" in message
