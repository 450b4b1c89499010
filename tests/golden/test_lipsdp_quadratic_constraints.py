"""Bounds beside those of an independent implementation, on the authors' networks and on random ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from softgate.diagnostics import ImplicitModel, lipschitz_bound
from softgate.diagnostics.lipschitz.certificate import reduced_form

Golden = Callable[[str], Path]
Arrays = dict[str, np.ndarray]


@pytest.fixture
def arrays(golden: Golden) -> Callable[[str], tuple[list[np.ndarray], Arrays]]:
    folder = golden("lipsdp-quadratic-constraints")

    def load(name: str) -> tuple[list[np.ndarray], Arrays]:
        with np.load(folder / f"{name}.npz") as file:
            found = dict(file.items())
        return [found[f"W{i}"] for i in range(sum(key[1:].isdigit() and key[0] == "W" for key in found))], found

    return load


@pytest.mark.parametrize("name", ["2fc_16", "2fc_64", "5fc_32", "8fc_32"])
def test_networks_of_the_authors(arrays, name) -> None:
    weights, known = arrays(f"mnist_l2_{name}")
    full, diagonal = (lipschitz_bound(weights, multiplier=kind) for kind in ("full", "diagonal"))
    assert full.value == pytest.approx(float(known["l2_full"]), rel=1e-5)
    assert diagonal.value == pytest.approx(float(known["l2_chain"]), rel=1e-4)
    assert full.product == pytest.approx(float(known["mp_l2"]), rel=1e-9)
    assert full.lower_bound < full.value < diagonal.value < full.product
    assert full.converged and full.verify() and diagonal.converged and diagonal.verify()


def _is_positive_definite(matrix: np.ndarray) -> bool:
    """By Cholesky's factorisation in the number format of the matrix."""
    scale = 1 / np.sqrt(np.diag(matrix))
    left = matrix * scale[:, None] * scale
    for i in range(len(left)):
        if left[i, i] <= 0:
            return False
        column = left[i + 1 :, i] / left[i, i]
        left[i + 1 :, i + 1 :] -= np.outer(column, left[i + 1 :, i])
    return True


def test_a_deep_network_has_a_smaller_bound_than_was_known(arrays) -> None:
    """The reference, 12,431, stopped early. What proves ours holds in extended precision, too."""
    weights, known = arrays("mnist_l2_18fc_32")
    found = lipschitz_bound(weights)
    assert found.converged and found.verify()
    assert found.value == pytest.approx(11063.55, rel=1e-5) and found.lower_bound < found.value < known["l2_full"]
    form = reduced_form(found.proofs[0].network, "full", "l2", None)
    wide = np.longdouble
    multipliers = found.multipliers[0].numpy().astype(wide)[form.group.numpy()]
    seen, output = form.seen.numpy().astype(wide), form.output.numpy().astype(wide)
    rest = -seen.T @ (multipliers[:, None] * seen) - output.T @ output
    for share, holds in ((1 + 1e-8, True), (0.999, False)):
        start = np.full(form.inputs, share * wide(found.rho))
        assert _is_positive_definite(np.diag(np.concatenate((start, multipliers))) + rest) is holds


@pytest.mark.parametrize("name", ["2fc_16", "5fc_32"])
def test_the_maximum_norm_on_networks_of_the_authors(arrays, name) -> None:
    weights, known = arrays(f"mnist_l2_{name}")
    found = lipschitz_bound(weights, "linf", multiplier="diagonal", output_row=8)
    assert found.method == "scaling" and found.verify()
    assert found.value == pytest.approx(float(known["linf_chain_row8"]), rel=1e-3)
    assert found.product == pytest.approx(float(known["mp_linf_row8"]), rel=1e-9)


def test_the_residual_network_of_the_authors(arrays) -> None:
    weights, known = arrays("mnist_resweights_5_32")
    ends = np.linalg.norm(weights[0], 2) * np.linalg.norm(weights[-1], 2)
    for kind, key in (("full", "l2_full"), ("diagonal", "l2_PSzero")):
        found = lipschitz_bound(weights[1:-1], multiplier=kind, residual=True)
        assert found.value * ends == pytest.approx(float(known[key]), rel=5e-5) and found.verify()
        assert found.product * ends == pytest.approx(float(known["mp"]), rel=1e-6)
        whole = lipschitz_bound(weights, multiplier=kind, residual="inner")
        assert whole.lower_bound < whole.value < found.value * ends  # the ends inside the inequality are tighter


@pytest.mark.parametrize("name", ["ng2_5_6_3", "ng2_5_6_6_3", "ng3_5_6_9_4", "ng4_6_8_8_2"])
def test_random_networks(arrays, name) -> None:
    weights, known = arrays(f"rand_ff_{name}")
    size = int(known["ng"])
    vectors = [known[f"v{i}"] for i in range(len(weights) - 1)]
    cases = {
        "gs_l2_full": {"activation": "groupsort", "group_size": size},
        "gs_l2_PSzero": {"activation": "groupsort", "group_size": size, "multiplier": "diagonal"},
        "hh_l2_full": {"activation": "householder", "v": vectors},
        "hh_l2_PSzero": {"activation": "householder", "v": vectors, "multiplier": "diagonal"},
    }
    for key, options in cases.items():
        found = lipschitz_bound(weights, **options)
        assert found.value == pytest.approx(float(known[key]), rel=5e-4) and found.verify(), key
    options = {"activation": "groupsort", "group_size": size, "multiplier": "diagonal", "output_row": 0}
    for method in ("barrier", "scaling"):
        found = lipschitz_bound(weights, "linf", method=method, **options)
        assert found.value == pytest.approx(float(known["gs_linf_row0_PSzero"]), rel=1e-3) and found.verify()


@pytest.mark.parametrize("size", [2, 3])
def test_random_residual_networks(arrays, size) -> None:
    weights, known = arrays(f"rand_res_ng{size}_n6_m2")
    options = {"activation": "groupsort", "group_size": size, "residual": True}
    full = lipschitz_bound(weights, **options)
    # one of S and P is enough
    assert full.value == pytest.approx(float(known["l2_Szero"]), rel=5e-4)
    assert full.value == pytest.approx(float(known["l2_Pzero"]), rel=5e-4)
    diagonal = lipschitz_bound(weights, multiplier="diagonal", **options)
    assert diagonal.value == pytest.approx(float(known["l2_PSzero"]), rel=5e-4)
    assert full.product == pytest.approx(float(known["mp"]), rel=1e-9)


def test_a_random_implicit_model(arrays) -> None:
    _, known = arrays("rand_implicit")
    model = ImplicitModel(known["W"], known["U"], known["Wo"])
    for kind, key in (("full", "l2_full"), ("diagonal", "l2_PSzero")):
        found = lipschitz_bound(model, multiplier=kind)
        assert found.value == pytest.approx(float(known[key]), rel=5e-4) and found.verify()
        assert found.product == pytest.approx(float(known["naive"]), rel=1e-9)
        assert found.lower_bound < found.value < found.product
