"""Continuing a training from its checkpoints: bit-identical, after damage too, and never another run's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import a_run, batches, config, loss, make, weights
from torch import Tensor, nn

from softgate.errors import ArgumentTypeError, StateError
from softgate.lab.checkpoint import CheckpointError, Checkpoints, DamagedCheckpointWarning
from softgate.lab.training import fit


class Stop(Exception):
    pass


def interrupted(folder: Path, at: int, **options: Any) -> None:
    def failing(step: int) -> Any:
        if step == at:
            raise Stop
        return batches(step)

    with pytest.raises(Stop):
        fit(make(), loss, config(checkpoint_every=3), batches=failing, run=a_run(folder), **options)


def test_the_continuation_is_bit_identical_also_after_damage(tmp_path: Path) -> None:
    model = make()
    whole = fit(model, loss, config(checkpoint_every=3), batches=batches, run=a_run(tmp_path / "whole"))
    for damaged in (False, True):
        folder = tmp_path / str(damaged)
        make()
        interrupted(folder, 8)
        torch.manual_seed(123)
        other = make()
        torch.manual_seed(456)
        arguments: dict[str, Any] = {"batches": batches, "run": a_run(folder, resume=True)}
        if damaged:
            (folder / "checkpoints" / "fit" / "000002" / "state.json").write_text("{}")
            with pytest.warns(
                DamagedCheckpointWarning, match=r"000002/state\.json is damaged.*continuing from .*000001"
            ):
                history = fit(other, loss, config(checkpoint_every=3), **arguments)
        else:
            history = fit(other, loss, config(checkpoint_every=3), **arguments)
        assert history == whole
        assert torch.equal(weights(other), weights(model))


def test_a_fresh_start_forgets_older_checkpoints(tmp_path: Path) -> None:
    fit(make(), loss, config(), batches=batches, run=a_run(tmp_path))
    interrupted(tmp_path, 1)  # killed before its first checkpoint
    assert Checkpoints(tmp_path / "checkpoints" / "fit").load() is None


def test_resuming_where_nothing_is_starts_from_the_beginning(tmp_path: Path) -> None:
    history = fit(make(), loss, config(), batches=batches, run=a_run(tmp_path, resume=True))
    assert len(history["loss"]) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": config(lr=0.02, checkpoint_every=3)}, r"config\.lr was 0\.01, is 0\.02"),
        ({"config": config(steps=20)}, r"config\.steps was 10, is 20"),
        ({"model": make(9)}, r"model\.0\.bias was '\(8,\) torch\.float32', is '\(9,\) torch\.float32'"),
        ({"model": nn.Linear(6, 3)}, r"model\.0\.bias was .*, is 'absent'"),
        ({"model": make().double()}, r"torch\.float32', is '\(8,\) torch\.float64'"),
        ({"run": {"seed": 1}}, r"run\.seed was 0, is 1"),
        ({"run": {"config": {"width": 3}}}, r"run\.config\.width was 'absent', is 3"),
        ({"optimizer": lambda ps: torch.optim.SGD(ps, lr=0.1)}, "optimizer was 'AdamW', is 'SGD'"),
        ({"state": {"loader": torch.Generator()}}, "state was .*, is .*loader"),
    ],
)
def test_another_run_s_checkpoint_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    interrupted(tmp_path, 5)
    given = {"model": make(), "config": config(checkpoint_every=3), "run": {}, **changes}
    model, c, run = given.pop("model"), given.pop("config"), given.pop("run")
    with pytest.raises(CheckpointError, match=message):
        fit(model, loss, c, batches=batches, run=a_run(tmp_path, resume=True, **run), **given)


def test_another_number_of_threads_is_warned_of(tmp_path: Path) -> None:
    interrupted(tmp_path, 5)
    before = torch.get_num_threads()
    with pytest.warns(UserWarning, match="with 2 torch threads a run made with 1"):
        fit(make(), loss, config(checkpoint_every=3), batches=batches, run=a_run(tmp_path, resume=True, threads=2))
    assert torch.get_num_threads() == before


def test_loaders_generators_and_other_state_are_restored(tmp_path: Path) -> None:
    def train(folder: Path, at: int | None, resume: bool) -> list[float]:
        loader, shuffle = torch.Generator().manual_seed(3), np.random.default_rng(4)

        def draw(step: int) -> Tensor:
            if step == at:
                raise Stop
            return torch.randn(4, 6, generator=loader) + shuffle.standard_normal()

        return fit(
            make(), lambda m, x: m(x).square().mean(), config(checkpoint_every=3), batches=draw,
            run=a_run(folder, resume=resume), state={"loader": loader, "shuffle": shuffle},
        )["loss"]  # fmt: skip

    whole = train(tmp_path / "a", None, False)
    with pytest.raises(Stop):
        train(tmp_path / "b", 8, False)
    assert train(tmp_path / "b", None, True) == whole


def test_two_trainings_of_one_run_need_two_names(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    fit(make(), loss, config(), batches=batches, run=run)
    with pytest.raises(StateError, match=r"already called fit\(name='fit'\)"):
        fit(make(), loss, config(), batches=batches, run=run)
    fit(make(), loss, config(), batches=batches, run=run, name="second")
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"fit", "second"}


def test_a_full_disk_stops_the_run_with_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*fit/000001: .*No space left on device"):
        fit(make(), loss, config(checkpoint_every=3), batches=batches, run=a_run(tmp_path))


def test_state_that_cannot_be_saved_is_named(tmp_path: Path) -> None:
    state: Any = {"thing": 3}
    with pytest.raises(ArgumentTypeError, match="state must hold generators and objects with state_dict"):
        fit(make(), loss, config(), batches=batches, run=a_run(tmp_path), state=state)
