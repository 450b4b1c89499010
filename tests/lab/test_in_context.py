"""Training layers of in-context regression side by side, their snapshots, and the softmax regression task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from softgate.diagnostics import icl
from softgate.diagnostics import softmax_regression as sr
from softgate.lab import seeds
from softgate.lab.cell import CellRun
from softgate.lab.checkpoint import from_bytes, to_bytes
from softgate.lab.in_context import Starts, averaged, draw, frame_steps, predict, train_starts
from softgate.lab.in_context_circuit import circuit_figures, circuit_matrices, sorted_frames
from softgate.lab.snapshots import Snapshots
from softgate.lab.tasks.softmax_prompts import SoftmaxPrompts

DATA = icl.LinearRegressionPrompts(2, 8, 0.1)


def run(folder: Path, **config: Any) -> CellRun:
    return CellRun("p", "smoke", "c", {"steps": 12, "lr": 0.01, "batch": 16, **config}, 0, folder)


def layers(count: int) -> list[icl.AttentionICL]:
    with seeds.isolated_rng(1):
        return [icl.AttentionICL(2, 2, init_std=0.5) for _ in range(count)]


def test_starts_predict_what_their_layers_predict() -> None:
    each = layers(3)
    tokens, _ = draw(DATA, 5, 0, "x")
    starts = Starts(each)
    torch.testing.assert_close(starts(tokens), torch.stack([layer(tokens) for layer in each]))
    torch.testing.assert_close(starts.layer(2).kq(), each[2].kq())
    assert len(list(starts.parameters())) == 4


def test_training_together_is_training_alone_and_the_best_is_kept(tmp_path: Path) -> None:
    together = train_starts(run(tmp_path / "a"), layers(3), DATA)
    alone = [train_starts(run(tmp_path / f"b{r}"), layers(3)[r : r + 1], DATA) for r in range(3)]
    for r in range(3):
        assert together.ends[r] == pytest.approx(alone[r].ends[0], rel=1e-4)
    best = together.ends.index(min(together.ends))
    torch.testing.assert_close(together.layer.kq(), alone[best].layer.kq(), rtol=1e-3, atol=1e-4)
    assert together.losses == pytest.approx(alone[best].losses, rel=1e-4)
    assert together.losses[-1] != together.losses[0] and together.figures == {}


def test_frames_of_the_best_start_begin_with_its_start_and_end_with_its_end(tmp_path: Path) -> None:
    each = layers(2)
    trained = train_starts(run(tmp_path), each, DATA, circuit_matrices)
    assert trained.figures["frame_step"] == sorted({float(step) for step in frame_steps(12)})
    best = trained.ends.index(min(trained.ends))
    for frame, layer in ((0, each[best]), (-1, trained.layer)):
        for name, matrix in circuit_matrices(layer).items():
            torch.testing.assert_close(torch.tensor(trained.figures[name][frame]), matrix.detach())


def test_heads_are_sorted_by_their_scale_at_the_end_in_every_frame() -> None:
    model = icl.AttentionICL(2, 2).set_circuit([-0.4, 0.2], [-1.0, 1.0])
    frames = {"frame_step": [0.0], "kq_1": ["a"], "kq_2": ["b"], "ov_1": ["c"], "ov_2": ["d"]}
    assert sorted_frames(frames, model) == {
        "frame_step": [0.0], "kq_1": ["b"], "kq_2": ["a"], "ov_1": ["d"], "ov_2": ["c"],
    }  # fmt: skip


def test_snapshots_survive_a_checkpoint() -> None:
    weight = torch.zeros(2, 2)
    snapshots = Snapshots(lambda: {"w": weight}, (0, 2))
    snapshots.look(0)
    weight += 1.0
    snapshots.look(1)
    restored = Snapshots(lambda: {"w": weight}, (0, 2))
    restored.load_state_dict(from_bytes(to_bytes(snapshots.state_dict())))
    restored.look(2)
    assert restored.figures() == {"frame_step": [0.0, 2.0], "w": [[[0.0, 0.0]] * 2, [[1.0, 1.0]] * 2]}
    assert Snapshots(lambda: {}, ()).figures() == {"frame_step": []}


def test_frames_double_and_curves_are_averaged() -> None:
    assert frame_steps(64, 5) == [0, 8, 16, 32, 64]
    assert averaged([1.0, 3.0, 5.0, 7.0, 9.0], points=3) == ([2.0, 4.0, 5.0], [2.0, 6.0, 9.0])


def test_predictions_in_pieces_are_predictions_at_once() -> None:
    layer, (tokens, _) = layers(1)[0], draw(DATA, 7, 0, "x")
    torch.testing.assert_close(predict(layer, tokens, chunk=3), layer(tokens).detach())


def test_circuit_figures_of_a_circuit_that_was_written() -> None:
    cov = torch.tensor([2.0, 0.5]).diag()
    best = icl.optimal_preconditioner(cov, 8, 0.1).diagonal()
    scale = torch.stack((0.1 * best, -0.1 * best))
    model = icl.AttentionICL(2, 2).set_circuit(scale, [5.0, -5.0])
    figures = circuit_figures(model, icl.LinearRegressionPrompts(2, 8, 0.1, cov))
    assert figures["preconditioner_error"] < 1e-5 and figures["step_off_diagonal"] < 1e-6
    assert figures["paired"] == 1.0 and figures["positive_heads"] == figures["negative_heads"] == 1.0
    assert figures["zero_sum"] < 1e-6 and figures["step_diagonal"] == pytest.approx(best.tolist(), rel=1e-5)
    one_sign = icl.AttentionICL(2, 2).set_circuit([-0.4, -0.5], [-1.0, -1.0])
    figures = circuit_figures(one_sign, DATA)
    assert figures["negative_heads"] == 2.0 and figures["positive_heads"] == 0.0 and figures["zero_sum"] == 1.0


def softmax_weights(tokens: Tensor) -> Tensor:
    return (tokens[..., :-1, -1] + 1.0) / (tokens.shape[-2] - 1)


def test_labels_of_softmax_prompts_are_weights_over_the_labelled_rows_alone() -> None:
    task = SoftmaxPrompts(n=6, d=2, scale=0.5)
    tokens, target = task(5, torch.Generator().manual_seed(0))
    weights = softmax_weights(tokens)
    torch.testing.assert_close(weights.sum(-1), torch.ones(5))
    x, info = sr.SoftmaxRegression().fit(tokens[:, :-1, :-1], weights)
    assert float(info.residual.max()) < 1e-5  # attainable
    scores = (tokens[..., :-1] @ x[..., None])[..., 0]
    expected = scores[:, -1] - scores[:, :-1].exp().mean(-1).log()
    torch.testing.assert_close(target[:, 0], expected, rtol=0, atol=1e-3)
    assert bool((tokens[:, -1, -1] == 0).all())


def test_descent_reaches_the_target_and_starts_as_linear_attention() -> None:
    task = SoftmaxPrompts(n=6, d=2, scale=0.3)
    tokens, target = task(4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(task.descend(tokens.double(), 3000, 1.0).float(), target[:, 0], rtol=0, atol=1e-3)
    rows = tokens[:, :-1, :-1]
    step = 1e-3 / 6 * ((tokens[:, :-1, -1:]) * (rows - rows.mean(1, keepdim=True))).sum(1)
    linear = ((tokens[:, -1, :-1] - rows.mean(1)) * step).sum(-1)
    torch.testing.assert_close(task.descend(tokens, 1, 1e-3), linear, rtol=1e-2, atol=1e-6)
