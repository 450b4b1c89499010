import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_paper
import pytest

from softgate.errors import ArgumentValueError, StateError
from softgate.lab.files import folder_lock
from softgate.lab.paper import Plot
from softgate.lab.plots import draw
from softgate.lab.reproduce import reproduce


def run(tmp_path, scale="smoke", **kwargs):
    return reproduce("fake-paper", scale=scale, out=tmp_path, module="fake_paper", workers=2, **kwargs)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return run(tmp_path_factory.mktemp("runs"))


def test_everything_a_reader_needs_is_written(smoke):
    assert smoke.exit_code == 0
    results = json.loads((smoke.folder / "results.json").read_text())
    assert [c["verdict"] for c in results["claims"]] == ["reproduced", "needs hardware"]
    assert results["claims"][0]["seeds_held"] == [2, 2]
    assert [s["values"] for s in results["claims"][0]["measured"]] == [[1.0, 1.1], [5.0, 5.1]]
    assert {(c["name"], c["seed"]) for c in results["cells"]} == {(n, s) for n in ("low", "high") for s in (0, 1)}
    assert results["command"] == "softgate reproduce fake-paper --scale smoke"
    assert {"torch", "python", "load_average_before", "threads_per_cell"} <= set(results["environment"])
    assert {p.name for p in smoke.folder.glob("*.svg")} == {"curve.svg", "value.svg", "map.svg"}
    events = (smoke.folder / "cells" / "low-s0" / "events.jsonl").read_text().splitlines()
    assert json.loads(events[-1])["step"] == 3


def test_the_page_is_self_contained_and_escaped(smoke):
    page = (smoke.folder / "index.html").read_text()
    assert "A &lt;b&gt;fake&lt;/b&gt; paper" in page and "<b>fake" not in page
    assert page.count("<svg") == 3
    assert "Content-Security-Policy" in page and "<script" not in page and "src=" not in page


def test_pictures_are_byte_identical_across_runs(smoke, tmp_path):
    again = run(tmp_path)
    for name in ("curve.svg", "value.svg", "map.svg"):
        assert (again.folder / name).read_bytes() == (smoke.folder / name).read_bytes()


def test_failing_and_crashing_cells_do_not_lose_the_others(tmp_path):
    outcome = run(tmp_path, scale="laptop")
    assert outcome.exit_code == 1
    states = {cell["name"]: cell["status"] for cell in outcome.results["cells"]}
    assert states == {"low": "done", "high": "done", "broken": "failed", "crashing": "failed"}
    assert outcome.judgements[0].verdict == "reproduced"
    page = (outcome.folder / "index.html").read_text()
    assert "&lt;script&gt;" in page and "<script>" not in page


def test_resume_keeps_finished_cells(tmp_path):
    first = run(tmp_path, scale="laptop")
    result = first.folder / "cells" / "low-s0" / "result.json"
    before = result.stat().st_mtime_ns
    run(tmp_path, scale="laptop", resume=True)
    assert result.stat().st_mtime_ns == before
    run(tmp_path, scale="laptop")
    assert result.stat().st_mtime_ns != before


def test_a_second_run_in_the_same_folder_refuses(tmp_path):
    with folder_lock(tmp_path / "fake-paper" / "smoke"), pytest.raises(StateError, match="another run"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("kwargs", "word"), [({"scale": "huge"}, "scale"), ({"seeds": 0}, "seeds"), ({"workers": 0}, "workers")]
)
def test_bad_arguments_are_named(tmp_path, kwargs, word):
    arguments = {"scale": "smoke", "out": tmp_path, "module": "fake_paper"} | kwargs
    with pytest.raises(ArgumentValueError, match=word):
        reproduce("fake-paper", **arguments)


def test_the_slug_must_be_the_papers_own(tmp_path):
    with pytest.raises(ArgumentValueError, match="slug"):
        reproduce("other", out=tmp_path, module=fake_paper.__name__)


def test_ctrl_c_ends_with_130_and_leaves_no_verdicts(tmp_path):
    script = (
        "import sys\nfrom pathlib import Path\nfrom softgate.lab.reproduce import reproduce\n"
        "if __name__ == '__main__':\n"
        "    outcome = reproduce('fake-paper', scale='paper', out=Path(sys.argv[1]), module='fake_paper')\n"
        "    sys.exit(outcome.exit_code)\n"
    )
    path = tmp_path / "run.py"
    path.write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen([sys.executable, str(path), str(tmp_path)], env=environment)
    events = tmp_path / "fake-paper" / "paper" / "cells" / "slow-s0" / "events.jsonl"
    deadline = time.monotonic() + 120
    while not events.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert not (tmp_path / "fake-paper" / "paper" / "results.json").exists()


def test_a_picture_names_each_of_several_figures_and_draws_no_other():
    rows = {"cell": [{"read": [9.0, 9.0], "reload": [1.0, 2.0], "recompute": [2.0, 3.0]}]}
    svg = draw(Plot("p", "lines", "reload|recompute", "Title"), rows)
    assert "cell reload" in svg and "cell recompute" in svg and "cell read<" not in svg
