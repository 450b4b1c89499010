"""The command line: its surface, its exit codes, and that help is cheap."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from softgate import cli
from softgate.lab.paper import paper_slugs
from softgate.lab.reproduce import reproduce as lab_reproduce
from softgate.lab.site import Built

runner = CliRunner()

#: Every command with its options. Changing this list is a decision that users notice: say it in CHANGELOG.md.
SURFACE = {
    "papers": {"query", "--json"},
    "show": {"paper", "--json"},
    "reproduce": {
        "papers", "--scale", "--seeds", "--resume", "--out", "--on", "--workers", "--device", "--download", "--json",
    },
    "report": {"--open", "--out", "--results"},
    "bench": {"site", "arguments", "--summary"},
    "diagnose": {
        "model", "--text", "--images", "--length", "--batch", "--batches", "--device", "--out", "--json",
    },
    "compare": {
        "site", "--variants", "--text", "--images", "--csv", "--target", "--data", "--size", "--steps", "--seeds",
        "--lr-grid", "--resume", "--out", "--on", "--workers", "--device", "--download", "--json",
    },
    "doctor": {"--json"},
}  # fmt: skip


def exit_code(*arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["softgate", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0


def test_the_surface_is_the_frozen_one():
    commands = typer.main.get_command(cli.app).commands
    found = {}
    for name, command in commands.items():
        options = {p.opts[-1] if p.param_type_name == "option" else p.name for p in command.params}
        found[name] = options - {"--help"}
    assert found == SURFACE


def test_help_does_not_import_torch():
    code = "import sys\nfrom typer.testing import CliRunner\nfrom softgate.cli import app\n"
    code += "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
    code += "heavy = {'torch', 'numpy', 'matplotlib', 'transformers'} & set(sys.modules)\nassert not heavy, heavy\n"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_papers_lists_every_paper_file():
    listed = json.loads(runner.invoke(cli.app, ["papers", "--json"]).stdout)
    assert [p["slug"] for p in listed] == paper_slugs()
    for slug in paper_slugs():
        assert slug.split("-")[0] in runner.invoke(cli.app, ["papers"]).stdout


def test_papers_filters_by_query():
    assert json.loads(runner.invoke(cli.app, ["papers", "no such thing", "--json"]).stdout) == []


@pytest.mark.parametrize("slug", paper_slugs())
def test_show_names_every_claim(slug):
    shown = json.loads(runner.invoke(cli.app, ["show", slug, "--json"]).stdout)
    assert shown["slug"] == slug and shown["claims"] and all(c["relation"] for c in shown["claims"])
    assert runner.invoke(cli.app, ["show", slug]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["nonsense"], 2),
        (["show", "no-such-paper"], 2),
        (["reproduce"], 2),
        (["reproduce", "no-such-paper"], 2),
        (["reproduce", "../../etc"], 2),
        (["reproduce", "fake-paper", "--seeds", "0"], 2),
        (["reproduce", "fake-paper", "--on", "moon"], 2),
        (["bench", "no-such-site"], 2),
        (["diagnose"], 2),
        (["diagnose", "./no-such-folder"], 2),
        (["diagnose", "/", "--length", "4"], 2),
    ],
)
def test_exit_codes(arguments, code, monkeypatch, capsys):
    assert exit_code(*arguments, monkeypatch=monkeypatch) == code
    output = capsys.readouterr()
    assert "Traceback" not in output.err + output.out


def test_an_unknown_paper_is_answered_with_the_known_ones(monkeypatch, capsys):
    exit_code("show", "no-such-paper", monkeypatch=monkeypatch)
    error = capsys.readouterr().err
    assert "no-such-paper" in error and all(slug in error.replace("\n", "") for slug in paper_slugs())


def test_reproduce_prints_json_and_writes_the_index(tmp_path, monkeypatch):
    sys.path.insert(0, str(Path(__file__).parent / "lab"))
    fake = __import__("fake_paper")

    def with_fake(slug, **kwargs):
        return lab_reproduce(slug, module="fake_paper", **kwargs)

    monkeypatch.setattr("softgate.lab.reproduce.reproduce", with_fake)
    monkeypatch.setattr("softgate.lab.paper.load_paper", lambda slug: fake.PAPER)
    arguments = ["reproduce", "fake-paper", "--scale", "smoke", "--out", str(tmp_path), "--json"]
    result = runner.invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["claims"][0]["verdict"] == "reproduced"
    assert "fake-paper/smoke/index.html" in (tmp_path / "index.html").read_text()


def test_report_builds_the_site_names_what_it_left_out_and_opens_it(tmp_path, monkeypatch):
    calls, opened = [], []

    def build(out, results):
        calls.append((out, results))
        return Built((out / "index.html").absolute(), 41, 1, ((tmp_path / "broken.json", "not a record"),))

    monkeypatch.setattr("softgate.lab.site.build_site", build)
    monkeypatch.setattr(typer, "launch", opened.append)
    result = runner.invoke(cli.app, ["report", "--out", str(tmp_path), "--results", "runs", "--open"])
    assert result.exit_code == 0 and calls == [(tmp_path, Path("runs"))]
    assert str(tmp_path / "index.html") in result.stdout and "broken.json" in result.stderr
    assert opened == [(tmp_path / "index.html").as_uri()]
