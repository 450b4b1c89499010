"""One attention layer over labelled points, without anything around it: the transformer of in-context regression.

Shape suffixes: B prompts (any leading dimensions), L labelled points, H heads, D = d + N token features, N labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor, check_number, check_same_device, check_sizes
from softgate._math.masks import accumulation_dtype
from softgate.dispatch import transform_reason
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value
from softgate.registry import method

__all__ = ["AttentionICL", "icl_attention"]

#: ``"softmax"``, ``"linear"``, or a score normaliser ``f(scores, dim) -> weights``.
Attention = Literal["softmax", "linear"] | Callable[[Tensor, int], Tensor]

_Sample = tuple[tuple[Any, ...], dict[str, Any]]
_Bad = tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)

    keep = torch.tensor([[True, False, True, True], [True, True, False, False]])
    yield (normal(2, 4, 3), 0.3 * normal(2, 3, 3), normal(2, 3, 3)), {}
    yield (normal(2, 5, 4), 0.3 * normal(3, 4, 4), normal(3, 4, 4), keep), {"n_tasks": 2}
    yield (normal(3, 2, 6, 3), 0.3 * normal(1, 3, 3), normal(1, 3, 3)), {"attention": "linear", "train_length": 5}
    yield (normal(6, 3), 3.0 * normal(4, 3, 3), normal(4, 3, 3)), {}


def _bad() -> Iterator[_Bad]:
    tokens, kq, ov = torch.ones(2, 4, 3), torch.ones(2, 3, 3), torch.ones(2, 3, 3)
    keep = torch.ones(2, 3, dtype=torch.bool)
    yield (tokens[:, :1], kq, ov), {}, ArgumentValueError, "tokens"
    yield (tokens[0, 0], kq, ov), {}, ArgumentValueError, "tokens"
    yield (tokens, kq[0], ov), {}, ArgumentValueError, "kq"
    yield (tokens, kq[:, :2], ov), {}, ArgumentValueError, "kq"
    yield (tokens, kq, ov[:1]), {}, ArgumentValueError, "ov"
    yield (tokens, kq, ov, keep[:, :2]), {}, ArgumentValueError, "context_mask"
    yield (tokens, kq, ov, keep.float()), {}, ArgumentTypeError, "context_mask"
    yield (tokens, kq, ov, ~keep), {}, ArgumentValueError, "context_mask"
    yield (tokens, kq, ov), {"n_tasks": 3}, ArgumentValueError, "n_tasks"
    yield (tokens, kq, ov), {"n_tasks": 0}, ArgumentValueError, "n_tasks"
    yield (tokens, kq, ov), {"attention": "sparse"}, ArgumentValueError, "attention"
    yield (tokens, kq, ov), {"attention": "linear", "train_length": None}, ArgumentValueError, "train_length"
    yield (tokens, kq, ov), {"attention": "linear", "train_length": 0}, ArgumentValueError, "train_length"


@method(
    site="diagnostics",
    family="custom",
    paper="in-context-linear-regression",
    source="sec. 2: last coordinates of Σ_h OV^h Σ_l softmax_l(z_lᵀ KQ^h z_q) z_l over the labelled points",
    samples=_samples,
    bad_inputs=_bad,
    variants={"default": {}, "linear": {"attention": "linear", "train_length": 4}},
    error_scale="tensor",
)
def icl_attention(
    tokens: Tensor,
    kq: Tensor,
    ov: Tensor,
    context_mask: Tensor | None = None,
    *,
    n_tasks: int = 1,
    attention: Attention = "softmax",
    train_length: int | None = None,
) -> Tensor:
    """Predictions of the labels of the last token from the labelled tokens before it.

    Scores are z_lᵀ KQ z_q without any scale. The query attends to the labelled points only, never to itself, and its
    label slots are read as 0 whatever they hold. Only the last ``n_tasks`` rows of ``ov`` enter.

    Args:
        tokens: (…, L + 1, D): L points with their labels in the last ``n_tasks`` features, then the query.
        kq: merged key-query matrices Kᵀ Q, (H, D, D): points on the left, query on the right.
        ov: merged output-value matrices O V, (H, D, D).
        context_mask: bool, (…, L), True for the points to be used, at least one per prompt; None for all.
        n_tasks: N, labels per point.
        attention: ``"softmax"``; ``"linear"``, scores divided by ``train_length``, whatever the length of the prompt;
            or a normaliser ``f(scores, dim) -> weights``, such as :func:`softgate.normalizers.stablemax`, which gives
            0 for a score of -inf.
        train_length: L of the training prompts; needed by ``"linear"`` alone.

    Returns:
        (…, N), in the dtype of ``tokens``; scores and sums of 16-bit tokens are computed in float32.

    Raises:
        ArgumentTypeError: wrong types, dtypes that differ.
        ArgumentValueError: no labelled point, shapes that do not fit, a prompt without an allowed point, a missing
            ``train_length``.

    Example:
        >>> import torch
        >>> tokens = torch.tensor([[1.0, 2.0], [-1.0, 4.0], [0.5, 0.0]])  # (x, y), (x, y), (x_q, 0)
        >>> icl_attention(tokens, torch.zeros(1, 2, 2), torch.eye(2)[None])  # without scores the mean of the labels
        tensor([3.])

    Paper: In-Context Linear Regression Demystified, arXiv 2503.12734, sec. 2.
    """
    check_arguments(tokens, kq, ov, context_mask, n_tasks)
    normalise = normaliser(attention, train_length)
    dtype = accumulation_dtype(tokens.dtype)
    z_BLD, kq_HDD, ov_HDD = tokens.to(dtype), kq.to(dtype), ov.to(dtype)
    context_BLD, query_BD = z_BLD[..., :-1, :], z_BLD[..., -1, :-n_tasks]
    # merged first: no key, query or value of a token is ever formed
    direction_BHD = (kq_HDD[..., :-n_tasks] @ query_BD[..., None, :, None]).squeeze(-1)
    scores_BHL = direction_BHD @ context_BLD.mT
    weights_BHL = _weights(scores_BHL, context_mask, normalise)
    read_BHD = weights_BHL @ context_BLD
    return (ov_HDD[..., -n_tasks:, :] @ read_BHD.unsqueeze(-1)).squeeze(-1).sum(-2).to(tokens.dtype)


def _weights(scores: Tensor, mask: Tensor | None, normalise: Callable[[Tensor], Tensor]) -> Tensor:
    if mask is None:
        return normalise(scores)
    allowed = mask.unsqueeze(-2)
    # linear attention turns -inf into -inf, other normalisers into 0: both are 0 after the second fill
    return normalise(scores.masked_fill(~allowed, float("-inf"))).masked_fill(~allowed, 0.0)


def normaliser(attention: Any, train_length: Any) -> Callable[[Tensor], Tensor]:
    """The function from scores to weights that ``attention`` names, or an error."""
    if attention == "softmax":
        return lambda scores: scores.softmax(-1)
    if attention == "linear":
        if train_length is None:
            raise ArgumentValueError("train_length must be given with attention='linear', got None")
        check_sizes(train_length=train_length)
        return lambda scores: scores / train_length
    if callable(attention):
        return lambda scores: attention(scores, -1)
    if isinstance(attention, str):
        bad_value("attention", attention, "'softmax', 'linear' or a function of (scores, dim)")
    bad_type("attention", attention, "'softmax', 'linear' or a function of (scores, dim)")


def check_arguments(tokens: Any, kq: Any, ov: Any, mask: Any, n_tasks: Any) -> None:
    """Raise unless the arguments of :func:`icl_attention` fit together."""
    check_float_tensor("tokens", tokens)
    check_sizes(n_tasks=n_tasks)
    if tokens.ndim < 2 or tokens.shape[-2] < 2:
        raise ArgumentValueError(
            f"tokens must have shape (..., L + 1, D) with at least one labelled point, got {tuple(tokens.shape)}"
        )
    width = tokens.shape[-1]
    if n_tasks >= width:
        bad_value("n_tasks", n_tasks, f"below the {width} features of a token")
    for name, matrix in (("kq", kq), ("ov", ov)):
        check_float_tensor(name, matrix)
        if matrix.ndim != 3 or matrix.shape[1:] != (width, width) or not matrix.shape[0]:
            raise ArgumentValueError(f"{name} must have shape (heads, {width}, {width}), got {tuple(matrix.shape)}")
        if matrix.dtype != tokens.dtype and accumulation_dtype(tokens.dtype) != matrix.dtype:
            raise ArgumentTypeError(f"{name} must have the dtype of tokens, {tokens.dtype}, got {matrix.dtype}")
    if kq.shape[0] != ov.shape[0]:
        raise ArgumentValueError(f"ov must have as many heads as kq, {kq.shape[0]}, got {ov.shape[0]}")
    if mask is not None:
        _check_mask(mask, tokens)
    check_same_device(tokens=tokens, kq=kq, ov=ov, context_mask=mask)


def _check_mask(mask: Any, tokens: Tensor) -> None:
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise ArgumentTypeError(f"context_mask must be a bool tensor or None, got {kind}")
    points = (*tokens.shape[:-2], tokens.shape[-2] - 1)
    if mask.shape != points:
        raise ArgumentValueError(f"context_mask must have shape {points}, got {tuple(mask.shape)}")
    # elsewhere the values are unknown (tracing), or reading them would stall the device
    if mask.is_cpu and transform_reason(mask, tokens) is None and not bool(mask.any(-1).all()):
        raise ArgumentValueError("context_mask must allow at least one point of every prompt, one has none")


class AttentionICL(nn.Module):
    """The whole transformer: H heads of free matrices K, Q, V, O on raw tokens, no scale, bias, residual or MLP.

    Args:
        d: number of covariates.
        n_heads: H.
        n_tasks: N, labels per point.
        attention: see :func:`icl_attention`.
        init_std: standard deviation of every entry at the start, not negative.
        train_length: L of the training prompts; needed by ``attention="linear"`` alone.

    Shape:
        Tokens (…, L + 1, d + N) to predictions (…, N).

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: sizes below 1, negative ``init_std``, a missing ``train_length``.

    Example:
        >>> import torch
        >>> model = AttentionICL(d=3, n_heads=2)
        >>> model(torch.randn(4, 11, 4)).shape, model.kq().shape, model.ov().shape
        (torch.Size([4, 1]), torch.Size([2, 4, 4]), torch.Size([2, 4, 4]))

    Paper: In-Context Linear Regression Demystified, arXiv 2503.12734, sec. 2.
    """

    def __init__(
        self,
        d: int,
        n_heads: int,
        n_tasks: int = 1,
        attention: Attention = "softmax",
        init_std: float = 0.1,
        *,
        train_length: int | None = None,
    ) -> None:
        super().__init__()
        check_sizes(d=d, n_heads=n_heads, n_tasks=n_tasks)
        check_number("init_std", init_std, low=0.0, high_open=True)
        normaliser(attention, train_length)
        self.d, self.n_tasks, self.attention, self.train_length = d, n_tasks, attention, train_length
        shape = (n_heads, d + n_tasks, d + n_tasks)
        self.key, self.query, self.value, self.output = (nn.Parameter(init_std * torch.randn(shape)) for _ in range(4))

    def kq(self) -> Tensor:
        """KQ^h = Kᵀ Q of every head, (H, D, D): row a labelled token's feature, column the query's."""
        return self.key.mT @ self.query

    def ov(self) -> Tensor:
        """OV^h = O V of every head, (H, D, D); predictions read its last N rows."""
        return self.output @ self.value

    def forward(self, tokens: Tensor, context_mask: Tensor | None = None) -> Tensor:
        """Predict the labels of the last token; see :func:`icl_attention`."""
        return icl_attention(
            tokens, self.kq(), self.ov(), context_mask,
            n_tasks=self.n_tasks, attention=self.attention, train_length=self.train_length,
        )  # fmt: skip

    @torch.no_grad()
    def set_circuit(self, omega: Sequence[float] | Tensor, mu: Sequence[float] | Tensor) -> AttentionICL:
        """Write the circuit that training finds: KQ^h = ω_h I on covariates, OV^h = μ_h on labels, 0 elsewhere.

        Args:
            omega: (H,) or, with one scale per coordinate, (H, d).
            mu: (H,) or, with one weight per task, (H, N).

        Returns:
            The model itself.

        Raises:
            ArgumentValueError: shapes that do not fit.
        """
        scales = _per_head("omega", omega, self.key, self.d)
        weights = _per_head("mu", mu, self.key, self.n_tasks)
        for parameter in self.parameters():
            parameter.zero_()
        covariates, labels = slice(None, self.d), slice(self.d, None)
        self.key[:, covariates, covariates] = torch.eye(self.d).to(self.key)
        self.query[:, covariates, covariates] = torch.diag_embed(scales)
        self.value[:, labels, labels] = torch.eye(self.n_tasks).to(self.key)
        self.output[:, labels, labels] = torch.diag_embed(weights)
        return self

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"d={self.d}, n_heads={len(self.key)}, n_tasks={self.n_tasks}, attention={self.attention!r}"


def _per_head(name: str, values: Any, like: Tensor, width: int) -> Tensor:
    table = torch.as_tensor(values, dtype=like.dtype, device=like.device)
    if table.ndim == 1:
        table = table[:, None].expand(-1, width)
    if table.shape != (len(like), width):
        raise ArgumentValueError(f"{name} must have shape ({len(like)},) or ({len(like)}, {width}), "
                                 f"got {tuple(torch.as_tensor(values).shape)}")  # fmt: skip
    return table
