"""Settings: recipe, YAML file and overrides, spellings, former names and the printed file."""

import dataclasses
import itertools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from support.wrong_json import edits

from longplay.launch.cli import main
from longplay.launch.settings.compatibility import RENAMED
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.errors import ConfigError
from longplay.launch.settings.overrides import flatten, settings_of, spell_value
from longplay.launch.settings.recipes import RECIPES, get_recipe
from longplay.launch.settings.resolving import SHARED, resolve, to_json, to_yaml
from longplay.launch.settings.saved import MAY_CHANGE, SAME_RESULT, changed_settings, from_json, read_config

EXAMPLES = int(os.environ.get("LONGPLAY_EXAMPLES", "100"))


def configured(*words: str, recipe: str = "mambarec", file: Path | None = None) -> RunConfig:
    return resolve(recipe, get_recipe(recipe), words, file=file)


OVERRIDES = {
    "seed": st.integers(0, 2**40),
    "context_length": st.integers(1, 10**6),
    "encoder.dropout": st.floats(0, 1, exclude_max=True),
    "encoder.input_scale": st.none() | st.floats(1e-300, 1e30),
    "encoder.positional_embedding": st.none() | st.booleans(),
    "loss.name": st.sampled_from(["bce", "gbce", "bpr", "sampled_softmax", "full_softmax"]),
    "table.optimizer.betas": st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
    "engine.zero_stage": st.sampled_from([1, 2, 3]),
    "data.split.val_fraction": st.floats(0.001, 0.8),
    "train.decay": st.sampled_from(["none", "linear", "cosine"]),
    "train.max_minutes": st.none() | st.floats(1e-9, 1e12),
    "train.patience": st.none() | st.integers(1, 100),
    "evaluation.cutoffs": st.lists(st.integers(1, 99), max_size=4).map(lambda more: (10, *more)),
}


@given(recipe=st.sampled_from(list(RECIPES)), values=st.fixed_dictionaries({}, optional=OVERRIDES))
@settings(max_examples=100, deadline=None)
def test_the_printed_settings_read_back_to_the_same_run(
    tmp_path_factory: pytest.TempPathFactory, recipe: str, values: dict[str, Any]
) -> None:
    words = [word for name, value in values.items() for word in (f"--{name}", spell_value(value))]
    config = configured("--loss.negatives", "uniform", *words, recipe=recipe)
    flat = flatten(dataclasses.asdict(config))
    assert {name: flat[name] for name in values} == values
    file = tmp_path_factory.getbasetemp() / "settings.yaml"
    file.write_text(to_yaml(config))
    assert configured(recipe=recipe, file=file) == config
    assert from_json(to_json(config)) == config


def test_config_prints_a_file_that_the_option_config_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("config sasrec --train.lr 0.5 --evaluation.cutoffs 10".split()) == 0
    (tmp_path / "sasrec.yaml").write_text(capsys.readouterr().out)
    assert main(["config", "sasrec", "--config", str(tmp_path / "sasrec.yaml")]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["train"]["lr"], printed["evaluation"]["cutoffs"]) == (0.5, [10])


def test_overrides_win_over_the_file_and_the_file_over_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 5\ntrain: {lr: 1e-3, patience: null}\nencoder: {d_model: 32}\n")
    config = configured("--encoder.d_model", "16", file=file)
    assert (config.seed, config.train.lr, config.train.patience, config.encoder.d_model) == (
        5,
        1e-3,
        None,
        16,
    )
    assert config.train.max_epochs == get_recipe("mambarec")["train"]["max_epochs"]
    assert config.data.seed == 5


SPELLINGS = {
    "--train.lr 0.001": ("train.lr", 0.001),
    "--train.lr=1e-3": ("train.lr", 0.001),
    "train.lr=0.001": ("train.lr", 0.001),
    "--train.lr 1": ("train.lr", 1.0),
    "--train.patience none": ("train.patience", None),
    "--train.patience None": ("train.patience", None),
    "--train.decay none": ("train.decay", "none"),
    "--encoder.layer_norm false": ("encoder.layer_norm", False),
    "--encoder.layer-norm False": ("encoder.layer_norm", False),
    "--evaluation.cutoffs 5,10,20": ("evaluation.cutoffs", (5, 10, 20)),
    "--evaluation.cutoffs 10": ("evaluation.cutoffs", (10,)),
    "--engine.betas 0.8,0.9": ("engine.betas", (0.8, 0.9)),
    "--context-length 500": ("encoder.context_length", 500),
    "--context_length 500": ("data.context_length", 500),
    "--on_bad_shard skip": ("data.on_bad_shard", "skip"),
    "--on-bad-shard skip": ("data.on_bad_shard", "skip"),
}


@pytest.mark.parametrize("words", SPELLINGS)
def test_every_spelling_of_a_setting_is_understood(words: str) -> None:
    name, value = SPELLINGS[words]
    found = flatten(dataclasses.asdict(configured(*words.split())))[name]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("old", RENAMED)
def test_a_former_name_is_understood_everywhere(
    old: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = RENAMED[old]
    config = configured()
    value = flatten(to_json(config))[new]
    section, name = old.split(".")
    saved = to_json(config)
    saved[section][name] = saved[section].pop(new.split(".")[1])
    assert from_json(saved) == config
    (tmp_path / "old.yaml").write_text(yaml.safe_dump({section: {name: value}}))
    assert configured(file=tmp_path / "old.yaml") == config
    assert configured(f"--{old}", str(value)) == config
    line = f"longplay: --{old} is now called --{new}\n"
    assert capsys.readouterr().err in (line, "")  # once per process


BAD_FILES = {
    "train: [": r"--config .*bad\.yaml: cannot be read \(while parsing",
    "fast": r"bad\.yaml: must contain settings; `longplay config RECIPE` prints an example",
    "train: {lrr: 1}": r"bad\.yaml: train\.lrr: unknown setting; did you mean train\.lr\?",
    "train: {lr: -1}": r"^train\.lr=-1: must be above 0$",
    "train: {lr: true}": r"^train\.lr=True: must be a number$",
    "encoder: 5": r"bad\.yaml: encoder: unknown setting",
    "data: {seed: 5}": r"data\.seed: unknown setting|data\.seed: set --seed",
}


@pytest.mark.parametrize("content", BAD_FILES)
def test_a_bad_file_is_reported_with_its_problem(content: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=BAD_FILES[content]):
        configured(file=file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read \(No such file or directory\)"):
        configured(file=tmp_path / "gone.yaml")


def test_only_settings_that_leave_the_steps_unchanged_may_change() -> None:
    old = configured()
    new = configured("--train.max_epochs", "99", "--engine.zero_stage", "3", "--data.prefetch_steps", "0")
    assert changed_settings(old, new) == []
    assert changed_settings(old, new, may_change=SAME_RESULT) == [
        "engine.zero_stage: 1 -> 3",
        "train.max_epochs: 20 -> 99",
    ]
    assert changed_settings(old, configured("--encoder.dropout", "0.5")) == ["encoder.dropout: 0.2 -> 0.5"]


def test_settings_that_may_change_exist() -> None:
    names = set(flatten(to_json(configured())))
    sections = {name.partition(".")[0] for name in names}
    assert names | sections >= MAY_CHANGE


def test_a_run_with_user_modules_names_the_missing_import(tmp_path: Path) -> None:
    about = {"config": to_json(configured()), "data": "/data", "dataset_id": "id"}
    about["imports"] = ["my_package.my_encoder"]
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(
        ConfigError, match=r"modules that are not imported; add --import my_package\.my_encoder$"
    ):
        read_config(tmp_path)


SHARED_NAMES = {f"{section}.{name}" for section, name in SHARED}
ABSURD = {"int": ["nan", "inf", "-inf", "1e300", "1" + 23 * "0"], "float": ["nan", "inf", "-inf", "1e300"]}
ABSURD_NUMBERS = [
    (name, value)
    for name, kind in settings_of(RunConfig).items()
    for number, values in ABSURD.items()
    for value in values
    if re.search(rf"\b{number}\b", str(kind)) and name not in SHARED_NAMES
]


@pytest.mark.parametrize(("name", "value"), ABSURD_NUMBERS)
def test_an_absurd_number_is_refused_in_one_line(name: str, value: str) -> None:
    with pytest.raises(ConfigError) as raised:
        resolve("mambarec", get_recipe("mambarec"), [f"--{name}={value}", "--train.metric=full/mrr"])
    assert str(raised.value).startswith(f"{name}=")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "--loss.num_negatives=100000000000",
            "=100000000000: must be at most 1000000; nearest valid: 1000000",
        ),
        ("--train.timeout_s=1e300", r"=1e\+300: must be at most 1e\+07; nearest valid: 1e\+07"),
        ("--table.init_std=nan", "='?nan'?: must be a finite number"),
        ("--evaluation.cutoffs=10,1e23", r"=1e\+23: must be a whole number of at most 19 digits"),
        ("--engine.zero_stage=true", "=True: must be a number"),
    ],
)
def test_the_message_gives_the_limit(words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve("mambarec", get_recipe("mambarec"), [words])


@pytest.mark.parametrize("model", ["mambarec", "sasrec"])
def test_the_nearest_divisor_of_a_huge_width_is_found_at_once(model: str) -> None:
    words = ["--encoder.d_model=2147483647", "--encoder.expand=2147483647", "--encoder.mixer=mamba2"]
    with pytest.raises(ConfigError, match=r"must divide .* = \d{10,}; nearest valid: 1$"):
        configured(*words, recipe=model)


def check_refused_in_one_line(use: Callable[[], object]) -> None:
    """Check that `use` succeeds, or raises what a command prints as one short line."""
    problem = ""
    try:
        use()
    except ValueError as error:
        problem = str(error)
    assert "\n" not in problem  # a command escapes other line breaks
    assert len(problem) < 800


NAMES = [*settings_of(RunConfig), "encoder.options.x", "train.lr.x", "", "train"]
VALUES = ["", "nan", "-inf", "1e400", "0x10", "1_000", "true", "none", "[]", "{}", '{"a": [1]}']
WORDS = st.text(max_size=8) | st.from_regex(r"[-+0-9.,eE_]{1,12}") | st.sampled_from(VALUES)


@given(name=st.sampled_from(NAMES), text=WORDS)
@settings(max_examples=EXAMPLES)
def test_any_text_for_any_setting_is_accepted_or_refused_in_one_line(name: str, text: str) -> None:
    check_refused_in_one_line(lambda: to_yaml(configured(f"--{name}={text}")))


@pytest.mark.parametrize("name", ["train.lr", "evaluation.cutoffs", "loss.name", "encoder.options.x"])
def test_deep_nesting_on_the_command_line_is_refused_in_one_line(name: str) -> None:
    check_refused_in_one_line(lambda: configured(f"--{name}={'[' * 100_000}"))


@given(edited=edits(yaml.safe_load(to_yaml(configured()))))
@settings(max_examples=EXAMPLES // 2)
def test_any_value_in_a_yaml_file_is_accepted_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, edited: Any
) -> None:
    file = tmp_path_factory.getbasetemp() / "edited.yaml"
    file.write_text(yaml.safe_dump(edited))
    check_refused_in_one_line(lambda: to_yaml(configured(file=file)))


@given(text=st.text(st.characters(codec="utf-8") | st.sampled_from("[]{}:-,#&*!|>'\"%@\n\t "), max_size=40))
@settings(max_examples=EXAMPLES)
def test_any_text_as_a_yaml_file_is_accepted_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "text.yaml"
    file.write_bytes(text.encode())
    check_refused_in_one_line(lambda: configured(file=file))


ALIASES = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in itertools.pairwise("abcdefgh"))
BAD_YAML = {
    "nested lists": "[" * 200_000,
    "nested in a setting": "train: {lr: " + "[" * 200_000 + "]" * 200_000 + "}",
    "nested maps": "{a: " * 50_000,
    "aliases": ALIASES,
    "an alias of itself": "train: &t\n  lr: *t\n",
    "not text": "\udcff",
    "a list": "[1, 2]",
    "a number": "7",
    "a number as a name": "1: 2",
    "a list as a name": "? [a]\n: 1",
    "a date": "train: {lr: 2026-01-01}",
    "a line break in a name": 'seed: {"\\n": 1}',
    "a number of many digits": "train: {max_steps: " + "9" * 10_000 + "}",
    "text for a section": "train: fast",
    "a control character": "train: {lr: \x07}",
    "an object": "train: !!python/object:os.system {}",
}


@pytest.mark.parametrize("content", BAD_YAML)
def test_any_yaml_is_refused_in_one_line(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(BAD_YAML[content], errors="surrogateescape")
    assert main(["config", "demo", "--config", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("longplay: error: ")
    assert len(line) < 600
