"""What README and docs say exists: links, commands, options, recipes, settings and their defaults."""

import argparse
import dataclasses
import re
import shlex
from pathlib import Path

import pytest
from settings_table import NOT_SETTINGS, all_settings
from torch.distributed.run import get_args_parser

from longplay.launch.cli import COMMANDS, build_parser
from longplay.launch.settings.config import RunConfig
from longplay.launch.settings.overrides import settings_of
from longplay.launch.settings.recipes import RECIPES, get_recipe
from longplay.launch.settings.resolving import resolve

REPOSITORY = Path(__file__).resolve().parents[3]
DOCS = REPOSITORY / "docs"
GUIDES = DOCS / "guides"
GENERATED = DOCS / "sweep_ml1m"  # written by `longplay report`
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
    *(path for path in sorted(DOCS.rglob("*.md")) if GENERATED not in path.parents),
]
page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
# Folders that commands create.
LEFT_BEHIND = ("data/", "runs/", "exports/", "sweeps/", "demo/", "site/", "quickstart/")


def anchors(path: Path) -> set[str]:
    """Return the fragments that link to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(path: Path) -> list[str]:
    """Return the lines of a page's code blocks without a language, continuation lines joined."""
    blocks = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    plain = [block for language, block in blocks if not language]
    return [line for block in plain for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?://", target):
            continue
        file, _, fragment = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{page.name}: {target}"
        assert not fragment or fragment in anchors(path), f"{page.name}: {target}"


def test_every_page_is_in_the_navigation() -> None:
    navigation = re.findall(r"[\w/]+\.md", (REPOSITORY / "mkdocs.yml").read_text())
    assert {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} <= set(navigation)


def test_the_readmes_results_are_those_of_the_results_page() -> None:
    rows = re.findall(
        r"^\| .+ \| \D*(0\.\d{4})\D* \| \D*(0\.\d{4})\D* \|$", PAGES[0].read_text(), re.MULTILINE
    )
    assert len(rows) == 8
    results = (DOCS / "results" / "ml1m.md").read_text()
    assert [number for row in rows for number in row if number not in results] == []


@page
def test_files_named_in_the_text_exist(page: Path) -> None:
    folders = "|".join(path.name for path in REPOSITORY.iterdir() if path.is_dir() and path.name[0] != ".")
    for name in re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text()):
        inside = name.startswith(LEFT_BEHIND)
        assert inside or (REPOSITORY / name).exists(), f"{page.name}: {name}"


@page
def test_longplay_commands_parse(page: Path) -> None:
    for line in commands(page):
        words = shlex.split(line.partition(" > ")[0])
        if "--import" in words:  # run with the page's modules by tests/cli/test_pages.py
            continue
        if words[0] == "torchrun":
            asked = get_args_parser().parse_args(words[1:])
            assert (asked.module, asked.training_script) == (True, "longplay.launch.train")
            words = ["longplay", "train", *asked.training_script_args]
        elif words[0] == "srun":
            words = ["longplay", "train", *words[words.index("longplay.launch.train") + 1 :]]
        if words[0].removeprefix(".venv/bin/") == "longplay" and words[1:] not in (["--help"], ["--version"]):
            check_longplay(words[1:])


def check_longplay(words: list[str]) -> None:
    assert words[0] in COMMANDS
    args, rest = build_parser(words[0]).parse_known_args(words)
    if words[0] in ("train", "plan", "config"):
        resolve(args.recipe, get_recipe(args.recipe), rest)
    elif words[0] == "sweep":
        resolve("sasrec", get_recipe("sasrec"), rest)
    else:
        assert rest == []


@page
def test_make_targets_exist(page: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    inline = re.findall(r"`(make [^`]+)`", page.read_text())
    for line in [*inline, *(line for line in commands(page) if line.startswith("make "))]:
        targets = [word for word in shlex.split(line)[1:] if "=" not in word]
        variables = [word.partition("=")[0] for word in shlex.split(line)[1:] if "=" in word]
        for target in targets:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), line
        for variable in variables:
            assert re.search(rf"^{variable} \?=", makefile, re.MULTILINE), line


def test_every_setting_is_documented() -> None:
    found = list(all_settings(RunConfig))
    assert {setting.name for setting in found} == set(settings_of(RunConfig)) - NOT_SETTINGS
    assert [setting.name for setting in found if not setting.meaning] == []


@page
def test_settings_named_in_the_text_exist(page: Path) -> None:
    sections = "|".join(item.name for item in dataclasses.fields(RunConfig))
    known = settings_of(RunConfig)
    for name in re.findall(rf"`(?:--)?((?:{sections})\.[a-z_.]+)", page.read_text()):
        free = name.startswith("encoder.options.") or name.endswith((".py", ".safetensors"))
        assert free or name in known, f"{page.name}: {name}"


def test_every_recipe_is_documented() -> None:
    text = (GUIDES / "train.md").read_text()
    built_in = [name for name, recipe in RECIPES.items() if recipe.__module__ == get_recipe.__module__]
    assert len(built_in) > 5
    assert [name for name in built_in if f"`{name}`" not in text] == []


def test_every_option_of_prepare_is_documented() -> None:
    text = (GUIDES / "prepare.md").read_text()
    assert [option for option in options_of("prepare") if f"`{option}" not in text] == []


@pytest.mark.parametrize("command", ["evaluate", "recommend"])
def test_every_option_of_a_run_is_documented(command: str) -> None:
    text = (GUIDES / "evaluate.md").read_text()
    assert [option for option in options_of(command) if option not in text] == []


@pytest.mark.parametrize("command", ["export", "plan", "sweep", "report"])
def test_every_option_of_a_command_with_its_own_page_is_documented(command: str) -> None:
    text = (GUIDES / f"{command}.md").read_text()
    assert [option for option in options_of(command) if option not in text] == []


def options_of(command: str) -> set[str]:
    """The long options of a command and its subcommands, --help aside."""
    found: set[str] = set()
    waiting: list[argparse.ArgumentParser] = [build_parser(command)]
    while waiting:
        for action in waiting.pop()._actions:
            if isinstance(action, argparse._SubParsersAction):
                waiting += action.choices.values()
            found |= {option for option in action.option_strings if option.startswith("--")}
    return found - {"--help"}
