"""Deep kernel classifiers: the interface, the limits in closed form, and what must not depend on anything."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import softgate.losses
from softgate.activations import HermiteActivation, dual_activation
from softgate.errors import ArgumentTypeError, ArgumentValueError, MissingExtraError, StateError
from softgate.losses import nngp_kernel, ntk_kernel

pytest.importorskip("sklearn", minversion="1.6")

from sklearn.utils.estimator_checks import parametrize_with_checks

from softgate._estimators.limits import log_limit, log_nngp, scaled_ntk
from softgate.losses import DeepKernelClassifier, HilbertClassifier


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [HilbertClassifier(), DeepKernelClassifier("3d_opt"), DeepKernelClassifier(depth=4, kernel="ntk")]
)
def test_scikit_learns_checks(estimator, check) -> None:
    check(estimator)


def sphere(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(rows, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def labelled(rows: int = 60, dim: int = 3, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
    x = sphere(rows, dim)
    return x, np.digitize(x[:, 0] + 0.3 * np.sin(9 * x[:, 1]), np.linspace(-0.3, 0.3, classes - 1))


# The kernels


@pytest.mark.parametrize("kernel", [nngp_kernel, ntk_kernel])
@pytest.mark.parametrize("activation", ["3d_opt", "5d_opt", "relu", "erf"])
def test_kernels_are_positive_semidefinite_and_blind_to_rotation_and_length(kernel, activation) -> None:
    x = torch.tensor(sphere(20, 4))
    matrix = kernel(x, x, activation, 5)
    torch.testing.assert_close(matrix, matrix.T)
    assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-10 * float(matrix.diagonal().max())
    turned = 3.7 * x @ torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    torch.testing.assert_close(kernel(turned, turned, activation, 5), matrix, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(kernel(x, x, activation, 0), x @ x.T)
    assert kernel(x.float(), x.float(), activation, 2).dtype == torch.float32


def test_the_ntk_is_the_gram_matrix_of_gradients_of_a_wide_network() -> None:
    """Finite width: K(x, x') is the scalar product of the output's gradients, up to 1/sqrt(width)."""
    width, x = 4096, torch.tensor(sphere(3, 3))
    act = HermiteActivation("3d_opt")
    first = torch.randn(width, 3, dtype=torch.float64, requires_grad=True)
    last = torch.randn(width, dtype=torch.float64, requires_grad=True)
    rows = []
    for point in x:
        out = act(first @ point) @ last / math.sqrt(width)
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(out, (first, last))]))
    gram = torch.stack(rows) @ torch.stack(rows).T
    assert float((gram - ntk_kernel(x, x, "3d_opt", 1)).abs().max()) < 0.4
    assert float((gram - ntk_kernel(x, x, "3d_opt", 2)).abs().max()) > 0.5


@pytest.mark.parametrize("name", ["3d_opt", "5d_opt", "9d_opt", "sine_2.676", "erf", "hermite_2", "hermite_3"])
def test_logarithms_are_those_of_the_kernel(name: str) -> None:
    dual, xi = dual_activation(name), torch.linspace(-1, 1, 31, dtype=torch.float64)
    for depth in (1, 3, 12):
        plain = xi
        for _ in range(depth):
            plain = dual(plain).clamp(-1, 1)
        log_size, sign = log_nngp(xi, dual, depth)
        torch.testing.assert_close(sign * log_size.exp(), plain, rtol=1e-8, atol=1e-300)


@pytest.mark.parametrize(("name", "alpha"), [("2d_opt", 0.5), ("3d_opt", 1), ("5d_opt", 2), ("9d_opt", 4)])
def test_the_limit_has_the_singularity_of_the_theory(name: str, alpha: float) -> None:
    dual, gaps = dual_activation(name), torch.logspace(-8, -3, 2, base=10, dtype=torch.float64)
    log_weight, sign = log_limit(1 - gaps, dual)
    slope = float(log_weight.diff() / gaps.log().diff())
    assert slope == pytest.approx(-alpha, abs=0.01) and bool((sign == 1).all())
    log_size, _ = log_nngp(1 - gaps, dual, 400)  # a^400 is 1e-481 for 9d_opt: only its logarithm exists
    torch.testing.assert_close(log_size, log_weight + 400 * math.log(dual.slope), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("name", "alpha"), [("2d_opt", 0.5), ("3d_opt", 1), ("5d_opt", 2)])
def test_a_deep_ntk_has_one_order_more_near_the_point(name: str, alpha: float) -> None:
    dual, gaps = dual_activation(name), torch.tensor([1e-7, 1e-5], dtype=torch.float64)
    kernel = scaled_ntk(1 - gaps, dual, 100)
    assert float(kernel.log().diff() / gaps.log().diff()) == pytest.approx(-alpha - 1, abs=0.03)
    plain = ntk_kernel(torch.eye(2, 3), torch.tensor([[1.0, 1.0, 0.0]]), name, 6).double()
    diagonal = ntk_kernel(torch.eye(1, 3), torch.eye(1, 3), name, 6).double()
    scaled = scaled_ntk(torch.tensor([[0.5**0.5]] * 2, dtype=torch.float64), dual, 6)
    torch.testing.assert_close(scaled, plain / diagonal, rtol=1e-5, atol=1e-9)


# The classifiers


@pytest.mark.parametrize("depth", [3, 40, math.inf])
@pytest.mark.parametrize("classes", [2, 3])
def test_training_points_keep_their_labels(depth: float, classes: int) -> None:
    x, y = labelled(classes=classes)
    for model in (DeepKernelClassifier(depth=depth), HilbertClassifier()):
        model.fit(5 * x, y)
        assert (model.predict(x) == y).all()
        assert model.decision_function(x).shape == ((len(x),) if classes == 2 else (len(x), 3))
        np.testing.assert_allclose(model.predict_proba(x).sum(1), 1.0)


def test_infinite_depth_is_the_limit_of_depth() -> None:
    (x, y), t = labelled(), sphere(30, 3, seed=1)
    far = np.abs(t @ x.T).max(1) < 0.995  # beside a training point the NNGP needs more depth
    limit = DeepKernelClassifier("3d_opt").fit(x, y)
    weight = np.exp(log_limit(torch.tensor(t @ x.T), limit.dual_)[0].numpy())
    expected = (weight * np.sign(t @ x.T)) @ (2 * y - 1) / weight.sum(1)
    np.testing.assert_allclose(limit.decision_function(t), expected, rtol=1e-9, atol=1e-12)
    for depth in (200, 5000):  # at 5000 every entry is below the range of float64
        deep = DeepKernelClassifier("3d_opt", depth=depth).fit(x, y)
        np.testing.assert_allclose(deep.decision_function(t)[far], expected[far], rtol=1e-6, atol=1e-9)
        assert (deep.predict(t) == limit.predict(t)).all()


def test_the_hilbert_estimate_is_its_formula() -> None:
    (x, y), t = labelled(dim=4), sphere(20, 4, seed=1)
    weight = np.linalg.norm(t[:, None] - x, axis=2) ** -3.0
    expected = weight @ (2 * y - 1) / weight.sum(1)
    np.testing.assert_allclose(HilbertClassifier().fit(x, y).decision_function(t), expected)
    plain = HilbertClassifier(dim=3, normalize=False).fit(x, y)
    np.testing.assert_allclose(plain.decision_function(t), expected)


def test_signs_and_rotations() -> None:
    (x, y), t = labelled(), sphere(20, 3, seed=1)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    for model in (DeepKernelClassifier(), DeepKernelClassifier(depth=6), HilbertClassifier()):
        scores = model.fit(x, y).decision_function(t)
        np.testing.assert_allclose(model.fit(x, 1 - y).decision_function(t), -scores, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(model.fit(x @ turn, y).decision_function(t @ turn), scores, rtol=1e-6, atol=1e-9)


def test_without_a_linear_term_the_limit_is_the_nearest_neighbour() -> None:
    (x, y), t = labelled(), np.abs(sphere(200, 3, seed=1))
    x = np.abs(x)
    nearest = y[(t @ x.T).argmax(1)]
    assert (DeepKernelClassifier("hermite_3").fit(x, y).predict(t) == nearest).all()
    assert (DeepKernelClassifier("hermite_3", depth=10).fit(x, y).predict(t) == nearest).mean() >= 0.99


def test_with_a_constant_the_limit_is_the_majority() -> None:
    (x, y), t = labelled(24), sphere(20, 3, seed=1)
    with pytest.raises(ArgumentValueError, match="majority vote"):
        DeepKernelClassifier("relu").fit(x, y)
    deep = DeepKernelClassifier("relu", depth=4_000, kernel="ntk").fit(x, y)
    assert (deep.predict(t) == np.bincount(y).argmax()).all()


def test_tiles_give_what_one_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    (x, y), t = labelled(), sphere(30, 3, seed=1)
    for model in (DeepKernelClassifier(), DeepKernelClassifier(depth=4)):
        whole = model.fit(x, y).decision_function(t)
        with monkeypatch.context() as patch:
            patch.setattr("softgate._estimators.voting._TILE", 7 * len(x))
            np.testing.assert_allclose(model.decision_function(t), whole, rtol=1e-12)


def test_equal_points_are_merged() -> None:
    x = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    with pytest.warns(UserWarning, match="different labels"):
        model = DeepKernelClassifier(depth=2).fit(x, [0, 0, 1, 1])
    assert model.points_.shape == (2, 2)
    np.testing.assert_allclose(model.votes_, [[2 / 3, 1 / 3], [0, 1]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DeepKernelClassifier(depth=2).fit(x, [0, 0, 1, 0])
    one = DeepKernelClassifier().fit([[1.0, 2.0]], ["only"])
    assert (one.predict([[-3.0, 1.0], [1.0, 2.0]]) == "only").all()


def test_zero_rows_have_no_direction_but_a_label() -> None:
    x = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    for model in (DeepKernelClassifier("3d_opt"), DeepKernelClassifier(depth=3), HilbertClassifier()):
        with pytest.warns(UserWarning, match="zero rows"):
            model.fit(x, [0, 1, 2, 1])
        with pytest.warns(UserWarning, match="zero rows"):
            assert (model.predict(x) == [0, 1, 2, 1]).all()
        model.fit(x[[0, 1, 3]], [0, 1, 1])
        with pytest.warns(UserWarning, match="zero rows"):
            assert (model.predict(x[2:3]) == [1]).all()  # the majority: it is equally far from all
    with pytest.raises(ArgumentValueError, match="unit sphere"):
        DeepKernelClassifier(normalize=False).fit(x, [0, 1, 2, 1])


def test_extreme_lengths_and_float32() -> None:
    (x, y), t = labelled(), sphere(20, 3, seed=1)
    expected = DeepKernelClassifier().fit(x, y).predict(t)
    assert (DeepKernelClassifier().fit(1e200 * x, y).predict(1e-200 * t) == expected).all()
    single = DeepKernelClassifier().fit(x.astype(np.float32), y)
    assert single.points_.dtype == np.float64 and (single.predict(t.astype(np.float32)) == expected).mean() > 0.9


def test_a_singular_matrix_is_said() -> None:
    x = np.array([[1.0, 1e-9 * i] for i in range(6)])
    with pytest.warns(UserWarning, match="singular"):
        DeepKernelClassifier("sine_1", depth=1).fit(x, [0, 1] * 3)
    DeepKernelClassifier("sine_1", depth=1, reg=1e-3).fit(x, [0, 1] * 3)


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [({"depth": 0}, ArgumentValueError, "depth"), ({"depth": -2}, ArgumentValueError, "depth"),
     ({"depth": 1.5}, ArgumentValueError, "depth"), ({"depth": "inf"}, ArgumentTypeError, "depth"),
     ({"depth": math.nan}, ArgumentValueError, "depth"), ({"kernel": "rbf"}, ArgumentValueError, "kernel"),
     ({"reg": -1.0}, ArgumentValueError, "reg"), ({"dim": 0}, ArgumentValueError, "dim"),
     ({"dim": 2.0}, ArgumentTypeError, "dim"), ({"normalize": 1}, ArgumentTypeError, "normalize"),
     ({"activation": "tanh"}, ArgumentValueError, "activation"), ({"activation": 3}, ArgumentTypeError, "activation")],
)  # fmt: skip
def test_bad_options(options, error, word) -> None:
    x, y = labelled(6)
    with pytest.raises(error, match=word):
        DeepKernelClassifier(**options).fit(x, y)


def test_bad_data() -> None:
    x, y = labelled(6)
    with pytest.raises(ValueError, match="NaN"):
        HilbertClassifier().fit(np.where(x > 0.5, np.nan, x), y)
    with pytest.raises(ValueError, match="features"):
        HilbertClassifier().fit(x, y).predict(x[:, :2])
    with pytest.raises(StateError, match="underflows"):
        DeepKernelClassifier("9d_opt", depth=600, kernel="ntk").fit(x, y).predict(sphere(4, 3, seed=1))


def test_absence_of_scikit_learn_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from softgate.losses import kernel_classifiers

    monkeypatch.setitem(sys.modules, "sklearn.utils.validation", None)
    with pytest.raises(MissingExtraError, match=r"HilbertClassifier needs scikit-learn .*softgate\[data\]"):
        _ = kernel_classifiers.HilbertClassifier
    with pytest.raises(AttributeError, match="nonsense"):
        _ = kernel_classifiers.nonsense


def test_the_room_does_not_import_scikit_learn() -> None:
    code = "import sys, softgate.losses.kernel_classifiers as k\nassert k.__all__ and 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    room = Path(softgate.losses.__file__).parent
    assert [
        path.stem
        for path in room.rglob("*.py")
        if "import sklearn" in (t := path.read_text(encoding="utf-8")) or "from sklearn" in t
    ] == ["kernel_classifiers"]
