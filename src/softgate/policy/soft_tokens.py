"""Soft tokens: a few candidates of the vocabulary, mixed with noisy weights into one input embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate._math.compress import compute_dtype
from softgate.errors import ArgumentValueError, bad_type, bad_value
from softgate.policy._soft_noise import check_noise

__all__ = ["SoftToken", "sample_soft_token", "soft_embedding"]

NoiseName = Literal["gumbel", "gaussian", "dirichlet"]


class SoftToken(NamedTuple):
    """K candidates per step and what was drawn for them; everything an update needs to score the step again.

    Attributes:
        ids: ``(..., K)`` int64, the candidates by falling weight; the first one is the token that the step counts as.
        g: ``(..., K)`` noisy values, float32 or float64.
        weights: ``(..., K)``, sum 1; what the embeddings are mixed with.
        is_soft: ``(...)`` bool; False for an ordinary token, whose weight is 1 on ``ids[..., 0]``.
        kept: ``(..., K)`` bool; False for candidates that top-p, min-p or a logit of -inf had removed.
    """

    ids: Tensor
    g: Tensor
    weights: Tensor
    is_soft: Tensor
    kept: Tensor

    @classmethod
    def discrete(cls, ids: Tensor, k: int, dtype: torch.dtype = torch.float32) -> SoftToken:
        """Ordinary tokens ``ids`` (...) in the form of soft ones with ``k`` candidates."""
        first = torch.zeros(k, dtype=torch.bool, device=ids.device)
        first[0] = True
        kept = first.expand(*ids.shape, k)
        return cls(
            ids=torch.where(kept, ids[..., None], 0),
            g=torch.zeros(kept.shape, dtype=dtype, device=ids.device),
            weights=kept.to(dtype),
            is_soft=torch.zeros_like(ids, dtype=torch.bool),
            kept=kept,
        )

    @classmethod
    def stack(cls, steps: Sequence[SoftToken], dim: int = 1) -> SoftToken:
        """Steps of shape ``(B, ...)`` as one sequence ``(B, T, ...)``."""
        return cls(*(torch.stack(parts, dim) for parts in zip(*steps, strict=True)))

    def rows(self, index: Tensor | slice) -> SoftToken:
        """The steps that ``index`` picks along the first dimension."""
        return SoftToken(*(part[index] for part in self))

    def where(self, condition: Tensor, other: SoftToken) -> SoftToken:
        """This token where ``condition`` (...) holds, the other elsewhere."""
        return SoftToken(
            *(
                torch.where(condition if mine.ndim == condition.ndim else condition[..., None], mine, theirs)
                for mine, theirs in zip(self, other, strict=True)
            )
        )


def sample_soft_token(
    logits: Tensor,
    *,
    k: int = 5,
    top_p: float = 0.95,
    min_p: float = 0.0,
    temperature: float = 1.0,
    noise: NoiseName = "gumbel",
    noise_scale: float = 1.0,
    tau: float = 0.1,
    clamp: tuple[float, float] | None = None,
    generator: torch.Generator | None = None,
) -> SoftToken:
    r"""Draw a soft token: the k likeliest tokens, their probabilities disturbed by noise and made weights.

    With the renormalised probabilities :math:`\hat p_k` of the candidates (those removed by top-p are 0),

    .. math:: g_k = \log(\hat p_k + 10^{-6}) + c\,\mathrm{clamp}(\varepsilon_k, -1.5, 3), \quad
              \varepsilon_k \sim \mathrm{Gumbel}(0, 1), \qquad y = \mathrm{softmax}(g / \tau)

    ``noise_scale=0`` is deterministic soft thinking, which mixes with :math:`\hat p^{1/\tau}`.

    Args:
        logits: ``(..., V)``, real floating point; -inf forbids a token.
        k: number of candidates, in [1, V].
        top_p: candidates from which on the ones before hold this much of the mass are removed, in (0, 1].
        min_p: so are those below this share of the largest probability, in [0, 1].
        temperature: divides the logits, positive.
        noise: ``"gumbel"`` on the log-probabilities; ``"gaussian"``: normal with deviation 0.05 on the probabilities
            (weights may be negative); ``"dirichlet"``: Gamma draws of shape p. These two take their shares as weights.
        noise_scale: factor of the noise, not negative; for ``"dirichlet"`` the shapes are ``p / noise_scale``.
        tau: temperature of the Gumbel-softmax, positive; small values come near to a single token.
        clamp: bounds of the Gumbel noise, (-1.5, 3) if None; ``(-inf, inf)`` for none.
        generator: source of randomness.

    Returns:
        A :class:`SoftToken` with K = k, sorted by weight; ``g`` and the weights in float32 (float64 for float64).
        A candidate of logit -inf has weight 0.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: an option is out of range, or a row of logits has NaN, +inf or nothing finite.

    Example:
        >>> token = sample_soft_token(torch.tensor([2.0, 1.0, 0.0, -1.0]), k=2, top_p=1.0, noise_scale=0.0, tau=1.0)
        >>> token.ids, token.weights
        (tensor([0, 1]), tensor([0.7311, 0.2689]))

    Paper: SofT-GRPO, arXiv 2511.06411.
    """
    chosen, settings = check_noise(noise, noise_scale, tau, clamp, 1e-6, may_be_silent=True)
    p, ids, possible = candidates(logits, k=k, top_p=top_p, min_p=min_p, temperature=temperature)
    kept = p > 0
    g = chosen.draw(p, settings, generator).masked_fill(~possible, chosen.absent)
    weights = chosen.weights(g, settings.tau)
    order = g.argsort(-1, descending=True)  # weights rise with g, and small ones are equal in rounding
    g, weights, ids, kept = (part.gather(-1, order) for part in (g, weights, ids, kept))
    return SoftToken(ids, g, weights, torch.ones(ids.shape[:-1], dtype=torch.bool, device=ids.device), kept)


def sample_token(
    logits: Tensor,
    *,
    k: int = 5,
    top_p: float = 0.95,
    min_p: float = 0.0,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw an ordinary token from the candidates of :func:`sample_soft_token`; ``(..., V)`` to ``(...)``."""
    p, ids, _ = candidates(logits, k=k, top_p=top_p, min_p=min_p, temperature=temperature)
    drawn = torch.multinomial(p.reshape(-1, k), 1, generator=generator).reshape(*ids.shape[:-1], 1)
    return ids.gather(-1, drawn).squeeze(-1)


def candidates(
    logits: Tensor, *, k: int, top_p: float, min_p: float, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The k likeliest tokens, ``(..., k)`` by falling probability: probabilities that sum to 1, ids, and which can be.

    A candidate removed by top-p or min-p has probability 0; so has one whose logit is -inf, and that one cannot be.
    """
    check_float_tensor("logits", logits)
    if logits.ndim == 0:
        bad_value("logits", "a 0-d tensor", "of shape (..., V)")
    vocabulary = logits.shape[-1]
    if isinstance(k, bool) or not isinstance(k, int):
        bad_type("k", k, "an int")
    if not 1 <= k <= vocabulary:
        bad_value("k", k, f"in [1, {vocabulary}], the number of tokens")
    check_number("top_p", top_p, low=0.0, low_open=True, high=1.0)
    check_number("min_p", min_p, low=0.0, high=1.0)
    check_number("temperature", temperature, low=0.0, low_open=True, high_open=True)
    wide = logits.detach().to(compute_dtype(logits.dtype)) / temperature
    # softmax over the candidates is softmax over all tokens, renormalised
    scores, ids = wide.topk(k, -1)
    p = scores.softmax(-1)
    if bool(p.isnan().any()):
        raise ArgumentValueError("logits must have a finite entry and neither NaN nor +inf in every row")
    keep = p >= min_p * p[..., :1]
    if top_p < 1.0:  # at 1, rounding must not remove the last one
        keep &= p.cumsum(-1) - p < top_p
    p = torch.where(keep, p, 0.0)
    return p / p.sum(-1, keepdim=True), ids, scores > -torch.inf


def soft_embedding(token: SoftToken, embedding: Tensor | nn.Module, tau: float | None = None) -> Tensor:
    r"""Input embedding of a soft token, ``s = Σ_k y_k E[t_k]``; no gradient reaches the table through it.

    The likelihood of later steps is taken at given inputs: a gradient through ``s`` would mix a second estimator into
    the score-function gradient. So the result is detached, always.

    Args:
        token: candidates of shape ``(..., K)``.
        embedding: the table ``(V, D)``, real floating point, or the model's input layer (ids to embeddings), where
            that does more than look up a row.
        tau: None takes ``token.weights``; a positive number takes ``softmax(token.g / tau)`` for the soft steps
            (Gumbel noise), to look at a drawn token at another temperature.

    Returns:
        ``(..., D)`` in the dtype of the table, summed in float32 or wider.

    Raises:
        ArgumentTypeError: the table is no floating-point tensor, or ``token`` no :class:`SoftToken`.
        ArgumentValueError: the table is not 2-d, or on another device.

    Example:
        >>> soft_embedding(SoftToken.discrete(torch.tensor([1]), k=2), torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor([[0., 2.]])

    Paper: SofT-GRPO, arXiv 2511.06411.
    """
    if not isinstance(token, SoftToken):
        bad_type("token", token, "a SoftToken")
    if not isinstance(embedding, nn.Module):
        check_float_tensor("embedding", embedding)
        if embedding.ndim != 2:
            bad_value("embedding", tuple(embedding.shape), "of shape (V, D)")
        check_same_device(token=token.ids, embedding=embedding)
    weights = token.weights
    if tau is not None:
        check_number("tau", tau, low=0.0, low_open=True, high_open=True)
        weights = torch.where(token.is_soft[..., None], torch.softmax(token.g / tau, -1), weights)
    with torch.no_grad():
        total: Tensor | None = None
        for ids, weight in zip(token.ids.unbind(-1), weights.unbind(-1), strict=True):
            rows = embedding(ids) if isinstance(embedding, nn.Module) else embedding[ids]
            part = weight[..., None] * rows  # one candidate at a time: K times less memory
            total = part if total is None else total.add_(part)
    assert total is not None  # K >= 1
    return total.to(rows.dtype)


def check_soft_token(token: Any, shape: torch.Size, name: str = "token") -> SoftToken:
    """Return ``token`` if it is a :class:`SoftToken` whose steps have ``shape``."""
    if not isinstance(token, SoftToken):
        bad_type(name, token, "a SoftToken")
    if token.ids.shape[:-1] != shape:
        bad_value(name, tuple(token.ids.shape), f"of shape {(*shape, 'K')}")
    return token
