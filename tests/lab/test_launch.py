"""One cell under torchrun: the same figures as in one process, found again by ``reproduce --resume``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from softgate.lab import launch
from softgate.lab.reproduce import cell_folder

HERE = Path(__file__).resolve().parent


def under_torchrun(out: Path, cell: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "softgate.lab.launch", "launch-paper", cell, "--module", "launch_paper", "--scale", "paper"]
    command += ["--out", str(out), "--device", "cpu"]
    paths = os.pathsep.join((str(HERE.parent.parent / "src"), str(HERE)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=200)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors
    return output


def figures(out: Path, cell: str) -> dict[str, list[float]]:
    path = cell_folder(out, "launch-paper", "paper", cell, 0) / "result.json"
    return json.loads(path.read_text(encoding="utf-8"))["figures"]


@pytest.mark.parametrize("cell", ["ddp", "fsdp"])
def test_two_processes_measure_what_one_does(tmp_path, cell, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    assert "done" in under_torchrun(tmp_path / "two", cell)
    arguments = ["launch-paper", cell, "--module", "launch_paper", "--out", str(tmp_path / "one"), "--device", "cpu"]
    assert launch.main(arguments) == 0
    one, two = figures(tmp_path / "one", cell), figures(tmp_path / "two", cell)
    assert one["loss"] == pytest.approx(two["loss"], abs=1e-6)
    assert one["weights"] == pytest.approx(two["weights"], abs=1e-6)


def test_a_finished_cell_is_not_measured_again(tmp_path) -> None:
    under_torchrun(tmp_path, "ddp")
    path = cell_folder(tmp_path, "launch-paper", "paper", "ddp", 0) / "result.json"
    before = path.read_bytes()
    assert "done" in under_torchrun(tmp_path, "ddp")
    assert path.read_bytes() == before


def test_a_failing_cell_says_why(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    arguments = ["launch-paper", "nothing", "--module", "launch_paper", "--out", str(tmp_path), "--device", "cpu"]
    with pytest.raises(ValueError, match="cell must be one of ddp, fsdp"):
        launch.main(arguments)
