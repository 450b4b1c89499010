"""Utilities to probabilities and back: order, limits, fits, the identity of maximum likelihood, MBR."""

from __future__ import annotations

import math

import pytest
import torch

from softgate.losses import (
    UtilityTransform,
    estimate_uniform_noise,
    fit_utility_transform,
    mbr_decode,
    mle_utility_step,
    ordinal_accuracy,
    sampling_gap,
    utility_to_log_probability,
    utility_to_probability,
)

INF, NAN = math.inf, math.nan
KNOTS = {"knots": torch.tensor([0.0, 0.3, 1.0]), "values": torch.tensor([0.0, 0.05, 1.0])}
MAPS = [
    {"beta": 2.5}, {"beta": 0.3}, {"method": "noise_inverse", "eps": 0.02}, {"method": "rank"},
    {"method": "rank", "exponent": 3.0}, {"method": "isotonic", **KNOTS},
]  # fmt: skip
every_map = pytest.mark.parametrize("options", MAPS, ids=str)


@every_map
def test_order_ties_and_masks_are_kept(options) -> None:
    x = torch.randn(200, 8, dtype=torch.float64)
    x[:, 5], x[:50, 2] = x[:, 1], -INF
    q = utility_to_probability(x, **options)
    torch.testing.assert_close(q.sum(-1), torch.ones(200, dtype=torch.float64))
    assert torch.equal(q[:, 5], q[:, 1]) and bool((q[:50, 2] == 0).all())
    ascending = q.gather(1, x.argsort(-1))
    assert bool((ascending.diff(dim=-1) >= 0).all())
    top = x.topk(3).values[:, -1:]
    assert bool((q.gather(1, x.argmax(1, keepdim=True)) == q.amax(1, keepdim=True)).all())
    kept = q >= q.gather(1, x.argsort(-1, descending=True)[:, 2:3])
    assert bool((kept | (x < top)).all())
    torch.testing.assert_close(utility_to_probability(x + 5.0, **options), q)
    torch.testing.assert_close(utility_to_log_probability(x, **options).exp(), q)
    torch.testing.assert_close(utility_to_probability(x.t(), **options, dim=0), q.t())
    assert utility_to_probability(x.half(), **options).dtype == torch.float16


@every_map
def test_rows_without_an_order_are_nan(options) -> None:
    x = torch.tensor([[NAN, 0.0, 1.0], [-INF, -INF, -INF], [0.0, 1.0, 2.0]])
    q = utility_to_probability(x, **options)
    assert bool(q[:2].isnan().all()) and bool(q[2].isfinite().all())
    assert utility_to_probability(x[:0], **options).shape == (0, 3)
    assert utility_to_probability(x[:, :0], **options).shape == (3, 0)


def test_limits_of_power() -> None:
    x = torch.tensor([[1.0, 3.0, 3.0, -INF]])
    torch.testing.assert_close(utility_to_probability(x), x.softmax(-1))
    torch.testing.assert_close(utility_to_probability(x, beta=0.0), torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0]]))
    torch.testing.assert_close(utility_to_probability(x, beta=INF), torch.tensor([[0.0, 0.5, 0.5, 0.0]]))
    torch.testing.assert_close(utility_to_probability(x, beta=2.0), (2 * x).softmax(-1))
    p = x.softmax(-1)
    torch.testing.assert_close(utility_to_probability(x, beta=2.0), p**2 / (p**2).sum())


def test_noise_inverse_recovers_the_clean_distribution() -> None:
    clean = torch.tensor([[0.7, 0.3, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    noisy = 0.6 * clean + 0.4 / 4
    torch.testing.assert_close(utility_to_probability(noisy.log(), "noise_inverse", eps=0.4), clean)
    torch.testing.assert_close(utility_to_probability(noisy.log(), "noise_inverse"), noisy)
    with pytest.warns(UserWarning, match="largest"):
        even = utility_to_probability(torch.zeros(1, 3), "noise_inverse", eps=1 - 1e-12)
    torch.testing.assert_close(even, torch.full((1, 3), 1 / 3))


def test_rank_and_isotonic_in_numbers() -> None:
    got = utility_to_probability(torch.tensor([5.0, 5.0, 1.0, 9.0]), "rank", exponent=1.0)
    weights = torch.tensor([(1 / 2 + 1 / 3) / 2, (1 / 2 + 1 / 3) / 2, 1 / 4, 1.0])
    torch.testing.assert_close(got, weights / weights.sum())
    p = torch.tensor([0.15, 0.85])
    g = torch.tensor([0.025, 0.05 + 0.55 / 0.7 * 0.95])
    torch.testing.assert_close(utility_to_probability(p.log(), "isotonic", **KNOTS), g / g.sum())


def calibrated(rows: int = 100_000) -> tuple[torch.Tensor, torch.Tensor]:
    logits = 1.5 * torch.randn(rows, 6)
    return logits, torch.multinomial(logits.softmax(-1), 1)[:, 0]


def test_fit_by_likelihood_finds_the_scale_of_the_logits() -> None:
    logits, targets = calibrated()
    assert float(fit_utility_transform(logits, targets).value) == pytest.approx(1.0, abs=0.02)
    assert float(fit_utility_transform(4.0 * logits, targets).value) == pytest.approx(0.25, abs=0.005)
    golden = fit_utility_transform(
        logits[:20_000], targets[:20_000], lambda q, y: float(q.gather(-1, y[:, None]).log().mean())
    )
    newton = fit_utility_transform(logits[:20_000], targets[:20_000])
    assert float(golden.value) == pytest.approx(float(newton.value), rel=0.02)


def test_fit_by_a_decision_metric_sharpens() -> None:
    logits, targets = calibrated(5000)
    sharp = fit_utility_transform(logits, targets, "accuracy")
    assert float(sharp.value) > 20.0
    sequences = fit_utility_transform(logits.view(1000, 5, 6), logits.view(1000, 5, 6).argmax(-1), "exact_match")
    assert float(sequences.value) > 20.0
    assert float(sampling_gap(logits, targets)) > 0.1
    assert abs(float(sampling_gap(sharp.log_probabilities(logits), targets))) < 0.02


def test_fit_of_the_noise() -> None:
    truth = torch.randint(10, (20_000,))
    answers = torch.where(torch.rand(20_000) < 0.3, torch.randint(10, (20_000,)), truth)
    p = 0.7 * torch.nn.functional.one_hot(truth, 10).double() + 0.03
    assert estimate_uniform_noise(p.log()) == pytest.approx(0.3, abs=1e-9)
    by_likelihood = fit_utility_transform(p.log(), answers, "nll", "noise_inverse")
    assert float(by_likelihood.value) < 0.01  # the model is calibrated for the noisy answers
    by_accuracy = fit_utility_transform(p.log(), truth, "accuracy", "noise_inverse")
    assert float(by_accuracy(p.log()).gather(1, truth[:, None]).mean()) > 0.999
    ranked = fit_utility_transform(p.log(), truth, "accuracy", "rank")
    assert float(ranked.value) == pytest.approx(100.0)


def test_isotonic_fit_calibrates_without_changing_the_order() -> None:
    logits, targets = calibrated(30_000)
    distorted = 3.0 * logits
    fitted = fit_utility_transform(distorted, targets, method="isotonic")
    before, after = (-p.gather(1, targets[:, None]).log().mean() for p in (distorted.softmax(-1), fitted(distorted)))
    best = -logits.log_softmax(-1).gather(1, targets[:, None]).mean()
    assert float(after) < float(best) + 0.3 * float(before - best)
    assert torch.equal(fitted(distorted).argmax(-1), distorted.argmax(-1))
    again = UtilityTransform("isotonic")
    again.load_state_dict(fitted.state_dict())
    assert torch.equal(again(distorted), fitted(distorted))
    assert "isotonic" in repr(again)


def test_step_of_maximum_likelihood_is_a_preference_update() -> None:
    f, y = torch.randn(4, 6, dtype=torch.float64, requires_grad=True), torch.tensor([0, 1, 5, 2])
    loss = torch.nn.functional.cross_entropy(f, y, reduction="sum")
    step = mle_utility_step(f.detach(), y)
    torch.testing.assert_close(step, -torch.autograd.grad(loss, f)[0])
    torch.testing.assert_close(step.sum(-1), torch.zeros(4, dtype=torch.float64))
    # raise the chosen one, lower one that the model draws: the same in expectation, within 4 standard errors
    drawn = torch.multinomial(f.detach()[0].softmax(-1), 40_000, replacement=True)
    sampled = torch.nn.functional.one_hot(y[0], 6) - torch.nn.functional.one_hot(drawn, 6).double()
    error = (sampled.mean(0) - step[0]).abs() / (sampled.std(0) / 200 + 1e-9)
    assert float(error[1:].max()) < 4.0


def test_ordinal_accuracy_counts_pairs() -> None:
    f, y = torch.randn(50, 5), torch.randint(5, (50,))
    f[:10, 1] = f[:10, 0]
    wins = [
        1.0 if f[i, y[i]] > f[i, j] else 0.5 if f[i, y[i]] == f[i, j] else 0.0
        for i in range(50) for j in range(5) if j != y[i]
    ]  # fmt: skip
    assert float(ordinal_accuracy(f, y)) == pytest.approx(sum(wins) / len(wins))
    assert float(ordinal_accuracy(3 * f + 1, y)) == float(ordinal_accuracy(f, y))


def test_mbr() -> None:
    samples = torch.tensor([[1, 2, 3], [1, 2, 4], [1, 2, 3], [7, 8, 9], [1, 5, 3]])
    mode = mbr_decode(samples, "exact")
    assert mode.position == 0 and mode.candidate.tolist() == [1, 2, 3]
    assert mode.gains == pytest.approx([0.4, 0.2, 0.4, 0.2, 0.2])
    overlap = mbr_decode(samples.tolist())
    assert overlap.gains[1] == pytest.approx((2 / 3 + 1 + 2 / 3 + 0 + 1 / 3) / 5) and overlap.position == 0
    weighted = mbr_decode(samples, "exact", probs=torch.tensor([0.0, 0.0, 0.0, 3.0, 1.0]))
    assert weighted.position == 3 and weighted.gains[3] == pytest.approx(0.75)
    assert mbr_decode(["ab", "abc"], lambda c, y: -abs(len(c) - len(y)) - len(c)).candidate == "ab"
    assert mbr_decode([[], [1]], probs=[1.0, 0.0]).position == 0


L, T = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize(
    ("call", "error", "word"),
    [
        (lambda: fit_utility_transform(L, T[:5]), ValueError, "targets"),
        (lambda: fit_utility_transform(L, T.float()), TypeError, "targets"),
        (lambda: fit_utility_transform(L, T + 1), ValueError, "targets"),
        (lambda: fit_utility_transform(L, 0 * T), ValueError, "two classes"),
        (lambda: fit_utility_transform(L[:, :1], 0 * T), ValueError, "two classes"),
        (lambda: fit_utility_transform(L[:0], T[:0]), ValueError, "logits"),
        (lambda: fit_utility_transform(L, T, "bleu"), ValueError, "metric"),
        (lambda: fit_utility_transform(L, T, 3), TypeError, "metric"),
        (lambda: fit_utility_transform(L, T, "accuracy", "isotonic"), ValueError, "metric"),
        (lambda: fit_utility_transform(L, T, method="beta"), ValueError, "method"),
        (lambda: UtilityTransform("power", -1.0), ValueError, "beta"),
        (lambda: UtilityTransform("noise_inverse", 1.0), ValueError, "eps"),
        (lambda: estimate_uniform_noise(L[:0]), ValueError, "logits"),
        (lambda: mle_utility_step(L, T[:3]), ValueError, "target"),
        (lambda: mle_utility_step(L, T + 9), ValueError, "target"),
        (lambda: ordinal_accuracy(L, [0] * 6), TypeError, "target"),
        (lambda: ordinal_accuracy(L[:, :1], 0 * T), ValueError, "classes"),
        (lambda: mbr_decode([]), ValueError, "candidates"),
        (lambda: mbr_decode(3), TypeError, "candidates"),
        (lambda: mbr_decode([1, 2]), TypeError, "candidates"),
        (lambda: mbr_decode(torch.zeros(3)), ValueError, "candidates"),
        (lambda: mbr_decode(["a"], "bleu"), ValueError, "gain"),
        (lambda: mbr_decode(["a"], 1.0), TypeError, "gain"),
        (lambda: mbr_decode(["a", "b"], probs=[1.0]), ValueError, "probs"),
        (lambda: mbr_decode(["a", "b"], probs=[1.0, -1.0]), ValueError, "probs"),
        (lambda: mbr_decode(["a", "b"], probs=[0.0, 0.0]), ValueError, "probs"),
    ],
)
def test_bad_calls_name_the_argument(call, error, word) -> None:
    with pytest.raises(error, match=word):
        call()
