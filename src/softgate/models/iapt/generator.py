"""From the hidden states of an instruction to a few soft prompts: project down, pool, activate, project up.

Shape suffixes: B batch, N instruction positions, D width of the model, M bottleneck, L prompts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from softgate._checks import check_float_tensor, check_sizes
from softgate._math import masks
from softgate.activations import RationalActivation
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_value, check_choice

__all__ = ["ACTIVATIONS", "PromptGenerator", "SelfAttentionPool", "StaticPrompts", "activation"]

#: Activations of a generator, by name.
ACTIVATIONS = ("rational", "gelu", "relu", "tanh", "silu", "identity")
_PLAIN: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU, "relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU, "identity": nn.Identity,
}  # fmt: skip
_STATIC_STD = 0.02


def activation(name: str, degrees: tuple[int, int] = (5, 4), version: str = "B", init: str = "gelu") -> nn.Module:
    """A new activation called ``name``; the other arguments are those of the rational one."""
    check_choice("activation", name, ACTIVATIONS)
    return RationalActivation(degrees, version, init) if name == "rational" else _PLAIN[name]()


class SelfAttentionPool(nn.Module):
    r"""Sum up a sequence of any length in a fixed number of vectors, by learned queries.

    .. math:: P = \Pi^\top h, \qquad \Pi = \mathrm{softmax}_{positions}(h W)

    Args:
        in_features: width M of the sequence.
        num_queries: number L of vectors.

    Attributes:
        weight: parameter W, (M, L), one query a column, from N(0, 1/M).

    Shapes: h (B, N, M), mask (B, N) -> (B, L, M).

    Example:
        >>> import torch
        >>> SelfAttentionPool(8, 4)(torch.randn(2, 5, 8)).shape
        torch.Size([2, 4, 8])

    Paper: arXiv 2405.18203, sec. 3, the self-attention pooling of the prompt generator.
    """

    def __init__(self, in_features: int, num_queries: int) -> None:
        super().__init__()
        check_sizes(in_features=in_features, num_queries=num_queries)
        self.weight = nn.Parameter(torch.empty(in_features, num_queries))
        nn.init.normal_(self.weight, std=in_features**-0.5)

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pooled vectors.

        Args:
            h: (B, N, M), real floating point.
            mask: (B, N) bool, True where a position counts; None counts all.

        Returns:
            (B, L, M) in the dtype of ``h``.

        Raises:
            ArgumentTypeError: ``h`` is not real floating point, ``mask`` not bool.
            ArgumentValueError: shapes do not fit, or a row has no position that counts.
        """
        weights = self.weights(h, mask).transpose(-1, -2).to(h.dtype)
        if mask is not None:
            h = h.masked_fill(~mask.unsqueeze(-1), 0.0)  # what does not count must not come in as 0 · NaN
        return weights @ h

    def weights(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool weights (B, N, L) of the arguments of :meth:`forward`; each column sums to 1 over the positions."""
        _check_sequence("h", h, self.weight.shape[0])
        _check_mask(mask, h)
        dtype = masks.accumulation_dtype(h.dtype)
        scores = h.to(dtype) @ self.weight.to(dtype)
        if mask is not None:
            scores = scores.masked_fill(~mask.unsqueeze(-1), float("-inf"))
        return scores.softmax(1)

    def extra_repr(self) -> str:
        """Sizes, for ``repr``."""
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}"


class PromptGenerator(nn.Module):
    """Soft prompts from the hidden states of an instruction: down, pool, activate, up.

    Args:
        d: width D of the model.
        bottleneck: width M in between.
        num_tokens: number L of prompts.
        activation: module between pool and up-projection; a new ``RationalActivation()`` if None.
        share: a generator whose projections (not pool and activation) this one uses too.

    Attributes:
        down: linear map D -> M.
        pool: :class:`SelfAttentionPool`.
        activation: the activation.
        up: linear map M -> D.

    Shapes: h (B, N, D), mask (B, N) -> (B, L, D). Computed in float32 at least, whatever the dtype of ``h``.

    Example:
        >>> import torch
        >>> generator = PromptGenerator(32, bottleneck=8)
        >>> generator(torch.randn(2, 5, 32), torch.ones(2, 5, dtype=torch.bool)).shape
        torch.Size([2, 4, 32])
        >>> sum(p.numel() for p in generator.parameters()) == 2 * 32 * 8 + 8 + 32 + 8 * 4 + 5 + 4 + 1
        True

    Paper: arXiv 2405.18203, sec. 3, prompt generator.
    """

    def __init__(
        self,
        d: int,
        bottleneck: int = 16,
        num_tokens: int = 4,
        activation: nn.Module | None = None,
        *,
        share: PromptGenerator | None = None,
    ) -> None:
        super().__init__()
        check_sizes(d=d, bottleneck=bottleneck, num_tokens=num_tokens)
        if share is not None and (share.down.in_features, share.down.out_features) != (d, bottleneck):
            bad_value("share", share, f"a generator with projections {d} -> {bottleneck} -> {d}")
        self.down: nn.Linear = nn.Linear(d, bottleneck) if share is None else share.down
        self.pool = SelfAttentionPool(bottleneck, num_tokens)
        self.activation = RationalActivation() if activation is None else activation
        self.up: nn.Linear = nn.Linear(bottleneck, d) if share is None else share.up

    @property
    def num_tokens(self) -> int:
        """Number of prompts."""
        return self.pool.weight.shape[1]

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        """Prompts (B, L, D) in the dtype of ``h``; arguments and errors as those of :class:`SelfAttentionPool`."""
        _check_sequence("h", h, self.down.in_features)
        with masks.without_autocast(h):
            wide = h.to(torch.promote_types(masks.accumulation_dtype(h.dtype), self.down.weight.dtype))
            pooled = self.pool(_linear(wide, self.down), mask)
            return _linear(self.activation(pooled), self.up).to(h.dtype)


class StaticPrompts(nn.Module):
    """Learned prompts that do not look at the instruction; the baseline in the place of :class:`PromptGenerator`.

    Args:
        d: width of the model.
        num_tokens: number of prompts.
    """

    def __init__(self, d: int, num_tokens: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tokens, d))
        nn.init.normal_(self.weight, std=_STATIC_STD)

    @property
    def num_tokens(self) -> int:
        """Number of prompts."""
        return self.weight.shape[0]

    def forward(self, h: Tensor, mask: Tensor | None = None) -> Tensor:
        """The prompts, once for every row of ``h``."""
        return self.weight.to(h.dtype).expand(len(h), -1, -1)


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """``layer(x)`` in the dtype of ``x``."""
    return functional.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


def _check_sequence(name: str, h: Tensor, width: int) -> None:
    check_float_tensor(name, h)
    if h.ndim != 3 or h.shape[-1] != width or h.shape[1] == 0:
        bad_value(name, tuple(h.shape), f"of shape (B, N, {width}) with N >= 1")


def _check_mask(mask: Tensor | None, h: Tensor) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype is not torch.bool:
        raise ArgumentTypeError(f"mask must be a bool tensor, got {getattr(mask, 'dtype', type(mask).__name__)}")
    if mask.shape != h.shape[:2]:
        bad_value("mask", tuple(mask.shape), f"of shape {tuple(h.shape[:2])}")
    if not torch.compiler.is_compiling() and not bool(mask.any(-1).all()):
        raise ArgumentValueError("mask must leave at least one position in every row: nothing can be pooled")
