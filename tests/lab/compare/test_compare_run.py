"""Whole comparisons at the smallest size: every site, resumption, failures, the page, the command line."""

import dataclasses
import io
import json
import math
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from softgate import cli
from softgate.errors import ArgumentValueError, StateError
from softgate.lab.compare import cost, run, training
from softgate.lab.compare.page import comparison_page
from softgate.lab.compare.plan import make_plan
from softgate.lab.compare.run import compare
from softgate.lab.compare.sources import Source
from softgate.lab.compare.summary import print_comparison
from softgate.lab.compare.view import CompareView
from softgate.lab.files import folder_lock
from softgate.lab.grid import CellState
from softgate.lab.task import run_task


@pytest.fixture
def here(monkeypatch):
    """Cells run in this process, and costs take two turns; gives the names of the cells that were measured."""
    measured = []

    def serial(tasks, *, workers, on, poll):
        results = [run_task(task) for task in tasks]
        measured.extend(f"{r.task.cell} {r.task.seed}" for r in results if not r.reused)
        if poll is not None:
            poll([CellState(r.task, r.status, None, r.seconds, r.error) for r in results])
        return results

    monkeypatch.setattr(run, "run_grid", serial)
    monkeypatch.setattr(cost, "_TURNS", 2)
    monkeypatch.setattr(cost, "_SECONDS", 0.0)
    return measured


def small(site, variants, **options):
    source = options.pop("source", Source(data="synthetic"))
    return make_plan(site, variants, source, **{"steps": 2, "seeds": 1, "lr_grid": "1e-2", **options})


SITES = {
    "attention": "softmax,gated:granularity=headwise",
    "loss": "cross_entropy,l2_svm,comp_sum:tau=1.5",
    "activation": "relu,rational",
    "router": "softmax,sigmoid_bias",
}


@pytest.mark.parametrize("site", SITES)
def test_every_site_end_to_end(site, here, tmp_path):
    source = Source(data="synthetic")
    if site in ("attention", "router"):
        source = Source(text=tmp_path / "mine.txt")
        source.text.write_text("a text of my own, repeated. " * 250)
    grid = "1e-3,1e-2" if source.text is None else "1e-2"  # trainings on text take longer
    plan = small(site, SITES[site], source=source, seeds=2, lr_grid=grid)
    outcome = compare(plan, tmp_path / "out", command=f"softgate compare {site}")
    assert outcome.exit_code == 0
    record = json.loads((outcome.folder / "compare.json").read_text())
    count, rates = len(plan.variants), len(plan.grid) if len(plan.grid) > 1 else 0
    assert len(here) == count * rates + count * 2 + 1  # learning rates, seeds, cost
    for variant in record["variants"]:
        assert len(variant["values"]) == 2 and variant["mean"] == pytest.approx(sum(variant["values"]) / 2)
        assert variant["lr"] in plan.grid and set(variant["tried"]) == ({"0.001", "0.01"} if rates else set())
        assert variant["cost"]["seconds"] > 0 and variant["cost"]["bytes"] > 1000 and variant["diagnostics"]
        assert variant["comparison"]["verdict"] in ("baseline", "better", "worse", "no difference seen")
    if site == "attention":
        gated, plain = record["variants"][1], record["variants"][0]
        assert gated["parameters"] - plain["parameters"] == 2 * 64 * 4 and "sink_share" in gated["diagnostics"]
    if site == "router":
        assert "max_violation" in record["variants"][1]["diagnostics"]
    if site == "loss":
        log_losses = ["test_log_loss" in variant["test"] for variant in record["variants"]]
        assert record["metric"]["name"] == "accuracy" and log_losses == [True, False, True]
    page = (outcome.folder / "index.html").read_text()
    assert page.count("<svg") == (4 if rates else 3) and "<script" not in page and "src=" not in page
    console = Console(width=100, record=True, file=io.StringIO())
    print_comparison(console, record, outcome.folder)
    shown = console.export_text()
    assert all(variant.label in shown for variant in plan.variants) and "Holm" in shown


def test_a_folder_of_images_end_to_end(here, tmp_path):
    random = np.random.default_rng(0)
    for name, low in (("dark", 0), ("bright", 128)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(30):
            Image.fromarray(random.integers(low, low + 128, (9, 9), np.uint8)).save(tmp_path / f"photos/{name}/{i}.png")
    plan = small("attention", "softmax,gated,linear", source=Source(images=tmp_path / "photos"), steps=10)
    outcome = compare(plan, tmp_path / "out")
    assert outcome.exit_code == 0 and outcome.record["data"]["classes"] == ["bright", "dark"]
    assert outcome.record["metric"]["name"] == "accuracy" and outcome.record["variants"][0]["mean"] > 0.8
    assert any("28 × 28" in note for note in outcome.record["notes"])


def test_a_run_that_is_resumed_measures_what_is_new(here, tmp_path):
    first = compare(small("activation", "relu,tanh"), tmp_path)
    del here[:]
    again = compare(small("activation", "relu,tanh"), tmp_path, resume=True)
    assert here == []
    more = compare(small("activation", "relu,tanh,gelu", seeds=2), tmp_path, resume=True)
    assert sorted(here) == ["gelu 0", "gelu 1", "relu 1", "tanh 1", "time and memory 0"]
    for outcome in (again, more):
        for old, new in zip(first.record["variants"], outcome.record["variants"], strict=False):
            assert new["values"][:1] == old["values"]
    del here[:]
    compare(small("activation", "relu,tanh"), tmp_path)
    assert len(here) == 3


def test_only_the_same_comparison_is_resumed(here, tmp_path):
    compare(small("activation", "relu,tanh"), tmp_path)
    with pytest.raises(ArgumentValueError, match="made with another steps; give the same options"):
        compare(small("activation", "relu,tanh", steps=5), tmp_path, resume=True)
    with pytest.raises(ArgumentValueError, match="made with another site and data"):
        compare(small("attention", "softmax,sigmoid"), tmp_path, resume=True)


def test_folders_of_others_are_left_alone(here, tmp_path):
    plan = small("activation", "relu,tanh")
    (tmp_path / "cells").mkdir()
    with pytest.raises(ArgumentValueError, match="not of a comparison"):
        compare(plan, tmp_path)
    assert (tmp_path / "cells").is_dir() and here == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentValueError, match="is no folder"):
        compare(plan, tmp_path / "file")
    with folder_lock(tmp_path / "busy"), pytest.raises(StateError, match="another run"):
        compare(plan, tmp_path / "busy")
    with pytest.raises(ArgumentValueError, match="--workers"):
        compare(plan, tmp_path / "new", workers=0)


def test_one_seed_and_one_rate_make_no_claims(here, tmp_path):
    outcome = compare(small("activation", "relu,tanh"), tmp_path)
    tanh = outcome.record["variants"][1]
    assert tanh["comparison"]["verdict"] == "one seed" and tanh["comparison"]["p"] is None
    assert tanh["spread"] is None and tanh["tried"] == {} and tanh["lr_edge"] == ""
    assert "cannot say whether a difference is more than chance" in outcome.record["notes"][0]
    assert any("not tuned" in note for note in outcome.record["notes"])
    assert (outcome.folder / "index.html").read_text().count("<svg") == 2  # curves and cost


def test_a_run_that_diverges_is_said_to_diverge(here, tmp_path):
    outcome = compare(small("activation", "relu,tanh", lr_grid="1e30", steps=4, seeds=2), tmp_path)
    for variant in outcome.record["variants"]:
        assert variant["comparison"]["verdict"] == "diverged" and math.isnan(variant["mean"])
    record = json.loads((tmp_path / "compare.json").read_text())  # NaN is null there
    assert record["variants"][0]["mean"] is None and "diverged" in comparison_page(record)


def test_a_variant_that_fails_does_not_take_the_others_with_it(here, tmp_path, monkeypatch):
    set_up = training.set_up

    def broken(config, data, seed, variant=None):
        if config["role"] == "seed" and config["variant"]["name"] == "tanh":
            raise RuntimeError("<img src=x>")
        return set_up(config, data, seed, variant)

    monkeypatch.setattr(training, "set_up", broken)
    outcome = compare(small("activation", "relu,tanh,gelu", seeds=2), tmp_path)
    assert outcome.exit_code == 1
    verdicts = [variant["comparison"]["verdict"] for variant in outcome.record["variants"]]
    assert verdicts[1] == "diverged" and verdicts[2] != "diverged"
    page = (tmp_path / "index.html").read_text()
    assert "&lt;img src=x&gt;" in page and "<img" not in page


def test_names_of_files_and_classes_are_escaped(here, tmp_path):
    path = tmp_path / "<b>&'x.csv"
    path.write_text("a,<i>y\n" + "".join(f"{i},{'<u>' if i % 2 else 'no'}\n" for i in range(80)))
    plan = small("activation", "relu,tanh", source=Source(csv=path))
    compare(plan, tmp_path / "out", command=f"softgate --csv {path}")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "&lt;b&gt;&amp;&#x27;x.csv" in page and not re.search("<(b|i|u)>", page)


def test_the_view_has_one_row_per_variant():
    plan = small("activation", "relu,tanh")
    console = Console(width=120, record=True, file=io.StringIO())
    view = CompareView(console, "title", [variant.label for variant in plan.variants], plan.metric.name)
    running = run.Running(run.Path("x"), False, 1, "cpu")
    plan = dataclasses.replace(plan, seeds=2)
    tasks = list(running.seeds(plan, {"relu": 0.01, "tanh": 0.02}))
    states = [CellState(task) for task in tasks]
    states[0].status, states[1].status = "done", "running"
    states[1].event = {"step": 3, "total": 9, "accuracy": 0.5}
    with view:
        view.update(states)
    view.update([CellState(running.cost(plan), "done")])
    assert view.table().row_count == 2
    assert view.rows["tanh"].step == 3 and "lr 0.02" in view.rows["tanh"].figures
    assert "accuracy 0.5" in view.rows["tanh"].figures and view.rows["relu"].state == "done"
    assert "relu seed 0 done" in console.export_text()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["attention"], "variants"),
        (["nowhere", "--variants", "a,b", "--data", "synthetic"], "SITE must be"),
        (["attention", "--variants", "softmax", "--data", "synthetic"], "at least two"),
        (
            ["attention", "--variants", "softmax,softmaxx", "--data", "synthetic"],
            "'softmaxx' is no method of attention; known are",
        ),
        (["attention", "--variants", "softmax,sigmoid:colour=red", "--data", "synthetic"], "sigmoid:colour=red: "),
        (["attention", "--variants", "softmax,gated:granularity=none", "--data", "synthetic"], "granularity"),
        (["attention", "--variants", "softmax,gated", "--data", "synthetic", "--steps", "0"], "steps"),
        (["attention", "--variants", "softmax,gated", "--data", "synthetic", "--seeds", "1001"], "at most 1000"),
        (["attention", "--variants", "softmax,gated", "--data", "synthetic", "--lr-grid", "0"], "--lr-grid"),
        (["attention", "--variants", "softmax,gated", "--text", "nowhere.txt"], "no file"),
        (["loss", "--variants", "cross_entropy,stablemax", "--images", "nowhere"], "no folder"),
        (["activation", "--variants", "relu,tanh", "--csv", "nowhere.csv"], "no file"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input_ends_with_exit_code_2(arguments, word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["softgate", "compare", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    output = capsys.readouterr()
    assert stop.value.code == 2 and "Traceback" not in output.err
    assert word in output.err.replace("\n", " ")
    assert not (tmp_path / "runs").exists()


def test_a_missing_set_ends_with_exit_code_3(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SOFTGATE_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    arguments = ["compare", "attention", "--variants", "softmax,gated", "--data", "tinyshakespeare"]
    monkeypatch.setattr(sys, "argv", ["softgate", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 3 and "--download" in capsys.readouterr().err


def test_the_command_prints_json_and_says_how_to_repeat_it(here, tmp_path):
    arguments = ["activation", "--variants", "relu,tanh", "--data", "synthetic", "--steps", "4", "--seeds", "1",
                 "--lr-grid", "0.01", "--out", str(tmp_path / "a b")]  # fmt: skip
    result = CliRunner().invoke(cli.app, ["compare", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["command"].startswith("softgate compare activation --data synthetic --variants relu,tanh --size tiny")
    assert record["command"].endswith("a b'")


def test_a_killed_run_continues_to_the_same_figures(here, tmp_path):
    """In processes, as users run it: Ctrl-C during a training, then resumed; equal to a run without interruption."""
    options = ["--data", "synthetic", "--steps", "700", "--seeds", "1", "--lr-grid", "0.01", "--workers", "1"]
    words = [sys.executable, "-m", "softgate", "compare", "activation", "--variants", "relu,tanh", *options]
    process = subprocess.Popen([*words, "--out", str(tmp_path / "a")], stdout=subprocess.PIPE, text=True)
    events = tmp_path / "a" / "cells" / "tanh-lr0.01-s0" / "events.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if events.exists() and events.read_text().count("\n") > 3:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 130 and "--resume" in said
    assert not (tmp_path / "a" / "compare.json").exists()
    assert (events.parent / "checkpoints").is_dir() and not (events.parent / "result.json").exists()
    plan = small("activation", "relu,tanh", steps=700)
    resumed = compare(plan, tmp_path / "a", resume=True, workers=1)
    assert here == ["tanh 0", "time and memory 0"]
    assert json.loads((events.parent / "attempts.json").read_text()) == {"attempts": 2}
    whole = compare(plan, tmp_path / "b", workers=1)
    for one, other in zip(resumed.record["cells"][:-1], whole.record["cells"][:-1], strict=True):
        assert one["figures"] == other["figures"]
