"""SIGKILL at any moment, Ctrl-C and SIGTERM: the resumed run ends with the bit-identical curve, weights and figures."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from softgate.lab import checkpoint, files, seeds
from softgate.lab.cell import EVENTS, CellRun
from softgate.lab.training import TrainConfig, fit

STEPS = 40
KILLS = 24


class Average:
    """A running average of the weights, saved beside the model."""

    def __init__(self, model: nn.Module) -> None:
        self.mean = [torch.zeros_like(p) for p in model.parameters()]

    def update(self, model: nn.Module) -> None:
        for mean, p in zip(self.mean, model.parameters(), strict=True):
            mean.lerp_(p.detach(), 0.1)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = state["mean"]


def train(
    folder: Path, *, resume: bool, steps: int = STEPS, every: int | None = 1, delay: float = 0.0
) -> dict[str, Any]:
    """A run that draws on every source of randomness: dropout, numpy, python, a loader's generator."""
    seeds.seed_everything(1)
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.2), nn.Tanh(), nn.BatchNorm1d(16), nn.Linear(16, 1))
    average, loader = Average(model), torch.Generator().manual_seed(7)

    def batch(step: int) -> Tensor:
        time.sleep(delay)
        noise = random.random() + np.random.standard_normal()
        return torch.randn(16, 8, generator=seeds.generator(1, "data", step)) + 0.1 * noise

    def loss(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        average.update(model)
        target = x.sum(1) + torch.randn(16, generator=loader)
        return (model(x)[:, 0] - target).square().mean(), {"noise": torch.randn(())}

    history = fit(
        model,
        loss,
        TrainConfig(steps=steps, lr=0.01, warmup=5, weight_decay=0.1, eval_every=7, checkpoint_every=every),
        batches=batch,
        run=CellRun("paper", "smoke", "cell", {"width": 16}, 1, folder, resume=resume),
        evaluate=lambda m: {"mean": m(torch.randn(4, 8)).mean(), "average": average.mean[0].sum()},
        state={"average": average, "loader": loader},
    )
    weights = [*model.state_dict().values(), *average.mean, torch.get_rng_state()]
    digest = hashlib.sha256(b"".join(w.contiguous().numpy().tobytes() for w in weights))
    return {"history": history, "weights": digest.hexdigest(), "next": [random.random(), float(np.random.random())]}


def kill_at_call(number: int) -> None:
    """Make this process kill itself just before its ``number``-th call that changes the checkpoint folder."""
    count = 0

    def counted(function: Any, half: Any = None) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                if half is not None:
                    half(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapper

    def half_file(tensors: Any, path: Path) -> None:
        save_file(tensors, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    save_file = checkpoint.save_file
    checkpoint.save_file = counted(save_file, half_file)  # type: ignore[assignment]
    os.fsync, os.rename, os.mkdir = counted(os.fsync), counted(os.rename), counted(os.mkdir)
    shutil.rmtree = counted(shutil.rmtree)  # type: ignore[assignment]


def live(folder: Path, options: dict[str, Any], kill: int | None = None) -> None:
    """One life of the run, in a process of its own."""
    if kill is not None:
        kill_at_call(kill)
    result = train(folder, resume=True, **options)
    files.write_json(folder / "result.json", result)


def start(folder: Path, kill: int | None = None, **options: Any) -> ForkServerProcess:
    context = multiprocessing.get_context("forkserver")
    # torch imports _dynamo at the first optimizer: seconds, and not what these lives are about
    context.set_forkserver_preload(["torch._dynamo", "softgate.lab.training"])
    process = context.Process(target=live, args=(folder, options, kill))
    process.start()
    return process


def end(process: ForkServerProcess, seconds: float = 60.0) -> int:
    process.join(seconds)
    assert process.exitcode is not None, f"still alive after {seconds} s"
    return process.exitcode


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The run without a kill, and without a checkpoint before its end."""
    folder = tmp_path_factory.mktemp("whole")
    assert end(start(folder, every=None)) == 0
    return json.loads((folder / "result.json").read_text())


def test_runs_killed_at_random_moments_end_like_the_one_left_alone(tmp_path: Path, reference: dict[str, Any]) -> None:
    rng = random.Random(os.environ.get("SOFTGATE_KILL_SEED", "3"))
    started = time.monotonic()
    assert end(start(tmp_path / "timing")) == 0
    whole = time.monotonic() - started
    kills = runs = 0
    while kills < int(os.environ.get("SOFTGATE_KILLS", KILLS)):
        folder = tmp_path / str(runs)
        runs += 1
        while not (folder / "result.json").exists():
            process = start(folder)
            process.join(rng.uniform(0.0, 0.4 * whole))
            process.kill()
            kills += end(process) == -signal.SIGKILL
        assert json.loads((folder / "result.json").read_text()) == reference
    print(f"{kills} kills in {runs} runs of {whole:.2f} s")


@pytest.mark.parametrize("first", [1, 16])
def test_runs_killed_at_every_call_that_writes_a_checkpoint(
    tmp_path: Path, reference: dict[str, Any], first: int
) -> None:
    """15 consecutive calls: all of a life's first checkpoint, and all of its second."""
    for number in range(first, first + 15):
        assert end(start(tmp_path, kill=number)) == -signal.SIGKILL
    assert end(start(tmp_path)) == 0
    assert json.loads((tmp_path / "result.json").read_text()) == reference


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_write_a_checkpoint_and_exit(
    tmp_path: Path, reference: dict[str, Any], signum: signal.Signals, code: int
) -> None:
    process = start(tmp_path, every=None, delay=0.02)
    while not (tmp_path / EVENTS).exists():
        time.sleep(0.005)
    sent = time.monotonic()
    os.kill(process.pid or 0, signum)
    assert end(process, 5.0) == code
    assert time.monotonic() - sent < 5.0
    state = checkpoint.Checkpoints(tmp_path / "checkpoints" / "fit").load()
    assert state is not None and 0 < state["step"] < STEPS
    assert end(start(tmp_path, every=None)) == 0
    assert json.loads((tmp_path / "result.json").read_text()) == reference


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    process = start(tmp_path, every=None, delay=30.0)
    while not (tmp_path / "checkpoints" / "fit" / ".lock").exists():
        time.sleep(0.005)
    for _ in range(100):  # the first only asks; the handlers are installed right after the lock is taken
        os.kill(process.pid or 0, signal.SIGTERM)
        process.join(0.05)
        if process.exitcode is not None:
            break
    assert process.exitcode == -signal.SIGTERM


def test_a_second_process_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    with files.folder_lock(tmp_path / "checkpoints" / "fit"), pytest.raises(RuntimeError, match="another run"):
        train(tmp_path, resume=False)
