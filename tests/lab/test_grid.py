from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grid_papers
import numpy as np
import pytest
import torch

from softgate.errors import ArgumentValueError, MissingExtraError, SoftgateError
from softgate.lab.files import folder_lock
from softgate.lab.grid import CellState, CellTask, EventTail, run_grid, run_task
from softgate.lab.paper import Cell
from softgate.lab.task import CellResult, checked_figures

HERE = Path(__file__).parent


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., CellTask]:
    def make(cell: str, seed: int = 0, **fields: Any) -> CellTask:
        folder = str(tmp_path / f"{cell}-{seed}")
        return CellTask("fake", "smoke", cell, seed, folder, module="grid_papers", **fields)

    return make


def _gone(pid: int, within: float) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


# One cell in this process


def test_figures_come_back_plain_and_are_recorded(task: Callable[..., CellTask]) -> None:
    result = run_task(task("fine", seed=4))
    assert result.status == "done" and result.error == ""
    assert result.figures["rows"] == [[1.0, 0.0], [0.0, 1.0]]
    assert result.figures["seed"] == 4 and math.isnan(result.figures["curve"][1])
    text = (Path(result.task.folder) / "result.json").read_text()
    record = json.loads(text)
    assert record["figures"]["curve"] == [1, None]
    assert record["identity"]["config"] == {"width": 3}
    assert record["environment"]["torch"] == torch.__version__
    assert result.task.folder not in text


def test_the_seed_and_the_threads_decide_every_generator(task: Callable[..., CellTask]) -> None:
    before = torch.get_num_threads()
    first, again = run_task(task("random")).figures, run_task(task("random")).figures
    other = run_task(task("random", seed=1)).figures
    assert first == again
    assert all(first[name] != other[name] for name in ("torch", "numpy", "python"))
    assert run_task(task("random", threads=before + 1)).figures["threads"] == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("raises", ("ValueError: no such luck", "grid_papers.py")),
        ("exits", ("SystemExit: 3",)),
        ("infinite", ("figure 'x' must be finite or NaN, got inf",)),
        ("words", ("figure 'x' must be a number", "'many'")),
        ("nothing", ("must return a mapping of figures, got None",)),
        ("unheard-of", ("cell must be one of fine, raises", "unheard-of")),
    ],
)
def test_what_a_cell_raises_is_its_result(task: Callable[..., CellTask], cell: str, words: tuple[str, ...]) -> None:
    result = run_task(task(cell))
    assert result.status == "failed" and not result.figures
    assert all(word in result.error for word in words)
    assert str(HERE) not in result.error
    assert not (Path(result.task.folder) / "result.json").exists()


def test_an_unknown_paper_is_a_result_too(tmp_path: Path) -> None:
    result = run_task(CellTask("no-such-paper", "smoke", "x", 0, str(tmp_path / "x")))
    assert result.status == "failed" and "no-such-paper" in result.error


def test_a_folder_in_use_is_left_alone(task: Callable[..., CellTask]) -> None:
    done = run_task(task("fine"))
    record = (Path(done.task.folder) / "result.json").read_bytes()
    with folder_lock(Path(done.task.folder)):
        result = run_task(task("fine"))
    assert result.status == "failed" and "another run" in result.error
    assert (Path(done.task.folder) / "result.json").read_bytes() == record


def test_resume_reuses_a_finished_result(task: Callable[..., CellTask]) -> None:
    first = run_task(task("pid"))
    resumed = run_task(task("pid", resume=True))
    assert resumed.reused and resumed.figures == first.figures and resumed.attempts == 1
    fresh = run_task(task("pid"))
    assert not fresh.reused


@pytest.mark.parametrize("field", ["config", "seed", "damage"])
def test_resume_measures_again_when_the_result_is_of_something_else(
    task: Callable[..., CellTask], monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    first = run_task(task("fine"))
    wanted = dataclasses.replace(first.task, resume=True)
    if field == "config":
        scale = dataclasses.replace(grid_papers.PAPER.scales["smoke"], cells=(Cell("fine", {"width": 4}),))
        paper = dataclasses.replace(grid_papers.PAPER, scales={"smoke": scale})
        monkeypatch.setattr(grid_papers, "PAPER", paper)
    elif field == "seed":
        wanted = dataclasses.replace(wanted, seed=1)
    else:
        path = Path(first.task.folder) / "result.json"
        path.write_bytes(path.read_bytes()[:-40])
    result = run_task(wanted)
    assert result.status == "done" and not result.reused and result.attempts == 2


def test_resume_counts_attempts_and_a_fresh_start_forgets(task: Callable[..., CellTask]) -> None:
    attempts = [run_task(task("raises", resume=resume)).attempts for resume in (False, True, True, False)]
    assert attempts == [1, 2, 3, 1]


@pytest.mark.parametrize(
    "figures",
    [
        {"x": np.float32(0.5), "n": np.int64(3), "yes": True, "list": (1, 2.5), "array": np.eye(2), "nan": math.nan},
        {"x": torch.tensor(0.5), "row": torch.ones(3, dtype=torch.bfloat16), "empty": []},
    ],
)
def test_figures_survive_json(figures: dict[str, Any]) -> None:
    plain = checked_figures(figures)
    assert set(plain) == set(figures)
    assert json.loads(json.dumps(plain, allow_nan=True)).keys() == plain.keys()


@pytest.mark.parametrize(
    "figure", ["x", None, 1j, {"a": 1}, math.inf, [1, -math.inf], [["a"]], torch.tensor([math.inf]), {1}]
)
def test_figures_that_are_no_numbers_are_refused(figure: Any) -> None:
    with pytest.raises(SoftgateError, match="'bad'"):
        checked_figures({"good": 1, "bad": figure})


def test_a_result_survives_json(task: Callable[..., CellTask]) -> None:
    result = CellResult(task("fine"), "done", {"x": 1.0, "c": [1, 2]}, seconds=1.5, attempts=2)
    assert CellResult.from_dict(json.loads(json.dumps(result.as_dict()))) == result


# The grid on this machine


def test_cells_that_fail_or_crash_do_not_lose_the_others(task: Callable[..., CellTask]) -> None:
    names = ["raises", "fine", "exits", "vanishes", "segfaults", "killed", "words", "pid"]
    results = dict(zip(names, run_grid([task(name) for name in names], workers=2), strict=True))
    assert {name for name, result in results.items() if result.status == "done"} == {"fine", "pid"}
    assert {result.status for result in results.values()} == {"done", "failed"}
    assert results["pid"].figures["pid"] != os.getpid()
    assert "ValueError: no such luck" in results["raises"].error
    assert "exited with status 7" in results["vanishes"].error
    assert "killed by SIGKILL" in results["killed"].error
    assert "Segmentation fault" in results["segfaults"].error
    assert results["segfaults"].error.endswith("was killed by SIGSEGV before it could report")
    folder = Path(results["fine"].task.folder)
    assert "printed by the cell" in (folder / "stderr.log").read_text()


def test_the_grid_resumes_where_it_was(task: Callable[..., CellTask]) -> None:
    first = run_grid([task("pid"), task("raises")], workers=2)
    second = run_grid([task("pid", resume=True), task("raises", resume=True)], workers=2)
    assert second[0].reused and second[0].figures == first[0].figures
    assert second[1].attempts == 2


def test_as_many_cells_at_once_as_there_are_workers(task: Callable[..., CellTask]) -> None:
    results = run_grid([task("timed", seed=seed) for seed in range(5)], workers=2)
    spans = [(result.figures["began"], result.figures["ended"]) for result in results]
    at_once = [sum(began <= moment < ended for began, ended in spans) for moment, _ in spans]
    assert max(at_once) == 2


def test_poll_sees_waiting_running_and_done_with_events(task: Callable[..., CellTask]) -> None:
    seen: list[list[tuple[str, Any]]] = []

    def poll(states: Sequence[CellState]) -> None:
        seen.append([(state.status, (state.event or {}).get("loss")) for state in states])

    run_grid([task("timed"), task("fine"), task("raises")], workers=1, poll=poll)
    assert seen[0] == [("running", None), ("waiting", None), ("waiting", None)]
    assert seen[-1] == [("done", None), ("done", 0.5), ("failed", None)]


def test_a_poll_that_raises_stops_the_cells(task: Callable[..., CellTask]) -> None:
    def poll(states: Sequence[CellState]) -> None:
        if states[0].event:
            raise ZeroDivisionError

    started = time.monotonic()
    with pytest.raises(ZeroDivisionError):
        run_grid([task("stubborn")], workers=1, poll=poll)
    assert time.monotonic() - started < 20


def test_cells_see_the_variables_of_the_moment(task: Callable[..., CellTask], monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (1.0, 2.0):  # the second grid finds the process server running already
        monkeypatch.setenv("SOFTGATE_TEST_VARIABLE", str(value))
        (result,) = run_grid([task("variable")], workers=1)
        assert result.figures["x"] == value


def test_a_cell_that_leaves_a_child_behind_neither_hangs_nor_leaks(task: Callable[..., CellTask]) -> None:
    started = time.monotonic()
    (result,) = run_grid([task("orphaning")], workers=1)
    assert time.monotonic() - started < 20
    assert "exited with status 3" in result.error
    assert _gone(int((Path(result.task.folder) / "child").read_text()), within=5)


def _signal_after_events(cells: int, number: int) -> Callable[[Sequence[CellState]], None]:
    sent = threading.Event()

    def poll(states: Sequence[CellState]) -> None:
        if not sent.is_set() and sum(state.event is not None for state in states) == cells:
            sent.set()
            os.kill(os.getpid(), number)

    return poll


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_cells_checkpoint_and_keeps_what_is_done(
    task: Callable[..., CellTask], number: signal.Signals
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    tasks = [task("fine"), task("checkpointing"), task("sleeps")]
    started = time.monotonic()
    results = run_grid(tasks, workers=1, poll=_signal_after_events(2, number))
    assert time.monotonic() - started < 20
    assert [result.status for result in results] == ["done", "interrupted", "interrupted"]
    assert (Path(tasks[1].folder) / "checkpoint").is_file()
    assert number.name in results[2].error and results[2].attempts == 0
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_cell_that_ignores_the_signal_is_killed_after_five_seconds(task: Callable[..., CellTask]) -> None:
    started = time.monotonic()
    results = run_grid(
        [task("stubborn"), task("checkpointing")], workers=2, poll=_signal_after_events(2, signal.SIGINT)
    )
    assert 5 <= time.monotonic() - started < 25
    assert [result.status for result in results] == ["interrupted"] * 2
    assert "killed after 5 s" in results[0].error and "Interrupted" in results[1].error


def test_a_second_signal_kills_at_once(task: Callable[..., CellTask]) -> None:
    sent: list[float] = []

    def poll(states: Sequence[CellState]) -> None:
        if states[0].event is not None and len(sent) < 2:
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

    (result,) = run_grid([task("stubborn")], workers=1, poll=poll)
    assert time.monotonic() - sent[0] < 4
    assert result.status == "interrupted" and "second signal" in result.error


def test_a_cell_cut_down_while_stopping_counts_as_interrupted(task: Callable[..., CellTask]) -> None:
    (result,) = run_grid([task("defiant")], workers=1, poll=_signal_after_events(1, signal.SIGTERM))
    assert result.status == "interrupted" and "exited with status 9" in result.error


def test_cells_do_not_outlive_a_killed_parent(task: Callable[..., CellTask], tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import json, sys\nfrom softgate.lab.grid import CellTask, run_grid\n"
        "if __name__ == '__main__':\n    run_grid([CellTask(**json.loads(sys.argv[1]))], workers=1)\n"
    )
    cell = task("checkpointing")
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, str(script), json.dumps(cell.as_dict())], env=variables)
    try:
        deadline = time.monotonic() + 60
        while not (Path(cell.folder) / "events.jsonl").exists():
            assert time.monotonic() < deadline and parent.poll() is None
            time.sleep(0.05)
        pid = int((Path(cell.folder) / ".lock").read_text())
    finally:
        parent.kill()
        parent.wait()
    assert _gone(pid, within=8)
    assert (Path(cell.folder) / "checkpoint").is_file()


# Arguments, events


def test_bad_arguments_are_named(task: Callable[..., CellTask]) -> None:
    with pytest.raises(ArgumentValueError, match="workers"):
        run_grid([task("fine")], workers=0)
    with pytest.raises(ArgumentValueError, match="on must be"):
        run_grid([task("fine")], workers=1, on="moon")  # type: ignore[arg-type]
    with pytest.raises(ArgumentValueError, match="share"):
        run_grid([task("fine"), task("fine")], workers=1)
    with pytest.raises(ArgumentValueError, match="threads"):
        task("fine", threads=0)
    with pytest.raises(ArgumentValueError, match="device"):
        task("fine", device="tpu")
    assert run_grid([], workers=1) == []


def test_cuda_without_a_device_is_said(task: Callable[..., CellTask], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in run_task(task("fine", device="cuda")).error


def test_event_tail_reads_each_line_once_and_only_whole_ones(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    tail = EventTail(path)
    assert tail.newest() is None
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert tail.newest() == {"step": 2}
    with open(path, "a") as stream:
        stream.write('ep": 3}\nnot json\n[4]\n')
    assert tail.newest() == {"step": 3}
    path.write_text('{"step": 0}\n')
    assert tail.newest() == {"step": 0}


# Ray


def test_ray_gives_the_same_results_and_survives_a_crash(
    task: Callable[..., CellTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), *sys.path]))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    seen: list[list[Any]] = []
    names = ["fine", "vanishes", "raises", "random"]
    before = signal.getsignal(signal.SIGTERM)
    results = run_grid([task(name) for name in names], workers=2, on="ray",
                       poll=lambda states: seen.append([state.status for state in states]))  # fmt: skip
    assert [result.status for result in results] == ["done", "failed", "failed", "done"]
    assert results[3].figures == run_task(task("random")).figures
    assert "WorkerCrashedError" in results[1].error and "no such luck" in results[2].error
    assert seen[0] == ["running", "running", "waiting", "waiting"]
    assert json.loads((Path(results[0].task.folder) / "result.json").read_text())["figures"]["x"] == 1.5
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) == before


def test_without_ray_the_extra_is_named(task: Callable[..., CellTask], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"softgate\[ray\]"):
        run_grid([task("fine")], workers=1, on="ray")
