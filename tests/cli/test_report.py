"""`longplay report`: tables checked by independent arithmetic, pages and figures."""

import json
import re
import statistics
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.lines import Line2D
from support.made_up_sweeps import MadeUpSweep, made_up_run, write_evaluation
from support.reports import report, rows_of, the_row

from longplay.launch.cli import main
from longplay.launch.reports.data import collect
from longplay.launch.reports.groups import group_frame
from longplay.launch.reports.plots import plots
from longplay.launch.reports.tables import accuracy_tables

HITS = {  # (model, context length) -> hit@10 of each seed
    ("sasrec", 50): (0.10, 0.12),
    ("mambarec", 50): (0.11, 0.15),
    ("sasrec", 100): (0.20, 0.22),
    ("mambarec", 100): (0.19, 0.21),
}


def made_up_study(path: Path) -> Path:
    """Two models, two lengths and two seeds, all finished."""
    made = MadeUpSweep(path)
    for (model, length), hits in HITS.items():
        slow = length / 50 * (2 if model == "sasrec" else 1)
        for seed, hit10 in enumerate(hits):
            path = made.add(model=model, context_length=length, seed=seed)
            made_up_run(
                path,
                model=model,
                context_length=length,
                seed=seed,
                hit10=hit10,
                step_ms=10 * slow,
                events_per_s=1000 / slow,
                peak_gib=slow,
            )
    made.write()
    return made.path


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up_study(tmp_path_factory.mktemp("sweep") / "study")


@pytest.fixture(scope="module")
def reported(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the report of `sweep`."""
    return report(sweep, out=tmp_path_factory.mktemp("report") / "out")


def test_accuracy_is_mean_and_sample_deviation_over_seeds(reported: Path) -> None:
    for (model, length), hits in HITS.items():
        name = {"sasrec": "SASRec", "mambarec": "MambaRec"}[model]
        for kind, factor in (("full", 0.8), ("full_unseen", 1.0), ("sampled100", 2.0)):
            row = the_row(reported / "accuracy.csv", model=name, context_length=str(length), kind=kind)
            for metric, share in (("hit@10", 1), ("ndcg@10", 0.5), ("hit@20", 2), ("ndcg@20", 1)):
                values = [factor * share * hit for hit in hits]
                assert float(row[metric]) == pytest.approx(statistics.fmean(values))
                assert float(row[f"{metric}_sd"]) == pytest.approx(statistics.stdev(values))
            assert (row["runs"], row["finished"]) == ("2", "2")
    assert len(rows_of(reported / "accuracy.csv")) == len(HITS) * 3
    assert [row["full_unseen/hit@10"] for row in rows_of(reported / "runs.csv", context_length="50")] == [
        *("0.1", "0.12", "0.11", "0.15")
    ]


def test_only_the_best_of_each_length_is_bold(reported: Path) -> None:
    page = (reported / "report.md").read_text()
    assert (
        "| 50 | SASRec | 0.1100 ± 0.0141 | 0.0550 ± 0.0071 | 0.2200 ± 0.0283 | 0.1100 ± 0.0141 | 2 |" in page
    )
    assert "| 50 | MambaRec | **0.1300 ± 0.0283** | **0.0650 ± 0.0141** | **0.2600" in page
    assert "| 100 | SASRec | **0.2100 ± 0.0141** |" in page
    assert "| 100 | MambaRec | 0.2000 ± 0.0141 |" in page
    assert len(re.findall(r"\*\*", page)) == 2 * 4 * 2 * 3  # metrics, lengths, kinds


def test_costs_are_medians_and_multiples_of_sasrec(reported: Path) -> None:
    row = the_row(reported / "efficiency.csv", model="MambaRec", context_length="100")
    expected = {
        "train_peak_gib": 2.0,
        "eval_peak_gib": 4.0,
        "seconds_per_epoch": 0.2,  # 10 steps of 20 ms; the first step, 50 times as slow, is left out
        "events_per_s": 500.0,
        "eval_s": 4.0,
    }
    for name, value in expected.items():
        assert float(row[name]) == pytest.approx(value)
        assert float(row[f"{name}_of_sasrec"]) == pytest.approx(2.0 if name == "events_per_s" else 0.5)
    page = (reported / "report.md").read_text()
    assert "| 100 | MambaRec | 2.00 (0.50×) |" in page


def test_runs_on_different_devices_are_not_compared(tmp_path: Path) -> None:
    sweep = made_up_study(tmp_path / "study")
    for file in sweep.glob("runs/m-sasrec-L50-*/evaluation/test.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"device": "cuda"}))
    out = report(sweep, out=tmp_path / "out")
    row = the_row(out / "efficiency.csv", model="MambaRec", context_length="50")
    assert (row["events_per_s"], row["ranks"]) == ("1000.0", "1 × cpu")
    assert row["events_per_s_of_sasrec"] == ""


def test_a_run_in_training_is_compared_with_sasrec(tmp_path: Path) -> None:
    made_up_run(tmp_path / "runs" / "a", model="sasrec")
    made_up_run(tmp_path / "runs" / "b", model="mambarec", events_per_s=3000, hit10=None)
    out = report(tmp_path / "runs", out=tmp_path / "out")
    row = the_row(out / "efficiency.csv", model="MambaRec")
    assert (row["events_per_s_of_sasrec"], row["eval_s"], row["ranks"]) == ("3.0", "", "1 × cpu")


def test_the_ranks_of_training_and_evaluation_are_both_shown(tmp_path: Path) -> None:
    made_up_run(tmp_path / "runs" / "a", model="sasrec", ranks=4)
    made_up_run(tmp_path / "runs" / "b", model="mambarec", ranks=2, hit10=None)
    made_up_run(tmp_path / "runs" / "c", model="gru4rec", ranks=None)
    out = report(tmp_path / "runs", out=tmp_path / "out")
    ranks = {row["model"]: row["ranks"] for row in rows_of(out / "efficiency.csv")}
    assert ranks == {
        "SASRec": "4 × cpu (evaluation: 1)",
        "MambaRec": "2 × cpu",
        "GRU4Rec": "cpu (evaluation: 1)",
    }
    assert the_row(out / "efficiency.csv", model="MambaRec")["events_per_s_of_sasrec"] == ""
    assert [row["ranks"] for row in rows_of(out / "runs.csv")] == ["4", "2", ""]


def test_a_curve_has_the_line_of_its_label_in_the_legend(tmp_path: Path) -> None:
    made_up_run(tmp_path / "runs" / "a", lr=0.01, hit10=None)
    made_up_run(tmp_path / "runs" / "b", lr=0.02, validations=(0.2, 0.3))
    runs = collect([tmp_path / "runs"])
    (curves,) = (plot for plot in plots(group_frame(runs), runs) if plot.name.startswith("time-"))
    values = {line.get_linestyle(): np.asarray(line.get_ydata()) for line in curves.figure.axes[0].lines}
    (legend,) = curves.figure.legends
    handles = [handle for handle in legend.legend_handles if isinstance(handle, Line2D)]
    names = [text.get_text() for text in legend.get_texts()]
    found = {
        name: values[handle.get_linestyle()].tolist() for name, handle in zip(names, handles, strict=True)
    }
    assert found == {"SASRec (a)": [0.01, 0.03, 0.02], "SASRec (b)": [0.2, 0.3]}


def test_the_time_of_a_validation_is_the_sum_of_the_steps_before_it(tmp_path: Path) -> None:
    made_up_run(tmp_path / "run", step_ms=100, validations=(0.1, 0.2))
    run = collect([tmp_path / "run"]).row(0, named=True)
    assert run["curve_seconds"] == pytest.approx([5.0 + 0.9, 5.0 + 1.9])
    assert run["curve_values"] == [0.1, 0.2]


def test_a_step_without_a_log_entry_takes_as_long_as_the_next_logged(tmp_path: Path) -> None:
    made_up_run(tmp_path / "run", validations=(), hit10=None)
    lines = [(1, "perf/step_ms", 900), (10, "perf/step_ms", 100), (20, "perf/step_ms", 200)]
    lines += [(12, "eval_full_unseen/ndcg@10", 0.1), (25, "eval_full_unseen/ndcg@10", 0.2)]
    text = "".join(json.dumps(dict(zip(("step", "tag", "value"), x, strict=True))) + "\n" for x in lines)
    (tmp_path / "run" / "metrics.jsonl").write_text(text + '{"step": 26, "ta')
    run = collect([tmp_path / "run"]).row(0, named=True)
    assert run["curve_seconds"] == pytest.approx([0.9 + 0.9 + 0.4, 0.9 + 0.9 + 2.0 + 1.0])


def test_variants_of_an_ablation_are_compared_with_each_other(tmp_path: Path) -> None:
    made = MadeUpSweep(tmp_path / "dropout")
    for variant, hit10 in (("0.0", 0.2), ("0.1", 0.3), ("0.5", 0.1)):
        made_up_run(made.add(grid="dropout", variant=variant), hit10=hit10)
    made.write()
    out = report(made.path, out=tmp_path / "out")
    page = (out / "report.md").read_text()
    assert "## Accuracy" not in page
    assert (
        "| 50 | SASRec | 0.1 | **0.3000** | **0.1500** | **0.6000** | **0.3000** | 0.20 | 1.00 | 1 |" in page
    )
    row = the_row(out / "ablation.csv", variant="0.5", kind="full_unseen")
    assert (row["grid"], row["hit@10"], row["hit@10_sd"]) == ("dropout", "0.1", "")
    assert (out / "plots" / "ablation-dropout.png").is_file()


def test_run_folders_with_different_settings_are_not_averaged(tmp_path: Path) -> None:
    made_up_run(tmp_path / "a", seed=0, hit10=0.1)
    made_up_run(tmp_path / "b", seed=1, hit10=0.3)
    made_up_run(tmp_path / "c", seed=0, hit10=0.5, lr=0.1)
    made_up_run(tmp_path / "d", seed=0, hit10=0.7, lr=0.1)  # the same seed again is not another sample
    runs = collect([tmp_path / name for name in "abcd"])
    groups = group_frame(runs).select("label", "member").rows()
    assert {label: runs[members]["run"].to_list() for label, members in groups} == {
        "SASRec (a)": ["a", "b"],
        "SASRec (c)": ["c"],
        "SASRec (d)": ["d"],
    }
    assert collect([tmp_path])["run"].to_list() == ["a", "b", "c", "d"]


def test_the_same_model_of_two_sweeps_has_two_labels(tmp_path: Path) -> None:
    for name in ("first", "second"):
        made = MadeUpSweep(tmp_path / name)
        made_up_run(made.add())
        made.write()
    groups = group_frame(collect([tmp_path / "first", tmp_path / "second"]))
    assert groups["label"].to_list() == ["SASRec (first)", "SASRec (second)"]


class Resources(HTMLParser):
    """Collects the addresses that a page loads, and its tags."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")
        ]


HOSTILE = "<img src=x onerror=alert(1)> [a](javascript:b) ![c](d) **e** `f` |g| $h$ \x1b[31m\u202e"


def test_names_and_log_lines_are_no_markup_and_no_escape_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = MadeUpSweep(tmp_path / "sweep")
    made_up_run(sweep.add(seed=0, dataset="m", job_id="1"))
    made_up_run(sweep.add(seed=1, dataset="m", job_id="2"), seed=1, hit10=None)
    for job in sweep.jobs.values():
        job["dataset"] = HOSTILE
    sweep.write()
    (sweep.path / "submitit" / "2_0_log.out").write_text(f"longplay: error: {HOSTILE}\n")
    for file in sweep.path.glob("runs/*/config.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"host": HOSTILE, "device": HOSTILE}))
    out = report(sweep.path, out=tmp_path / "out")
    printed = capsys.readouterr().out
    page, markdown = (out / "report.html").read_text(), (out / "report.md").read_text()
    for text in (printed, page, markdown):
        assert "onerror" in text
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert not re.search(r"(?<!\\)<img|(?<!\\)\[(a|c)\]|(?<!\\)\*\*e|(?<!\\)\|g", markdown)
    parser = Resources()
    parser.feed(page)
    assert "img" not in parser.tags


def test_the_html_page_loads_nothing(reported: Path) -> None:
    text = (reported / "report.html").read_text()
    page = Resources()
    page.feed(text)
    assert [address for address in page.addresses if not address.startswith("#")] == []
    assert re.findall(r"url\((?!#)|@import", text) == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert page.tags.count("svg") == 3
    assert text.count("<strong>") == 2 * 4 * 3


def test_two_reports_of_the_same_runs_are_bitwise_identical(
    reported: Path, sweep: Path, tmp_path: Path
) -> None:
    first, second = reported, report(sweep, out=tmp_path / "two")
    names = sorted(file.name for file in (first / "plots").iterdir())
    assert names == [
        f"{kind}-m.{end}" for kind in ("accuracy", "efficiency", "time") for end in ("png", "svg")
    ]
    for file in first.rglob("*.*"):
        assert file.read_bytes() == (second / file.relative_to(first)).read_bytes(), file.name


def test_figures_of_an_earlier_report_are_deleted_and_other_files_kept(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "plots").mkdir(parents=True)
    (out / "plots" / "accuracy-gone.png").write_text("old")
    (out / "plots" / "mine.png").write_text("mine")
    report(sweep, out=out)
    assert not (out / "plots" / "accuracy-gone.png").exists()
    assert (out / "plots" / "mine.png").read_text() == "mine"


def test_a_metric_that_an_evaluation_lacks_is_a_dash(tmp_path: Path) -> None:
    made_up_run(tmp_path / "run")
    write_evaluation(tmp_path / "run", 0.1)
    file = tmp_path / "run" / "evaluation" / "test.json"
    saved = json.loads(file.read_text())
    saved["full_unseen"].pop("hit@20")
    file.write_text(json.dumps(saved))
    (table, *_) = accuracy_tables(group_frame(collect([tmp_path / "run"])))
    assert [cell.text for cell in table.rows[0]] == ["50", "SASRec", "0.1000", "0.0500", "–", "0.1000", "1"]


def test_an_unwritable_output_is_refused_in_one_line(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["report", str(sweep), "--out", str(tmp_path / "file" / "out")]) == 2
    assert "--out" in capsys.readouterr().err
