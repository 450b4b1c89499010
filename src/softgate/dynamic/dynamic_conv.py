"""A convolution that predicts, for every sample, which of its filters are needed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from softgate._checks import check_float_tensor, check_number, check_sizes
from softgate.dynamic import _native_filters
from softgate.dynamic._gathered import PLANS, Compact, Folded, filled_up, fold, no_filters, run_filters, source_tensors
from softgate.dynamic.filter_masks import check_mass, check_min_keep, filter_scores, topk_mass_mask, uniform_mask
from softgate.dynamic.mask_predictor import MaskPredictor, check_predictor, kept
from softgate.errors import ArgumentValueError, StateError, bad_type, bad_value, check_choice

__all__ = ["DynamicConv2d", "FilterMasks"]

MODES = ("decoupled", "joint")
TARGETS = ("mass", "uniform")
MASKING = ("predicted", "target", "none")


class FilterMasks(NamedTuple):
    """What a dynamic convolution made of its last batch.

    Attributes:
        logits: (B, C), of the predictor, with its graph; C groups of filters where these are predicted together.
        target: (B, C) bool, the filters that fired most.
        mask: (B, filters) bool, the filters that passed.
        scores: (B, C), how strongly each fired.

    Paper: arXiv 2110.08232.
    """

    logits: Tensor
    target: Tensor
    mask: Tensor
    scores: Tensor


class DynamicConv2d(nn.Module):
    """Convolution, normalisation and activation whose filters are switched on and off sample by sample.

    A call computes all filters and multiplies those that the predictor does not want by 0: what trains, and what whole
    batches on a GPU run fastest. :meth:`infer` computes only the others. Each call leaves :attr:`last` behind, from
    which :class:`softgate.dynamic.FTWTLoss` teaches the predictor.

    Args:
        conv: the convolution; its groups are 1 or as many as its channels.
        bn: batch normalisation after it.
        act: activation after that.
        predictor: input -> logits (B, filters / block_size); a :class:`softgate.dynamic.MaskPredictor` by default.
        mode: ``"decoupled"``: the predictor's loss stops at its input; ``"joint"``: it trains the layers before too.
        r: share of the firing that targets keep (``target="mass"``), or of the filters that they drop
            (``target="uniform"``).
        target: ``"mass"``, :func:`softgate.dynamic.topk_mass_mask`, or ``"uniform"``,
            :func:`softgate.dynamic.uniform_mask`.
        min_keep: filters (or blocks) that a target keeps in any case, with ``target="mass"``.
        block_size: so many neighbouring filters are switched together.

    Shapes: (B, C_in, H, W) -> (B, C_out, H', W').

    Attributes:
        masking: ``"predicted"``; ``"target"`` masks by the targets (an oracle); ``"none"`` lets all filters pass.
        last: :class:`FilterMasks` of the last call, None before.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an option out of range, groups in between, sizes that do not fit; at a call, an input of
            another shape.
        StateError: :meth:`infer` in training mode.

    Example:
        >>> layer = DynamicConv2d(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), r=0.9).eval()
        >>> x = torch.randn(2, 16, 8, 8)
        >>> bool(torch.allclose(layer(x), layer.infer(x), atol=1e-5))
        True

    Paper: Fire Together Wire Together, arXiv 2110.08232.
    """

    last: FilterMasks | None

    def __init__(
        self,
        conv: nn.Conv2d,
        bn: nn.Module | None = None,
        act: nn.Module | None = None,
        predictor: nn.Module | None = None,
        mode: str = "decoupled",
        r: float = 0.9,
        *,
        target: str = "mass",
        min_keep: int = 1,
        block_size: int = 1,
    ) -> None:
        super().__init__()
        _check_conv(conv, bn)
        check_choice("mode", mode, MODES)
        check_choice("target", target, TARGETS)
        check_sizes(block_size=block_size)
        if conv.out_channels % block_size:
            bad_value("block_size", block_size, f"a divisor of the number of filters, {conv.out_channels}")
        self.r = check_mass(r) if target == "mass" else check_number("r", r, low=0.0, high=1.0, high_open=True)
        self.min_keep = check_min_keep(min_keep)
        self.mode, self.target, self.block_size = mode, target, block_size
        self.conv, self.bn, self.act = conv, bn, act
        groups = conv.out_channels // block_size
        self.predictor = MaskPredictor(conv.in_channels, groups) if predictor is None else predictor
        check_predictor(self.predictor, conv.in_channels, groups)
        if predictor is None:
            self.predictor.to(device=conv.weight.device, dtype=conv.weight.dtype)
        self.masking = "predicted"
        self.last = None
        self._folded: tuple[tuple[Any, ...], Folded] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # the last batch is no part of the layer, and its graph cannot be copied
        return {**self.__dict__, "last": None, "_folded": None}

    def dense(self, x: Tensor) -> Tensor:
        """The output of all filters."""
        y: Tensor = self.conv(x)
        for part in (self.bn, self.act):
            y = y if part is None else part(y)
        return y

    def targets(self, scores: Tensor) -> Tensor:
        """The (B, C) bool mask that the predictor should find, for scores (B, C)."""
        if self.target == "uniform":
            return uniform_mask(scores, self.r)
        return topk_mass_mask(scores, self.r, self.min_keep)

    def scores(self, y: Tensor) -> Tensor:
        """How strongly each filter (or block) fired, (B, C), for the output of all filters."""
        return filter_scores(y).unflatten(1, (-1, self.block_size)).amax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """All filters, those that are not needed set to 0."""
        self._check_input(x)
        logits = self.predictor(x.detach() if self.mode == "decoupled" else x)
        y = self.dense(x)
        scores = self.scores(y)
        target = self.targets(scores)
        if self.masking == "none":
            passing = torch.ones_like(target)
        else:
            passing = target if self.masking == "target" else kept(logits)
        mask = self._filters(passing)
        self.last = FilterMasks(logits, target, mask, scores)
        # not a product: what is dropped is 0 even where it is not finite
        return y if self.masking == "none" else torch.where(mask[:, :, None, None], y, 0.0)

    def _filters(self, blocks: Tensor) -> Tensor:
        return blocks if self.block_size == 1 else blocks.repeat_interleave(self.block_size, -1)

    @torch.no_grad()
    def infer(self, x: Tensor, plan: str = "auto") -> Tensor:
        """The same as a call, computing for every sample only the filters it needs.

        Args:
            x: (B, C_in, H, W).
            plan: ``"native"``: the C++ kernel, which reads the weights as they lie; ``"both"`` gathers the weights of
                filters and of channels, where some are known to be 0; ``"rows"`` those of filters only; ``"dense"``
                computes all filters; ``"auto"``: ``"native"`` where that runs, else ``"both"``.

        Returns:
            (B, C_out, H', W').

        Raises:
            StateError: the layer is in training mode, or ``plan="native"`` cannot run it.
        """
        check_choice("plan", plan, ("auto", "native", *PLANS))
        self._check_input(x)
        if self.training:
            raise StateError("infer needs eval mode: call eval() first")
        if len(x) == 0:
            return self.dense(x)
        if plan == "auto":
            plan = self.plans(x)[0]
        return torch.cat([self.compact(sample, plan).spread() for sample in x.split(1)])

    def plans(self, state: Tensor | Compact) -> tuple[str, ...]:
        """The plans that can run this layer on such a state."""
        return PLANS if _native_filters.refuses(self.conv, state) else ("native", *PLANS)

    def compact(self, state: Tensor | Compact, plan: str) -> Compact:
        """The channels that pass of one sample, of which only some channels may be given."""
        folded = self.folded()
        index = self.filters(state)
        if len(index) == 0:
            return no_filters(self.conv, state)
        if plan == "native":
            reason = _native_filters.refuses(self.conv, state)
            if reason:
                raise StateError(f"plan 'native' cannot run this layer: {reason}")
            found = _native_filters.run(self.conv, folded, state, index)
        else:
            if folded.rounds and plan != "dense" and self.conv.groups == 1:
                index = filled_up(index, self.conv.out_channels)
            found = run_filters(self.conv, folded, state, index, plan)
        return found if self.act is None else found._replace(x=self.act(found.x))

    def filters(self, state: Tensor | Compact) -> Tensor:
        """Which filters one sample needs, (k,) int64."""
        if self.masking != "predicted":
            raise StateError(f"only predicted masks can be inferred, masking is {self.masking!r}")
        head = self.predictor
        if not isinstance(state, Compact):
            logits = head(state)
        elif isinstance(head, MaskPredictor) and head.side == 1:  # a channel of zeros pools to 0
            logits = head.of_pooled(state.spread_vector(head.pooled(state.x)))
        else:
            logits = head(state.spread())
        return self._filters(kept(logits))[0].nonzero().squeeze(1)

    def folded(self) -> Folded:
        """Weights with normalisation folded in, made again whenever one of them changed."""
        tensors = source_tensors(self.conv, self.bn)
        state = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
        if self._folded is None or self._folded[0] != state:
            self._folded = (state, fold(self.conv, self.bn, self.act))
        return self._folded[1]

    def _check_input(self, x: Any) -> None:
        check_float_tensor("x", x)
        if x.ndim != 4 or x.shape[1] != self.conv.in_channels:
            bad_value("x", tuple(x.shape), f"of shape (B, {self.conv.in_channels}, H, W)")

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        return f"mode={self.mode!r}, r={self.r}, target={self.target!r}, block_size={self.block_size}"


def _check_conv(conv: Any, bn: Any) -> None:
    """Raise unless ``conv`` can be run filter by filter, and ``bn`` fits it."""
    if not isinstance(conv, nn.Conv2d):
        bad_type("conv", conv, "a torch.nn.Conv2d")
    if conv.groups not in (1, conv.in_channels) or (conv.groups > 1 and conv.out_channels != conv.in_channels):
        bad_value("conv.groups", conv.groups, f"1, or {conv.in_channels} with as many filters (depthwise)")
    if conv.padding_mode != "zeros":
        bad_value("conv.padding_mode", conv.padding_mode, "'zeros'")
    if bn is None:
        return
    if not isinstance(bn, nn.BatchNorm2d):
        bad_type("bn", bn, "a torch.nn.BatchNorm2d")
    if bn.num_features != conv.out_channels:
        bad_value("bn.num_features", bn.num_features, f"the number of filters, {conv.out_channels}")
    if bn.running_mean is None:
        raise ArgumentValueError("bn must keep running statistics, without which a sample depends on its batch")
