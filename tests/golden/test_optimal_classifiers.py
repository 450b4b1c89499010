"""Parity with arrays made by the authors' code: dual activations, kernels, scores and accuracies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from softgate.activations import dual_activation
from softgate.losses import nngp_kernel, ntk_kernel

pytest.importorskip("sklearn", minversion="1.6")

from softgate.losses import DeepKernelClassifier, HilbertClassifier

KERNELS = {"nngp": nngp_kernel, "ntk": ntk_kernel}
TAGS = [("2d", tag) for tag in ("nngp_2d_opt_10", "nngp_erf_20", "nngp_sine_1_10", "ntk_2d_opt_5", "ntk_relu_20")]
TAGS += [("3d", tag) for tag in ("nngp_3d_opt_12", "nngp_sine_2.676_12", "ntk_3d_opt_4")]


def arrays(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / name) as data:
        return dict(data)


def test_dual_activations(golden) -> None:
    data = arrays(golden("optimal-classifiers"), "dual_activations.npz")
    xi = torch.tensor(data["xi"])
    names = [key.split("_", 1) for key in data if key != "xi"]
    assert len(names) == 16
    for kind, name in names:
        dual = dual_activation(name)
        values = dual(xi) if kind == "dual" else dual.derivative(xi)
        torch.testing.assert_close(values, torch.tensor(data[f"{kind}_{name}"]), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("file", "tag"), TAGS, ids=lambda value: value)
def test_kernels_and_scores(golden, file, tag) -> None:
    data = arrays(golden("optimal-classifiers"), f"dirichlet_{file}.npz")
    kind, rest = tag.split("_", 1)
    activation, depth = rest.rsplit("_", 1)
    train, test = torch.tensor(data["X_train"]), torch.tensor(data["X_test"])
    size = float(np.diag(data[f"Ktrain_{tag}"]).max())
    matrix = KERNELS[kind](train, train, activation, int(depth)).fill_diagonal_(size)
    expected = torch.tensor(data[f"Ktrain_{tag}"]).fill_diagonal_(size)
    torch.testing.assert_close(matrix, expected, rtol=0, atol=1e-10 * size)
    columns = KERNELS[kind](train, test, activation, int(depth))
    torch.testing.assert_close(columns, torch.tensor(data[f"Ktest_{tag}"]), rtol=0, atol=1e-10 * size)
    condition = np.linalg.cond(data[f"Ktrain_{tag}"])
    if condition > 1e12:
        pytest.skip(f"the authors' matrix has condition number {condition:.0e}: float64 does not determine the scores")
    model = DeepKernelClassifier(activation, int(depth), kind).fit(data["X_train"], data["y_train"])
    # ours are means with the weights of the kernel
    scores = model.decision_function(data["X_test"]) * columns.abs().sum(0).numpy() / size
    bound = max(1e-6, 1e-16 * condition) * max(1.0, float(np.abs(data[f"score_{tag}"]).max()))
    np.testing.assert_allclose(scores, data[f"score_{tag}"], rtol=0, atol=bound)
    assert model.score(data["X_test"], data["y_test"]) == pytest.approx(float(data[f"acc_{tag}"]))
    assert model.score(data["X_train"], data["y_train"]) == 1.0


@pytest.mark.parametrize("file", ["2d", "3d"])
def test_hilbert_estimate(golden, file) -> None:
    data = arrays(golden("optimal-classifiers"), f"dirichlet_{file}.npz")
    model = HilbertClassifier().fit(data["X_train"], data["y_train"])
    distances = np.linalg.norm(data["X_test"][:, None] - data["X_train"], axis=2)
    scores = model.decision_function(data["X_test"]) * (distances**-model.exponent_).sum(1)
    np.testing.assert_allclose(scores, data["score_hilbert"], rtol=1e-6, atol=1e-6)
    assert model.score(data["X_test"], data["y_test"]) == pytest.approx(float(data["acc_hilbert"]))
