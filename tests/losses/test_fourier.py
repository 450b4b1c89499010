"""The Fourier head against its definition: the autocorrelation form, the density's laws, and a scalar-loop measure."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from softgate.dispatch import explain
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError
from softgate.losses import FourierHead, fourier_log_pmf, fourier_pmf, pmf_smoothness
from softgate.losses.fourier.series import autocorrelation, bin_tables, roughness
from softgate.models import GPT, GPTConfig

CPU = torch.device("cpu")


def coefficients(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(*shape, dtype=torch.float64), torch.randn(*shape, dtype=torch.float64)


def shifted_sums(real: torch.Tensor, imag: torch.Tensor) -> torch.Tensor:
    """c_k = Σ_i a_{i+k} conj(a_i), as the paper writes it."""
    a = torch.complex(real, imag)
    n = a.shape[-1]
    return torch.stack([(a[..., k:] * a[..., : n - k].conj()).sum(-1) for k in range(n)], -1)


def paper_density(real: torch.Tensor, imag: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """p(x) = 1/2 + Re Σ_{k≥1} (c_k / c_0) e^{iπkx}."""
    c = shifted_sums(real, imag)
    k = torch.arange(1, c.shape[-1], dtype=torch.float64)
    waves = torch.exp(1j * math.pi * k * x[:, None])
    return 0.5 + ((c[..., None, 1:] / c[..., :1, None].real) * waves).sum(-1).real


def centres(bins: int) -> torch.Tensor:
    return -1 + (2 * torch.arange(bins, dtype=torch.float64) + 1) / bins


@pytest.mark.parametrize(("order", "bins"), [(0, 5), (1, 4), (5, 18), (12, 50), (6, 7)])
def test_the_square_is_the_autocorrelation_form(order: int, bins: int) -> None:
    real, imag = coefficients(3, order + 1)
    table = bin_tables(bins, order, torch.float64, CPU)
    density = paper_density(real, imag, centres(bins))
    torch.testing.assert_close(density.sum(-1), torch.full((3,), bins / 2, dtype=torch.float64))  # N < m
    torch.testing.assert_close(fourier_pmf(real, imag, *table), density / density.sum(-1, keepdim=True))
    torch.testing.assert_close(
        torch.complex(*autocorrelation(real, imag)), shifted_sums(real, imag), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("bins", [1, 2, 9, 16])
def test_tables_are_exactly_even_and_odd(bins: int) -> None:
    cos, sin = bin_tables(bins, 7, torch.float32, CPU)
    assert torch.equal(cos, cos.flip(1)) and torch.equal(sin, -sin.flip(1))
    angles = math.pi * torch.arange(8.0, dtype=torch.float64)[:, None] * centres(bins)
    torch.testing.assert_close(cos.double(), angles.cos(), rtol=0, atol=1e-6)
    torch.testing.assert_close(sin.double(), angles.sin(), rtol=0, atol=1e-6)


def test_scale_and_phase_do_not_matter_and_a_shift_moves_the_bins() -> None:
    real, imag = coefficients(4, 6)
    table = bin_tables(20, 5, torch.float64, CPU)
    y = fourier_pmf(real, imag, *table)
    assert bool((y >= 0).all())
    torch.testing.assert_close(y.sum(-1), torch.ones(4, dtype=torch.float64))
    turned = torch.complex(real, imag) * (0.3 - 2.1j)
    torch.testing.assert_close(fourier_pmf(turned.real, turned.imag, *table), y)
    moved = torch.complex(real, imag) * torch.exp(-1j * math.pi * torch.arange(6) * (2 * 3 / 20))
    torch.testing.assert_close(fourier_pmf(moved.real, moved.imag, *table), y.roll(3, -1))


@pytest.mark.parametrize("size", [1e-30, 1e-18, 1e18, 1e37])
def test_the_scale_neither_overflows_nor_vanishes_in_float32(size: float) -> None:
    real, imag = (part.float() for part in coefficients(2, 4))
    table = bin_tables(9, 3, torch.float32, CPU)
    torch.testing.assert_close(fourier_pmf(size * real, size * imag, *table), fourier_pmf(real, imag, *table))


@pytest.fixture
def small_kernel_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel run calls that are too small to pay."""
    monkeypatch.setattr("softgate.losses.fourier.rows._LEAST", 64)


@pytest.mark.usefixtures("small_kernel_calls")
@pytest.mark.parametrize("rows", [2, 40])  # the reference, and the kernel
def test_zero_coefficients_are_uniform_without_a_gradient(rows: int) -> None:
    real, imag = (torch.zeros(rows, 4, requires_grad=True) for _ in range(2))
    with torch.no_grad():
        real[1:] = torch.randn(rows - 1, 4)
    table = bin_tables(8, 3, torch.float32, CPU)
    out = fourier_log_pmf(real, imag, *table, eps=0.0)
    torch.testing.assert_close(out[0], torch.full((8,), -math.log(8)))
    out[:, 0].sum().backward()
    assert bool((real.grad[0] == 0).all()) and bool((imag.grad[0] == 0).all())
    assert bool(real.grad[1:].isfinite().all()) and bool((real.grad[1:] != 0).any())


@pytest.mark.usefixtures("small_kernel_calls")
@pytest.mark.parametrize("rows", [3, 40])
def test_nan_stays_in_its_row(rows: int) -> None:
    real, imag = (torch.randn(rows, 4) for _ in range(2))
    table = bin_tables(8, 3, torch.float32, CPU)
    clean = fourier_log_pmf(real, imag, *table)
    real[1, 2] = float("nan")
    spoilt = fourier_log_pmf(real, imag, *table)
    assert bool(spoilt[1].isnan().all())
    keep = torch.arange(rows) != 1
    torch.testing.assert_close(spoilt[keep], clean[keep])


@pytest.mark.parametrize("bins", [1, 8, 9])
@pytest.mark.parametrize("order", [0, 3])
def test_the_kernel_is_the_reference(bins: int, order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softgate.losses.fourier.rows._LEAST", 1)
    real, imag = (torch.randn(33, order + 1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    table = bin_tables(bins, order, torch.float64, CPU)
    assert explain(fourier_log_pmf, real, imag, *table).chosen == "mirrored"
    assert "symmetric" in explain(fourier_log_pmf, real, imag, table[0], table[1] + 0.1).refused["mirrored"]
    seed = torch.randn(33, bins, dtype=torch.float64)
    results = []
    for mode in ("auto", "reference"):
        monkeypatch.setenv("SOFTGATE_KERNELS", mode)
        out = fourier_log_pmf(real, imag, *table)
        results.append((out, *torch.autograd.grad(out, (real, imag), seed)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("small_kernel_calls")
@pytest.mark.parametrize("rows", [2, 20])
def test_gradcheck(rows: int) -> None:
    pair = tuple(torch.randn(rows, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    table = bin_tables(7, 2, torch.float64, CPU)
    assert torch.autograd.gradcheck(lambda r, i: fourier_log_pmf(r, i, *table), pair)


def test_blocks_of_rows_give_what_one_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    head = FourierHead(5, 11, 4, dtype=torch.float64)
    x = torch.randn(50, 5, dtype=torch.float64, requires_grad=True)
    whole = head(x)
    (grad,) = torch.autograd.grad(whole.square().sum(), x)
    monkeypatch.setattr("softgate.losses.fourier.rows._BLOCK", 11 * 7)
    monkeypatch.setattr("softgate.losses.fourier.rows._LEAST", 1)
    parts = head(x)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts.square().sum(), x)[0], grad)


# The module


@pytest.mark.parametrize("shape", [(8,), (0, 8), (3, 8), (2, 3, 8)])
def test_any_batch_shape(shape: tuple[int, ...]) -> None:
    head = FourierHead(8, 12, 4)
    x = torch.randn(*shape)
    out = head(x)
    assert out.shape == (*shape[:-1], 12)
    assert bool((out >= math.log(head.eps) - 1e-4).all())
    torch.testing.assert_close(out.exp().sum(-1), torch.full(shape[:-1], 1 + 12 * head.eps))
    strided = torch.randn(8, *shape[:-1]).movedim(0, -1)
    torch.testing.assert_close(head(strided), head(strided.contiguous()))


def test_the_initial_scale_changes_gradients_and_not_probabilities() -> None:
    x = torch.randn(6, 8)
    torch.manual_seed(3)
    plain = FourierHead(8, 10, 3)
    torch.manual_seed(3)
    small = FourierHead(8, 10, 3, init_scale=0.01)
    torch.testing.assert_close(small(x), plain(x), rtol=1e-4, atol=1e-4)
    for head in (plain, small):
        head(x)[:, 0].sum().backward()
    torch.testing.assert_close(small.linear.weight.grad, 100 * plain.linear.weight.grad, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("bins", [4, 13])
def test_exact_masses_are_integrals_of_the_density(bins: int) -> None:
    head = FourierHead(3, bins, 5, integrate_bins=True, eps=0.0, dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64)
    y = head(x).exp()
    edges = torch.linspace(-1, 1, bins + 1, dtype=torch.float64)
    cdf = head.pdf(x[:, None]).cdf(edges)
    torch.testing.assert_close(y, cdf.diff(dim=-1))
    fine = head.pdf(x[:, None]).log_prob(torch.linspace(-1, edges[1].item(), 4001, dtype=torch.float64)).exp()
    torch.testing.assert_close(y[:, 0], torch.trapezoid(fine, dx=(2 / bins) / 4000), rtol=1e-6, atol=1e-9)


def test_unequal_bins_weigh_the_density_with_their_widths() -> None:
    edges = [10.0, 11.0, 13.0, 20.0]
    head = FourierHead(3, 3, 2, bin_edges=edges, eps=0.0, dtype=torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64)
    unit = torch.tensor([-1.0, -0.8, -0.4, 1.0], dtype=torch.float64)
    density = head.pdf(x[:, None]).log_prob((unit[1:] + unit[:-1]) / 2).exp() * unit.diff()
    torch.testing.assert_close(head(x).exp(), density / density.sum(-1, keepdim=True))
    equal = FourierHead(3, 6, 2, bin_edges=torch.linspace(0, 3, 7), dtype=torch.float64)
    plain = FourierHead(3, 6, 2, dtype=torch.float64)
    plain.load_state_dict(equal.state_dict())
    torch.testing.assert_close(equal(x), plain(x))


def test_regularization_follows_its_formula_and_survives_checkpoints() -> None:
    head = FourierHead(6, 20, 4, gamma=0.5)
    with pytest.raises(StateError, match="forward pass"):
        head.regularization()
    x = torch.randn(7, 6, requires_grad=True)
    head(x)
    c = shifted_sums(*(part.double() for part in head.coefficients(x)))
    k = torch.arange(5)
    expected = 0.5 * 2 * (2 * math.pi**2 * k**2 * c.abs() ** 2).sum(-1).mean()
    torch.testing.assert_close(head.regularization().double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(head.regularization(x), head.regularization())
    normalized = 0.5 * roughness((c / c[:, :1]).real, (c / c[:, :1]).imag)
    torch.testing.assert_close(head.regularization(normalized=True).double(), normalized, rtol=1e-5, atol=0)
    assert torch.autograd.grad(head.regularization(), x)[0].abs().max() > 0
    for copied in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        torch.testing.assert_close(copied(x), head(x))
    assert float(FourierHead(6, 20, 4).regularization()) == 0.0  # gamma 0 needs no pass


def test_the_normalised_penalty_ignores_the_scale() -> None:
    head = FourierHead(6, 20, 4, gamma=1.0)
    x = torch.randn(7, 6)
    before = head.regularization(x), head.regularization(x, normalized=True)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.mul_(2.0)
    torch.testing.assert_close(head.regularization(x), 16 * before[0])
    torch.testing.assert_close(head.regularization(x, normalized=True), before[1])


def test_moves_and_casts_keep_the_tables_exact() -> None:
    head = FourierHead(6, 10, 3)
    assert list(head.state_dict()) == ["linear.weight", "linear.bias"]
    half = copy.deepcopy(head).to(torch.bfloat16)
    assert half.cos.dtype == torch.float32 and half(torch.randn(2, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
    back = half.double()
    assert torch.equal(back.cos, bin_tables(10, 3, torch.float64, CPU)[0])
    with torch.device("meta"):
        empty = FourierHead(6, 10, 3)
    assert empty.cos.is_meta
    empty.to_empty(device="cpu").load_state_dict(head.state_dict())
    x = torch.randn(2, 6)
    assert torch.equal(empty(x), head(x))


def test_autocast_keeps_the_tables_in_float32() -> None:
    head = FourierHead(16, 30, 6)
    x = torch.randn(40, 16)
    with torch.autocast("cpu", torch.bfloat16):
        low = head(x).detach()
        penalty = FourierHead(16, 30, 6, gamma=1.0).regularization(x)
    assert low.dtype == torch.bfloat16 and penalty.dtype == torch.float32
    assert float((low.float().exp() - head(x).detach().exp()).abs().max()) < 0.01


def test_compiles_without_a_graph_break() -> None:
    head = FourierHead(4, 6, 2, gamma=0.1)
    x = torch.randn(3, 4)
    compiled = torch.compile(head, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), head(x))


def test_a_head_for_the_gpt_and_its_training() -> None:
    model = GPT(GPTConfig(vocab_size=12, num_layers=1, num_heads=2, embed_dim=8))
    model.head = FourierHead(8, 12, 3)
    tokens = torch.randint(12, (2, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        _, loss = model(tokens, tokens)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert model.generate(tokens, 2).shape == (2, 7)


def test_in_place_of_a_transformers_head() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.lm_head = FourierHead(8, 16, 3)
    tokens = torch.randint(16, (2, 6))
    output = model(input_ids=tokens, labels=tokens)
    output.loss.backward()
    assert output.logits.shape == (2, 6, 16)
    assert bool(model.lm_head.linear.weight.grad.isfinite().all())
    probabilities = output.logits.softmax(-1)
    torch.testing.assert_close(probabilities, output.logits.exp() / (1 + 16 * 1e-5), rtol=1e-4, atol=1e-6)


def test_a_multimodal_conditional_density_is_learnt() -> None:
    """Targets at ±0.5 with equal chance: the head finds both modes, and nothing between them."""
    head = FourierHead(1, 32, 8)
    x, target = torch.ones(64, 1), torch.tensor([8, 23]).repeat(32)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(x), target).backward()
        optimizer.step()
    y = head(x[:1]).detach().exp()[0]
    assert float(y[[8, 23]].min()) > 0.15 and float(y[14:18].max()) < 0.01


@pytest.mark.parametrize(
    ("arguments", "error", "word"),
    [
        ({"in_features": 0}, ArgumentValueError, "in_features"),
        ({"num_bins": 0}, ArgumentValueError, "num_bins"),
        ({"num_frequencies": -1}, ArgumentValueError, "num_frequencies"),
        ({"num_frequencies": 2.0}, ArgumentTypeError, "num_frequencies"),
        ({"num_bins": True}, ArgumentTypeError, "num_bins"),
        ({"gamma": -1.0}, ArgumentValueError, "gamma"),
        ({"eps": float("inf")}, ArgumentValueError, "eps"),
        ({"init_scale": 0.0}, ArgumentValueError, "init_scale"),
        ({"integrate_bins": 1}, ArgumentTypeError, "integrate_bins"),
        ({"bin_edges": [0.0, 1.0]}, ArgumentValueError, "bin_edges"),
        ({"bin_edges": [0.0, 1.0, 1.0, 2.0, 3.0, 4.0, 5.0]}, ArgumentValueError, "bin_edges"),
        ({"bin_edges": 3.0}, ArgumentTypeError, "bin_edges"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        FourierHead(**{"in_features": 4, "num_bins": 6, "num_frequencies": 2, **arguments})


def test_bad_calls() -> None:
    head = FourierHead(4, 6, 2)
    with pytest.raises(ArgumentValueError, match="hidden"):
        head(torch.randn(2, 5))
    with pytest.raises(ArgumentTypeError, match="hidden"):
        head(torch.ones(2, 4, dtype=torch.int64))
    with pytest.warns(UserWarning, match="num_frequencies=6"):
        FourierHead(4, 6, 6)
    FourierHead(4, 6, 6, integrate_bins=True)  # masses tell the frequencies apart


# The measure


def test_smoothness_is_the_sum_of_its_definition() -> None:
    y = torch.rand(7, dtype=torch.float64)
    y = y / y.sum()
    total = 0.0
    for sigma in range(1, 6):
        offsets = torch.arange(-6, 7)
        taps = torch.exp(-0.5 * (offsets.double() / sigma) ** 2)
        taps = taps / taps.sum()
        smooth = torch.stack([sum(taps[i] * y[(j + int(o)) % 7] for i, o in enumerate(offsets)) for j in range(7)])
        total += 6 / (math.pi * sigma) ** 2 * float((y - smooth).norm())
    assert float(pmf_smoothness(y, widths=5)) == pytest.approx(total, rel=1e-12)


def test_smoothness_of_uniform_shifted_and_single_bins() -> None:
    uniform = torch.full((2, 9), 1 / 9, requires_grad=True)
    assert float(pmf_smoothness(uniform).detach().abs().max()) < 1e-7
    pmf_smoothness(uniform).sum().backward()
    assert bool(uniform.grad.isfinite().all())
    y = torch.rand(9, dtype=torch.float64)
    torch.testing.assert_close(pmf_smoothness(y.roll(4)), pmf_smoothness(y))
    assert float(pmf_smoothness(torch.ones(1))) == 0.0
    assert bool(pmf_smoothness(torch.tensor([float("nan"), 1.0])).isnan())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [((torch.ones(()),), "pmf"), ((torch.ones(2, 0),), "pmf"), ((torch.ones(3, dtype=torch.int64),), "pmf"),
     ((torch.ones(3), 0), "widths"), ((torch.ones(3), 1.5), "widths")],
)  # fmt: skip
def test_smoothness_refuses(arguments: tuple[object, ...], word: str) -> None:
    with pytest.raises((ArgumentValueError, ArgumentTypeError), match=word):
        pmf_smoothness(arguments[0], **({"widths": arguments[1]} if len(arguments) > 1 else {}))
