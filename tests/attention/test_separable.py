"""Linear and normalised attention: what the generated checks cannot know."""

import itertools

import pytest
import torch
from torch.nn.functional import softplus

import softgate
from softgate._math.masks import key_padding_mask
from softgate.attention import linear_attention, normalized_attention
from softgate.attention.separable.features import elu_plus_one
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError


def draw(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype)


def loop(q, k, v, feature=elu_plus_one):
    """The definition, query by query."""
    rows = []
    for i in range(q.shape[-2]):
        weights = torch.stack([(feature(q[..., i, :]) * feature(k[..., j, :])).sum(-1) for j in range(i + 1)], -1)
        rows.append((weights[..., None] * v[..., : i + 1, :]).sum(-2) / weights.sum(-1, keepdim=True))
    return torch.stack(rows, -2)


def test_linear_attention_is_its_definition():
    q, k, v = draw(2, 1, 7, 3), draw(2, 1, 7, 3), draw(2, 1, 7, 2)
    torch.testing.assert_close(linear_attention(q, k, v, is_causal=True), loop(q, k, v))
    torch.testing.assert_close(linear_attention(q, k, v, is_causal=True, scale=0.5), loop(0.5 * q, k, v))


def test_weights_sum_to_one_for_linear_attention_only():
    q, k, eta, ones = draw(1, 2, 9, 4), draw(1, 2, 9, 4), draw(1, 2, 9, 1), torch.ones(1, 2, 9, 1, dtype=torch.float64)
    torch.testing.assert_close(linear_attention(q, k, ones, is_causal=True), ones)
    assert (normalized_attention(q, k, ones, eta, is_causal=True) - ones).abs().min() > 1e-3


@pytest.mark.parametrize(("norm", "eta_of"), [("exp", torch.exp), ("softplus", softplus), ("sigmoid", torch.sigmoid)])
def test_normalised_attention_divides_by_eta(norm, eta_of):
    q, k, v, n = draw(1, 2, 6, 3), draw(1, 2, 6, 3), draw(1, 2, 6, 2), draw(1, 2, 6, 1)
    expected = (q @ k.mT).tril() @ v / eta_of(n)
    torch.testing.assert_close(normalized_attention(q, k, v, n, is_causal=True, norm=norm), expected)


def test_normalised_attention_with_the_row_sum_as_eta_is_linear_attention():
    q, k, v = draw(1, 2, 8, 3), draw(1, 2, 8, 3), draw(1, 2, 8, 2)
    phi_q, phi_k = elu_plus_one(q), elu_plus_one(k)
    row_sum = (phi_q * phi_k.cumsum(-2)).sum(-1, keepdim=True)
    y = normalized_attention(q, k, v, row_sum.log(), is_causal=True, feature_map="elu")
    torch.testing.assert_close(y, linear_attention(q, k, v, is_causal=True))


CALLS = {
    "causal": ((1, 2, 150), (2, 150), {"is_causal": True}),
    "grouped": ((2, 4, 140), (2, 140), {"is_causal": True, "enable_gqa": True}),
    "prefix": ((1, 2, 130), (2, 300), {"is_causal": True}),
    "segments": ((1, 1, 1100), (1, 1100), {"is_causal": True}),
    "all": ((2, 2, 140), (2, 200), {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_state_gives_the_quadratic_form_and_its_gradients(name):
    (batch, heads, queries), (groups, keys), options = CALLS[name]
    tensors = [draw(batch, heads, queries, 3), draw(batch, groups, keys, 3), draw(batch, groups, keys, 2)]
    eta = draw(batch, heads, queries, 1)
    keep = torch.rand(batch, keys) > 0.2
    for mask in (None, key_padding_mask(keep)):
        for function, extra in ((linear_attention, ()), (normalized_attention, (eta,))):
            found = []
            for backend in ("reference", "chunked"):
                leaves = [t.clone().requires_grad_() for t in (*tensors, *extra)]
                y = function(*leaves, attn_mask=mask, backend=backend, **options)
                found.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
            for a, b in zip(*found, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * float(b.detach().abs().max()))


def test_causality():
    q, k, v, eta = draw(1, 1, 200, 3), draw(1, 1, 200, 3), draw(1, 1, 200, 2), draw(1, 1, 200, 1)
    later = torch.arange(200)[:, None] > 100
    for function, extra in ((linear_attention, ()), (normalized_attention, (eta,))):
        y = function(q, k, v, *extra, is_causal=True)
        other = function(q, torch.where(later, -k, k), torch.where(later, 9.0, v), *extra, is_causal=True)
        assert torch.equal(y[..., :101, :], other[..., :101, :]) and not torch.equal(y, other)


def test_additive_mask_multiplies_by_its_exponential():
    q, k, v, bias = draw(1, 1, 4, 3), draw(1, 1, 4, 3), draw(1, 1, 4, 2), draw(4, 4)
    weights = elu_plus_one(q) @ elu_plus_one(k).mT * bias.exp()
    expected = weights @ v / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(linear_attention(q, k, v, bias), expected)


def test_long_sequences_choose_the_state_and_short_ones_the_matrix():
    q = draw(1, 1, 256, 4)
    assert softgate.explain(linear_attention, q, q, q, is_causal=True).chosen == "chunked"
    assert "fast" in softgate.explain(linear_attention, q[:, :, :64], q, q).refused["chunked"]
    mask = torch.ones(256, 256, dtype=torch.bool)
    assert "differs" in softgate.explain(linear_attention, q, q, q, attn_mask=mask).refused["chunked"]


def test_eta_beyond_the_range_of_float32_stays_finite():
    q = torch.ones(1, 1, 3, 2)
    for norm, logit in itertools.product(("exp", "softplus", "sigmoid"), (-1e4, -200.0, 200.0, 1e4)):
        eta = torch.full((1, 1, 3, 1), logit, requires_grad=True)
        y = normalized_attention(q, q, q, eta, is_causal=True, norm=norm)
        y.sum().backward()
        assert y.isfinite().all() and eta.grad.isfinite().all()


def test_features_without_cancellation():
    x = torch.tensor([-20.0, -1.0, 0.0, 2.0], requires_grad=True)
    y = elu_plus_one(x)
    torch.testing.assert_close(y[:2].detach(), torch.tensor([-20.0, -1.0]).exp(), rtol=1e-6, atol=0.0)
    assert y[2:].tolist() == [1.0, 3.0]
    y.sum().backward()
    assert x.grad[2:].tolist() == [1.0, 1.0]


def test_bad_input():
    q = torch.ones(1, 2, 5, 4)
    with pytest.raises(ArgumentValueError, match="feature_map"):
        linear_attention(q, q, q, feature_map="softmax")
    with pytest.raises(ArgumentValueError, match="eps"):
        linear_attention(q, q, q, eps=-1.0)
    with pytest.raises(ArgumentValueError, match="eta"):
        normalized_attention(q, q, q, torch.ones(1, 2, 5, 2))
    with pytest.raises(ArgumentTypeError, match="eta"):
        normalized_attention(q, q, q, torch.ones(1, 2, 5, 1, dtype=torch.float64))
    with pytest.raises(ArgumentValueError, match="norm"):
        normalized_attention(q, q, q, torch.ones(1, 2, 5, 1), norm="tanh")
    with pytest.raises(StateError, match="drop"):
        linear_attention(q, q, q, dropout_p=0.5, backend="chunked")
    with pytest.raises(StateError, match="attn_mask"):
        linear_attention(q, q, q, attn_mask=torch.ones(5, 5, dtype=torch.bool), backend="chunked")
