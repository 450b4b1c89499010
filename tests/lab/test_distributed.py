"""Two processes train like one: DDP and FSDP2 over gloo, resuming across world sizes, losing a process."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from softgate.lab import distributed, files, seeds
from softgate.lab.cell import EVENTS, CellRun
from softgate.lab.checkpoint import Checkpoints
from softgate.lab.training import TrainConfig, fit
from softgate.models import GPT, GPTConfig

ROOT = Path(__file__).resolve().parents[2]
STEPS = 12

#: What is trained alike by one and by two processes. 7 rows are uneven: 4 and 3, or 2, 2, 2 and 1 micro-batches.
CASES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp": {"strategy": "fsdp"},
    # plain SGD, because AdamW and clipping hide a gradient that is wrong by a factor
    "ddp-uneven": {"strategy": "ddp", "rows": 7, "sgd": True, "clip": None},
    "fsdp-uneven": {"strategy": "fsdp", "rows": 7, "sgd": True, "clip": None},
    "ddp-one-row": {"strategy": "ddp", "rows": 1},
    "ddp-micro": {"strategy": "ddp", "rows": 7, "grad_accumulation": 2},
    "fsdp-micro": {"strategy": "fsdp", "rows": 7, "grad_accumulation": 2},
    "ddp-tokens": {"strategy": "ddp", "masked": True, "sgd": True, "clip": None},
}


class Stop(Exception):
    pass


def train(
    folder: Path,
    *,
    rows: int = 8,
    masked: bool = False,
    sgd: bool = False,
    dropout: float = 0.0,
    stop: int | None = None,
    resume: bool = False,
    delay: float = 0.0,
    **changes: Any,
) -> dict[str, Any]:
    """A tiny GPT; returns the history and the weights."""
    torch.manual_seed(5 + int(os.environ.get("RANK", "0")))  # rank 0's weights count
    sizes = {"vocab_size": 11, "num_layers": 2, "num_heads": 2, "embed_dim": 16}
    model = GPT(GPTConfig(**sizes, attention="gated", tied_head=True, dropout=dropout))

    def batches(step: int) -> tuple[Tensor, Tensor]:
        if step == stop:
            raise Stop
        time.sleep(delay)
        tokens = torch.randint(0, 11, (rows, 6), generator=seeds.generator(0, "data", step))
        targets = (tokens + 1) % 11
        return tokens, torch.where((tokens + step) % 3 == 0, -100, targets) if masked else targets

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        logits, value = model(*batch)
        return value, {} if masked else {"largest": logits.amax(dim=(1, 2)).mean()}

    history = fit(
        model,
        loss,
        TrainConfig(
            **{
                "steps": STEPS,
                "lr": 0.01,
                "warmup": 2,
                "weight_decay": 0.1,
                "clip": 0.5,
                "eval_every": 5,
                "checkpoint_every": 4,
                **changes,
            }
        ),
        batches=batches,
        optimizer=(lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9)) if sgd else None,
        run=CellRun("p", "smoke", "c", {}, 0, folder, resume=resume),
        evaluate=lambda m: {"noise": float(torch.randn(())), "held_out": float(m(*batches(1000))[1])},
        batch_weight=(lambda batch: float((batch[1] != -100).sum())) if masked else None,
    )
    weights = {name: distributed.full(p.detach()).tolist() for name, p in model.state_dict().items()}
    return {"history": history, "weights": weights}


def play(folder: Path) -> None:
    """All trainings of one world, one after the other in the same processes."""
    name = "two" if "RANK" in os.environ else "one"
    for case, options in CASES.items():
        keep(folder / name / case, **options)
    if name == "two":
        for strategy in distributed.STRATEGIES:
            keep(folder / f"dropout-{strategy}", strategy=strategy, dropout=0.3)
            stopped(folder / f"continued-{strategy}", strategy=strategy, dropout=0.3)
            keep(folder / f"continued-{strategy}", strategy=strategy, dropout=0.3, resume=True)
            keep(folder / "one" / f"stopped-{strategy}", strategy=strategy, resume=True)
    else:
        for strategy in distributed.STRATEGIES:
            stopped(folder / "one" / f"stopped-{strategy}", strategy=strategy)


def keep(folder: Path, **options: Any) -> None:
    result = train(folder, **options)
    if os.environ.get("RANK", "0") == "0":
        files.write_json(folder.with_suffix(".json"), result)


def stopped(folder: Path, **options: Any) -> None:
    """A run that ends before its update 9 (from 0), with its last checkpoint after 8."""
    with pytest.raises(Stop):
        train(folder, stop=9, **options)


def world(target: Any, *arguments: Any, size: int = 2, **environment: str) -> list[ForkServerProcess]:
    """Start ``target`` in ``size`` processes as a launcher would, or in one without a launcher."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "softgate.lab.training", "softgate.models"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launched = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for rank in range(size):
        variables = {**launched, "RANK": str(rank), "LOCAL_RANK": str(rank), **environment} if size > 1 else environment
        processes.append(context.Process(target=_enter, args=(variables, target, arguments)))
        processes[-1].start()
    return processes


def _enter(variables: dict[str, str], target: Any, arguments: tuple[Any, ...]) -> None:
    os.environ.update(variables)
    torch.set_num_threads(1)
    target(*arguments)


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds")
    for size in (1, 2):
        processes = world(play, folder, size=size)
        for process in processes:
            process.join(200)
        assert [process.exitcode for process in processes] == [0] * size
    return folder


def assert_equal(one: dict[str, Any], two: dict[str, Any], tolerance: float = 1e-6) -> float:
    """Compare histories and weights; returns the largest difference."""
    assert one["history"].keys() == two["history"].keys() and one["weights"].keys() == two["weights"].keys()
    pairs = [(a[key], b[key]) for a, b in ((one[p], two[p]) for p in ("history", "weights")) for key in a]
    largest = max(float(np.abs(np.subtract(a, b)).max()) for a, b in pairs)
    assert largest <= tolerance
    return largest


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_like_one(played: Path, case: str) -> None:
    one, two = read(played / "one" / f"{case}.json"), read(played / "two" / f"{case}.json")
    difference = assert_equal(one, two)
    print(f"{case}: largest difference {difference:.1e}")
    assert one["history"]["loss"][-1] < one["history"]["loss"][0]


@pytest.mark.parametrize("strategy", distributed.STRATEGIES)
def test_two_processes_continue_bit_identically(played: Path, strategy: str) -> None:
    """With dropout: every process goes on with its own random numbers."""
    assert read(played / f"continued-{strategy}.json") == read(played / f"dropout-{strategy}.json")


@pytest.mark.parametrize("strategy", distributed.STRATEGIES)
def test_two_processes_continue_what_one_began(played: Path, strategy: str) -> None:
    continued = read(played / "one" / f"stopped-{strategy}.json")
    assert_equal(read(played / "one" / f"{strategy}.json"), continued)


@pytest.mark.parametrize("strategy", distributed.STRATEGIES)
def test_one_process_continues_what_two_began(played: Path, tmp_path: Path, strategy: str) -> None:
    """The checkpoint of a sharded run is whole: any number of processes loads it."""
    finished = played / "two" / strategy
    newest, before = (Checkpoints(finished / "checkpoints" / "fit").load(g) for g in
                      reversed(Checkpoints(finished / "checkpoints" / "fit").generations()))  # fmt: skip
    assert newest is not None and before is not None and (newest["step"], before["step"]) == (12, 8)
    Checkpoints(tmp_path / "checkpoints" / "fit").save(before)
    continued = train(tmp_path, strategy=strategy, resume=True)
    assert_equal(read(finished.with_suffix(".json")), continued)
    for name, value in newest["model"].items():
        np.testing.assert_allclose(continued["weights"][name], value, atol=1e-6)


def test_only_rank_0_reports(played: Path) -> None:
    lines = (played / "two" / "ddp" / EVENTS).read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if "loss" in json.loads(line)]
    assert steps == list(range(1, STEPS + 1))


def forever(folder: Path, strategy: str) -> None:
    train(folder, strategy=strategy, steps=100_000, checkpoint_every=None, delay=0.01)


def started(folder: Path, processes: list[ForkServerProcess]) -> None:
    while not (folder / EVENTS).exists() and all(p.is_alive() for p in processes):
        time.sleep(0.01)


@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_process_is_killed_the_other_ends(tmp_path: Path, victim: int) -> None:
    processes = world(forever, tmp_path, "ddp")
    started(tmp_path, processes)
    processes[victim].kill()
    other = processes[1 - victim]
    other.join(60)
    code = other.exitcode
    other.kill()
    assert code not in (None, 0)


def test_a_signal_to_one_process_ends_all_with_a_checkpoint(tmp_path: Path) -> None:
    processes = world(forever, tmp_path, "fsdp")
    started(tmp_path, processes)
    os.kill(processes[1].pid or 0, signal.SIGTERM)
    for process in processes:
        process.join(10)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [143, 143]
    state = Checkpoints(tmp_path / "checkpoints" / "fit").load()
    assert state is not None and state["step"] > 0


@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
        ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_the_example_runs_under_the_launchers(tmp_path: Path, launcher: list[str]) -> None:
    pytest.importorskip(launcher[0].partition(".")[0])
    script = [str(ROOT / "examples" / "train_gpt.py"), "--steps", "5", "--width", "16", "--length", "16"]
    command = [sys.executable, "-m", *launcher, *script, "--batch", "3", "--device", "cpu", "--folder", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, errors = process.communicate(timeout=200)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, errors
    assert output.count("bits per byte on held-out text") == 5
    state = Checkpoints(tmp_path / "checkpoints" / "fit").load()
    assert state is not None and state["step"] == 5 and len(state["generators"]) == 2


def test_shares_cover_the_batch() -> None:
    batch = {"x": torch.arange(7), "pair": (torch.arange(14).view(7, 2), "name"), "scalar": torch.tensor(3)}
    pieces = distributed.shares(batch, 3)
    assert [share for _, share in pieces] == [3 / 7, 3 / 7, 1 / 7]
    assert torch.equal(torch.cat([piece["x"] for piece, _ in pieces]), batch["x"])
    assert all(piece["pair"][1] == "name" and piece["scalar"] == 3 for piece, _ in pieces)
    assert [share for _, share in distributed.shares(torch.ones(2, 3), 4)] == [0.5, 0.5, 0.0, 0.0]
