"""Parity with arrays made by the authors' code: gates, mixtures, mask, importance, all losses and a gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from softgate.losses import relative_local_counting_loss
from softgate.models import density_experts_loss
from softgate.routing import HierarchicalMixture, MixtureOutput, importance_loss, pixelwise_mixture

SLUG = "density-experts-crowd-counting"


@pytest.fixture
def load(golden: Callable[[str], Path]) -> Callable[[str], dict[str, Tensor]]:
    def read(name: str) -> dict[str, Tensor]:
        with np.load(golden(SLUG) / f"{name}.npz") as arrays:
            return {key: torch.tensor(arrays[key]) for key in arrays.files}

    return read


def official_mixture(arrays: dict[str, Tensor]) -> HierarchicalMixture:
    """The authors' gates, with a ReLU on their logits, at the sizes of the arrays."""
    merge = HierarchicalMixture(
        3, 12, gate_hidden=(6,), top_hidden=(7, 8, 7, 6, 5), mask_hidden=(6, 5), relu_logits=True
    )
    state = {}
    for ours, theirs, last in (("pair_gate", "gating1", 2), ("top_gate", "gating2", 6), ("mask", "mask", 3)):
        for layer in range(1, last + 1):
            name = "output" if ours == "mask" and layer == last else f"conv{layer}"
            own = "output" if layer == last else f"hidden.{layer - 1}"
            for kind in ("weight", "bias"):
                state[f"{ours}.{own}.{kind}"] = arrays[f"param.{theirs}.{name}.conv.{kind}"]
    merge.load_state_dict(state)
    return merge


def near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture
def merged(load: Callable[[str], dict[str, Tensor]]) -> tuple[dict[str, Tensor], MixtureOutput]:
    arrays = load("hmode_forward")
    with torch.no_grad():
        found = official_mixture(arrays)([arrays["head1"], arrays["head2"], arrays["head3"]], arrays["x5"])
    return arrays, found


def enlarged(x: Tensor, size: int) -> Tensor:
    return x.repeat_interleave(size // x.shape[-2], -2).repeat_interleave(size // x.shape[-1], -1)


def test_gates_and_mask(merged) -> None:
    arrays, found = merged
    for place in range(3):
        near(enlarged(found.pair_weights[:, place], 16), arrays[f"gate1_w{place + 1}"])
    near(enlarged(found.weights, 16), arrays["gate2_w"])
    near(found.attention, arrays["amp"])
    near(found.attention * arrays["x5"], arrays["x5_masked"])
    near(found.importance, arrays["imp_loss"])


def test_seven_maps(merged) -> None:
    arrays, found = merged
    for level, (own, head) in enumerate(zip(found.maps, ("head1", "head2", "head3"), strict=False)):
        assert torch.equal(own, enlarged(arrays[head], 16)), level
    for own, name in zip(found.maps[3:], ("density_1", "density_2", "density_3", "density_final"), strict=True):
        near(enlarged(own, 64), arrays[name])
    assert found.levels == (0, 0, 0, 1, 1, 1, 2)


def test_mixture_from_the_authors_weights(load) -> None:
    arrays = load("hmode_forward")
    heads = torch.cat([enlarged(arrays[name], 16) for name in ("head1", "head3")], 1)
    near(enlarged(pixelwise_mixture(heads, arrays["gate1_w2"]), 64), arrays["density_2"])


def test_losses_of_the_maps(merged) -> None:
    arrays, found = merged
    full = MixtureOutput(
        tuple(enlarged(m, 64).double() for m in found.maps),
        found.levels, found.pair_weights, found.weights, found.attention.double(), found.importance.double(),
    )  # fmt: skip
    batch, none = len(arrays["gt"]), {"relative": 0.0, "importance": 0.0, "attention": 0.0}

    def term(target: Tensor, **one: float) -> Tensor:
        """What one term adds to the squared errors, not divided by the batch."""
        more = density_experts_loss(full, target, **{**none, **one})
        return batch * (more - density_experts_loss(full, target, **none))

    target = arrays["gt"].unsqueeze(1).double()
    close = {"rtol": 1e-5, "atol": 0, "check_dtype": False}
    torch.testing.assert_close(batch * density_experts_loss(full, target, **none), arrays["mse_weighted"], **close)
    torch.testing.assert_close(term(arrays["amp_gt"].double(), attention=1.0), arrays["amp_loss"], **close)
    torch.testing.assert_close(term(target, importance=1.0), arrays["imp_loss"], **close)
    by_hand = sum(2 ** (place // 3) * relative_local_counting_loss(m, target) for place, m in enumerate(full.maps))
    torch.testing.assert_close(term(target, relative=1.0), by_hand)


def test_relative_loss_regions_and_gradient(load) -> None:
    arrays = load("relative_local_counting")
    pred, target = arrays["pred"].requires_grad_(), arrays["gt"].unsqueeze(1)
    torch.testing.assert_close(
        relative_local_counting_loss(pred, target, hard_error="detached"), arrays["loss"], rtol=1e-6, atol=0
    )
    loss = relative_local_counting_loss(pred, target)
    torch.testing.assert_close(loss, arrays["relative_part"], rtol=1e-5, atol=0)
    loss.backward()
    assert torch.equal(pred.grad, arrays["grad_pred"])
    touched = pred.grad.abs().unflatten(-1, (4, 16)).unflatten(-3, (4, 16)).amax((-3, -1)).flatten(1)
    for image, regions in enumerate(arrays["hard_regions"]):
        assert set(touched[image].nonzero().flatten().tolist()) <= set(regions.tolist())


def test_importance(load) -> None:
    arrays = load("importance_cv2")
    torch.testing.assert_close(importance_loss(arrays["weights"]), arrays["cv2"], rtol=1e-5, atol=1e-9)


def test_resizing_is_the_authors(load) -> None:
    """Nearest neighbours by torch's interpolate are the repeated pixels that we use."""
    head = load("hmode_forward")["head3"]
    assert torch.equal(interpolate(head, (16, 16), mode="nearest"), enlarged(head, 16))
