"""Local counts and the ranking loss on the counts of the hardest regions."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from softgate.losses import grid_count_error, local_count, relative_local_counting_loss


def by_hand(pred: Tensor, target: Tensor, patch: int, hard: int, groups: int) -> float:
    """The definition, patch by patch and image by image."""
    total = 0.0
    for p, t in zip(pred[:, 0], target[:, 0], strict=True):
        cells = [
            (slice(i, i + patch), slice(j, j + patch))
            for i in range(0, p.shape[0], patch)
            for j in range(0, p.shape[1], patch)
        ]
        cells.sort(key=lambda c: -float((p[c] - t[c]).square().sum()))
        chosen = sorted(cells[:hard], key=lambda c: -float(t[c].sum()))
        q = [float(p[c].sum()) for c in chosen]
        for s in range(groups):
            first, second = q[s] - q[s + groups], q[s] - q[s + 2 * groups]
            total += max(0.0, -first) + max(0.0, -second) + max(0.0, first - second)
    return total


@pytest.mark.parametrize(("hard", "groups"), [(9, 3), (6, 2), (3, 1)])
def test_equals_the_definition(hard: int, groups: int) -> None:
    pred, target = torch.rand(3, 1, 12, 16, dtype=torch.float64), torch.rand(3, 1, 12, 16, dtype=torch.float64)
    found = relative_local_counting_loss(pred, target, patch=4, hard=hard, groups=groups)
    assert float(found) == pytest.approx(by_hand(pred, target, 4, hard, groups), rel=1e-12)
    rows = relative_local_counting_loss(pred, target, 4, hard, groups, reduction="none")
    torch.testing.assert_close(rows.sum(), found)
    torch.testing.assert_close(relative_local_counting_loss(pred, target, 4, hard, groups, "mean"), found / 3)


def test_zero_for_the_truth_and_blind_to_a_constant() -> None:
    target = torch.rand(2, 1, 12, 12, dtype=torch.float64)
    assert float(relative_local_counting_loss(target, target, patch=4)) == 0.0
    assert float(relative_local_counting_loss(target + 3.0, target, patch=4)) == pytest.approx(0.0, abs=1e-12)
    # nine patches, all of them hard: a constant changes no difference of counts
    pred = torch.rand(2, 1, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(
        relative_local_counting_loss(pred + 3.0, target, patch=4), relative_local_counting_loss(pred, target, patch=4)
    )


def test_only_hard_regions_get_a_gradient() -> None:
    target = torch.rand(1, 1, 16, 16, dtype=torch.float64)
    pred = target + 1e-3
    pred[..., :12, :12] = torch.rand(12, 12, dtype=torch.float64)  # nine of sixteen patches
    pred.requires_grad_()
    relative_local_counting_loss(pred, target, patch=4).backward()
    touched = local_count(pred.grad.abs(), 4)[0, 0] > 0
    assert bool(touched.any()) and not bool(touched[3].any()) and not bool(touched[:, 3].any())


def test_equal_truths_keep_the_order_of_the_errors() -> None:
    """Three patches with the same true count: the one with the largest error must hold most."""
    target = torch.zeros(1, 1, 1, 3)
    pred = torch.tensor([1.0, 3.0, 2.0]).view(1, 1, 1, 3)
    loss = relative_local_counting_loss(pred, target, patch=1, hard=3, groups=1)
    # sorted 3, 2, 1: gaps 1 and 2 grow, nothing is charged
    assert float(loss) == 0.0
    twins = torch.tensor([0.5, -0.5, 0.5]).view(1, 1, 1, 3)
    # equal errors: patches stay in their order, 0.5, -0.5, 0.5, gaps 1 and 0
    assert float(relative_local_counting_loss(twins, target, patch=1, hard=3, groups=1)) == 1.0


def test_the_hard_error_is_a_value_without_a_gradient() -> None:
    pred, target = torch.rand(2, 1, 16, 16, requires_grad=True), torch.rand(2, 1, 16, 16)
    plain, more = (relative_local_counting_loss(pred, target, 4, hard_error=kind) for kind in ("none", "detached"))
    errors = local_count((pred - target).square(), 4).flatten(1).detach().sort(1, descending=True).values[:, :9]
    torch.testing.assert_close(more - plain, errors.sum())
    ours, theirs = (torch.autograd.grad(loss, pred)[0] for loss in (more, plain))
    assert torch.equal(ours, theirs)


def test_few_patches_fill_fewer_groups() -> None:
    pred, target = torch.rand(1, 1, 8, 16), torch.rand(1, 1, 8, 16)  # eight patches: two groups of three
    torch.testing.assert_close(
        relative_local_counting_loss(pred, target, 4), relative_local_counting_loss(pred, target, 4, hard=6, groups=2)
    )
    with pytest.raises(ValueError, match="patch"):
        relative_local_counting_loss(pred[..., :8], target[..., :8], 8)


def test_empty_images_and_negative_targets() -> None:
    nothing = torch.zeros(2, 1, 48, 48)
    assert float(relative_local_counting_loss(nothing, nothing)) == 0.0
    with pytest.warns(UserWarning, match="negative"):
        relative_local_counting_loss(nothing, nothing - 1.0)


def test_local_counts_keep_the_sum() -> None:
    x = torch.rand(2, 1, 12, 8, dtype=torch.float64)
    counts = local_count(x, 4)
    torch.testing.assert_close(counts.sum((-2, -1)), x.sum((-2, -1)))
    torch.testing.assert_close(counts[0, 0, 1, 1], x[0, 0, 4:8, 4:8].sum())
    torch.testing.assert_close(local_count(x.contiguous(memory_format=torch.channels_last), 4), counts)


def test_grid_errors_grow_with_the_level_and_end_pixel_by_pixel() -> None:
    pred, target = torch.rand(3, 1, 8, 8, dtype=torch.float64), torch.rand(3, 1, 8, 8, dtype=torch.float64)
    errors = [grid_count_error(pred, target, level) for level in range(4)]
    torch.testing.assert_close(errors[0], (pred - target).sum((1, 2, 3)).abs())
    torch.testing.assert_close(errors[1], local_count(pred - target, 4).abs().sum((1, 2, 3)))
    torch.testing.assert_close(errors[3], (pred - target).abs().sum((1, 2, 3)))
    assert all(bool((a <= b + 1e-12).all()) for a, b in pairwise(errors))


def test_grid_errors_of_odd_sizes_count_every_pixel_once() -> None:
    pred = torch.rand(1, 1, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(grid_count_error(pred, torch.zeros_like(pred), 1), pred.sum((1, 2, 3)))


@pytest.mark.parametrize(("level", "error"), [(-1, ValueError), (4, ValueError), (1.0, TypeError)])
def test_bad_levels(level, error) -> None:
    with pytest.raises(error, match="level"):
        grid_count_error(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), level)
