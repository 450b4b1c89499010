"""Soft tokens: how they are drawn, mixed and scored."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.policy import SoftToken, mixed_log_prob, sample_soft_token, soft_embedding, soft_token_log_prob

UNTRUNCATED = (-math.inf, math.inf)
NOISES = ("gumbel", "gaussian", "dirichlet")


def draw(*shape: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64)


def renormalised(logits: Tensor, ids: Tensor) -> Tensor:
    p = logits.softmax(-1).gather(-1, ids)
    return p / p.sum(-1, keepdim=True)


def test_the_candidates_are_those_of_top_k_then_top_p() -> None:
    logits = draw(200, 12)
    token = sample_soft_token(logits, k=5, top_p=0.7)
    for row, z in enumerate(logits):
        order = sorted(range(12), key=lambda t, z=z: -float(z[t]))[:5]
        p = z[order].softmax(-1).tolist()
        kept = [t for place, t in enumerate(order) if sum(p[:place]) < 0.7]
        assert sorted(token.ids[row].tolist()) == sorted(order)
        assert sorted(token.ids[row][token.kept[row]].tolist()) == sorted(kept)


def test_min_p_removes_what_is_far_below_the_largest() -> None:
    token = sample_soft_token(torch.tensor([0.5, 0.3, 0.15, 0.05]).log(), k=4, top_p=1.0, min_p=0.29)
    assert sorted(token.ids[token.kept].tolist()) == [0, 1, 2]


@pytest.mark.parametrize("noise", NOISES)
def test_a_token_is_sorted_and_its_weights_sum_to_one(noise: str) -> None:
    token = sample_soft_token(draw(50, 9), k=4, noise=noise)
    assert token.ids.shape == (50, 4) and token.is_soft.all() and token.is_soft.shape == (50,)
    assert bool((token.weights.diff(dim=-1) <= 0).all())
    torch.testing.assert_close(token.weights.sum(-1), torch.ones(50, dtype=torch.float64))
    assert noise == "gaussian" or bool((token.weights >= 0).all())


def test_without_noise_it_is_deterministic_soft_thinking() -> None:
    logits = draw(30, 7)
    for tau in (0.5, 1.0):
        token = sample_soft_token(logits, k=4, top_p=1.0, noise_scale=0.0, tau=tau)
        p = renormalised(logits, token.ids)
        expected = p ** (1 / tau) / (p ** (1 / tau)).sum(-1, keepdim=True)
        torch.testing.assert_close(token.weights, expected, rtol=1e-3, atol=1e-5)  # log(p + 1e-6), not log p


def test_gumbel_max_draws_tokens_with_their_probabilities() -> None:
    logits, count = torch.tensor([1.0, 0.0, 0.5, -1.0, -3.0], dtype=torch.float64), 40_000
    token = sample_soft_token(logits.expand(count, 5), k=4, top_p=1.0, tau=1e-4, clamp=UNTRUNCATED)
    assert float((token.weights[:, 0] > 0.999).double().mean()) > 0.999
    p = logits[:4].softmax(-1)
    found = torch.bincount(token.ids[:, 0], minlength=5)[:4].double()
    chi_square = float(((found - count * p) ** 2 / (count * p)).sum())
    assert chi_square < 16.3  # 0.1 % of chi-square with three degrees of freedom


def test_the_same_generator_gives_the_same_token() -> None:
    logits = draw(5, 8)
    for noise in NOISES:
        first, again = (
            sample_soft_token(logits, k=3, noise=noise, generator=torch.Generator().manual_seed(4)) for _ in range(2)
        )
        assert torch.equal(first.g, again.g)


@pytest.mark.parametrize("noise", NOISES)
def test_a_forbidden_token_has_no_weight(noise: str) -> None:
    logits = torch.full((20, 6), -torch.inf)
    logits[:, 2:4] = torch.tensor([0.0, 1.0])
    token = sample_soft_token(logits, k=4, top_p=1.0, tau=1.0, noise=noise)
    absent = ~((token.ids == 2) | (token.ids == 3))
    assert bool((token.weights[absent] == 0).all()) and not bool(token.kept[absent].any())
    log_p = soft_token_log_prob(logits.requires_grad_(), token.ids, token.g, kept=token.kept, noise=noise)
    log_p.sum().backward()
    assert bool(log_p.isfinite().all()) and bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("noise", NOISES)
def test_the_sampling_policy_scores_the_noise_that_it_drew(noise: str) -> None:
    logits = draw(300, 11)
    token = sample_soft_token(logits, k=4, top_p=1.0, noise=noise, temperature=1.3)
    p = renormalised(logits / 1.3, token.ids)
    if noise == "gumbel":
        e = token.g - torch.log(p + 1e-6)
        assert float(e.min()) > -1.5 - 1e-9 and float(e.max()) < 3 + 1e-9
        density = -e - torch.exp(-e)
        counts = p + 1e-6 > math.exp(-3)
    elif noise == "gaussian":
        off = (token.g - p).clamp(-0.15, 0.15)
        density = torch.distributions.Normal(p, 0.05).log_prob(p + off)
        counts = p > 0.05
    else:
        density = torch.distributions.Gamma(p, torch.ones_like(p)).log_prob(token.g).clamp(-5, 3)
        counts = p > 0.05
    expected = torch.where(counts, density, 0.0).sum(-1) / counts.sum(-1)
    actual = soft_token_log_prob(logits, token.ids, token.g, noise=noise, temperature=1.3)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_the_sum_is_the_joint_density() -> None:
    logits = draw(20, 6, scale=0.3)
    token = sample_soft_token(logits, k=4, top_p=1.0)
    mean, total = (soft_token_log_prob(logits, token.ids, token.g, reduce=how) for how in ("mean", "sum"))
    torch.testing.assert_close(total, 4 * mean)  # all four are likely enough to count


def test_a_shift_of_the_logits_changes_nothing() -> None:
    logits, token = draw(9, 6), sample_soft_token(draw(9, 6), k=3)
    for reduce in ("mean", "sum", "concrete"):
        a, b = (soft_token_log_prob(logits + c, token.ids, token.g, reduce=reduce) for c in (0.0, 7.0))
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_one_candidate_is_the_density_of_the_noise_alone() -> None:
    g = torch.tensor([[0.3], [2.0]], dtype=torch.float64)
    e = g[:, 0] - math.log(1 + 1e-6)
    torch.testing.assert_close(soft_token_log_prob(draw(2, 1), None, g), -e - torch.exp(-e))


def test_rows_of_unlikely_candidates_count_their_likeliest() -> None:
    logits = torch.zeros(1, 40, dtype=torch.float64)
    logits[0, 7] = 0.1
    g = torch.full((1, 40), -3.0, dtype=torch.float64)
    e = -3.0 - torch.log(logits.softmax(-1)[0, 7] + 1e-6)
    torch.testing.assert_close(soft_token_log_prob(logits, None, g)[0], -e - torch.exp(-e))


def test_the_score_has_mean_zero_on_policy() -> None:
    logits = torch.tensor([0.5, 0.0, -0.5], dtype=torch.float64, requires_grad=True)
    token = sample_soft_token(logits.expand(100_000, 3), k=3, top_p=1.0, clamp=UNTRUNCATED)
    for reduce in ("sum", "mean", "concrete"):
        rows = logits.expand(100_000, 3).detach().requires_grad_()
        log_p = soft_token_log_prob(rows, token.ids, token.g, reduce=reduce, clamp=UNTRUNCATED)
        (score,) = torch.autograd.grad(log_p.sum(), rows)
        assert bool((score.mean(0).abs() < 4 * score.std(0) / math.sqrt(100_000)).all()), reduce
        assert float(score.std(0).min()) > 0.05


def test_the_concrete_density_of_two_weights_integrates_to_one() -> None:
    y = torch.linspace(0, 1, 20_002, dtype=torch.float64)[1:-1]
    for tau, c in ((0.7, 1.0), (0.9, 1.4)):
        g = tau * torch.stack((y, 1 - y), -1).log()  # any g with softmax(g / tau) = y
        logits = torch.tensor([0.4, -0.3], dtype=torch.float64).expand(len(y), 2)
        density = soft_token_log_prob(logits, None, g, reduce="concrete", tau=tau, noise_scale=c).exp()
        assert float(torch.trapezoid(density, y)) == pytest.approx(1.0, abs=2e-2)
        shifted = soft_token_log_prob(logits, None, g + 3.0, reduce="concrete", tau=tau, noise_scale=c)
        torch.testing.assert_close(shifted.exp(), density)


def test_the_concrete_density_leaves_removed_candidates_out() -> None:
    logits, g = draw(4, 3), draw(4, 3, scale=0.3)
    two = soft_token_log_prob(logits[:, :2], None, g[:, :2], reduce="concrete")
    kept = torch.tensor([True, True, False]).expand(4, 3)
    three = soft_token_log_prob(logits, None, g, kept=kept, reduce="concrete")
    torch.testing.assert_close(three, two, rtol=1e-3, atol=1e-3)  # 1e-6 is added to other probabilities


def test_the_mixture_lies_in_the_hull_of_its_candidates() -> None:
    table, token = draw(10, 6), sample_soft_token(draw(40, 10), k=4, tau=1.0)
    s, corners = soft_embedding(token, table), table[token.ids]
    assert bool((s >= corners.amin(-2) - 1e-12).all()) and bool((s <= corners.amax(-2) + 1e-12).all())
    assert float((s - corners[:, 0]).abs().max()) > 0.1


def test_no_gradient_reaches_the_table_through_the_mixture() -> None:
    layer = torch.nn.Embedding(8, 4)
    token = sample_soft_token(draw(3, 8).float(), k=3)
    assert not soft_embedding(token, layer.weight).requires_grad
    assert not soft_embedding(token, layer).requires_grad
    torch.testing.assert_close(soft_embedding(token, layer), soft_embedding(token, layer.weight))


def test_other_temperatures_of_a_drawn_token() -> None:
    table, token = draw(8, 4), sample_soft_token(draw(3, 8), k=3)
    expected = ((token.g / 0.7).softmax(-1)[..., None] * table[token.ids]).sum(-2)
    torch.testing.assert_close(soft_embedding(token, table, tau=0.7), expected)


def test_16_bit_logits_and_tables() -> None:
    token = sample_soft_token(draw(5, 8).bfloat16(), k=3)
    assert token.g.dtype == token.weights.dtype == torch.float32
    table = draw(8, 4)
    s = soft_embedding(token, table.bfloat16())
    assert s.dtype == torch.bfloat16
    torch.testing.assert_close(s.double(), soft_embedding(token, table), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("reduce", ["mean", "sum", "concrete"])
def test_selected_rows_of_the_output_matrix_give_what_all_logits_give(reduce: str) -> None:
    hidden, head, bias = draw(2, 5, 4).requires_grad_(), draw(13, 4).requires_grad_(), draw(13).requires_grad_()
    with torch.no_grad():
        soft = sample_soft_token(hidden @ head.T + bias, k=3)
    is_soft = torch.tensor([[1, 1, 0, 1, 0], [1, 0, 0, 0, 1]]).bool()
    token = soft.where(is_soft, SoftToken.discrete(torch.randint(13, (2, 5)), 3, torch.float64))
    weights = draw(2, 5)
    options = {"temperature": 0.8, "reduce": reduce}

    def run(*arguments: Tensor | None, **more: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        log_p = mixed_log_prob(*arguments, token, **options, **more)
        return log_p, torch.autograd.grad((log_p * weights).sum(), (hidden, head, bias))

    all_p, all_grads = run(hidden @ head.T + bias, None)
    log_p, grads = run(hidden, head, bias=bias)
    torch.testing.assert_close(log_p, all_p, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(grads, all_grads, rtol=1e-10, atol=1e-10)
    ordinary = ((hidden @ head.T + bias) / 0.8).log_softmax(-1).gather(-1, token.ids[..., :1])[..., 0]
    torch.testing.assert_close(log_p[~is_soft], ordinary[~is_soft])


def test_the_label_zero_is_an_ordinary_token_and_ignored_labels_count_nothing() -> None:
    logits = draw(1, 3, 5)
    token = SoftToken.discrete(torch.tensor([[0, 2, 0]]), 2)
    expected = logits.log_softmax(-1)[0, [0, 1, 2], [0, 2, 0]]
    torch.testing.assert_close(mixed_log_prob(logits, None, token)[0], expected)
    torch.testing.assert_close(mixed_log_prob(logits, None, token, torch.tensor([[0, 2, -100]]))[0, 2].item(), 0.0)


def test_soft_steps_read_the_rows_of_their_candidates_only() -> None:
    hidden, head = draw(3, 4), draw(50, 4)
    token = sample_soft_token(hidden @ head.T, k=3)
    others = torch.ones(50).bool()
    others[token.ids.flatten()] = False
    head[others] = torch.nan
    assert bool(mixed_log_prob(hidden, head, token).isfinite().all())


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"k": 0}, "k"),
        ({"k": 7}, "k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"temperature": 0.0}, "temperature"),
        ({"tau": 0.0}, "tau"),
        ({"noise": "laplace"}, "noise"),
        ({"noise_scale": -1.0}, "noise_scale"),
        ({"noise": "dirichlet", "noise_scale": 0.0}, "noise_scale"),
        ({"clamp": (1.0, 0.0)}, "clamp"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_sampling_options(options: dict[str, object], word: str) -> None:
    with pytest.raises(ArgumentValueError, match=word):
        sample_soft_token(torch.zeros(2, 6), **options)


def test_bad_tensors() -> None:
    for wrong in (torch.tensor([float("nan"), 0.0]), torch.tensor([torch.inf, 0.0]), torch.full((2,), -torch.inf)):
        with pytest.raises(ArgumentValueError, match="logits"):
            sample_soft_token(wrong, k=1)
    with pytest.raises(ArgumentTypeError, match="k must be an int"):
        sample_soft_token(torch.zeros(4), k=True)
    token = SoftToken.discrete(torch.zeros(2, dtype=torch.long), 2)
    with pytest.raises(ArgumentValueError, match="embedding"):
        soft_embedding(token, torch.zeros(3))
    with pytest.raises(ArgumentTypeError, match="token"):
        soft_embedding(torch.zeros(3), torch.zeros(3, 2))
    with pytest.raises(ArgumentValueError, match="token"):
        mixed_log_prob(torch.zeros(3, 4), None, token)
    with pytest.raises(ArgumentTypeError, match="labels"):
        mixed_log_prob(torch.zeros(2, 4), None, token, torch.zeros(2))
    with pytest.raises(ArgumentTypeError, match="bias"):
        mixed_log_prob(torch.zeros(2, 4), None, token, bias=torch.zeros(4))
