"""A classifier with exits: heads and gates at the stages of a network, and inference that stops where a gate opens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from softgate.dynamic import _adapters
from softgate.dynamic._inference import run_compact, run_sequential
from softgate.dynamic._pooling import MeanPool
from softgate.dynamic._state import count_rows, first
from softgate.dynamic.exit_costs import ExitCosts, mean_cost, measure_costs
from softgate.dynamic.exit_losses import check_costs
from softgate.dynamic.exit_rule import exit_level, exit_probabilities
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError, bad_type, check_choice

__all__ = ["EarlyExit", "ExitFeatures", "ExitOutput"]

MODES = ("compact", "masked", "sequential")
_NORMS = (nn.modules.batchnorm._BatchNorm,)


@dataclass(frozen=True)
class ExitOutput:
    """What all exits say about N samples.

    Attributes:
        logits: (L + 1, N, C), class logits of every exit, the final head last.
        gate_logits: (N, L), logits of the gates.
        P: (N, L + 1), exit probabilities, :func:`softgate.dynamic.exit_probabilities`.
        level: (N,) int64, where each sample leaves, :func:`softgate.dynamic.exit_level`.
        y_logits: (N, C), class logits at that exit.
        costs: (L + 1,), relative costs of the exits.

    Paper: arXiv 2310.09163.
    """

    logits: Tensor
    gate_logits: Tensor
    P: Tensor
    level: Tensor
    y_logits: Tensor
    costs: Tensor

    @property
    def mean_cost(self) -> float:
        """Mean relative cost of the samples, each leaving at its ``level``."""
        return mean_cost(self.costs, self.level)

    def at(self, level: Tensor) -> Tensor:
        """Class logits (N, C) of samples that leave at ``level`` (N,) instead."""
        return self.logits[level, torch.arange(len(level), device=level.device)]


class ExitFeatures(NamedTuple):
    """What heads and gates need of a frozen backbone, computed once.

    Attributes:
        pooled: L tensors (N, D_l), inputs of the heads.
        final_logits: (N, C), what the final head says.

    Paper: arXiv 2310.09163, training on a frozen backbone.
    """

    pooled: tuple[Tensor, ...]
    final_logits: Tensor


class EarlyExit(nn.Module):
    """A network in L + 1 stages, with a classifier and a gate after each stage but the last.

    The backbone (stages, pools and final head) is frozen and stays in eval mode; heads and gates are trained by
    :class:`softgate.dynamic.JEITrainer` on its features. After that :meth:`infer` runs each sample only as deep as its
    gates want. Class methods put exits into networks of timm, torchvision and transformers, and into ``nn.Sequential``.

    Args:
        stages: L + 1 modules, each fed with what the one before returned: a batch-first tensor, or a tuple, list or
            dict of such.
        heads: L modules, pooled features (N, D_l) -> class logits (N, C).
        gates: L modules, class logits (N, C) -> gate logits (N,), such as :class:`softgate.dynamic.UncertaintyGate`.
        final_head: what the last stage returned (or, pooled, where ``pools`` has an entry for it) -> logits (N, C).
        pools: one module for all exits and the final head, L modules for the exits, or L + 1; None takes the mean over
            all positions of (N, D, H, W) and (N, T, D), and gives the final head its state as it is.
        costs: L + 1 relative costs of leaving at each exit, increasing to 1; ``"measure"`` counts multiply-adds at the
            first call (:func:`softgate.dynamic.measure_costs`); None takes every stage for equally expensive.
        freeze: whether the backbone is frozen. If not, nothing is cached and BatchNorm and Dropout follow ``train()``.

    Shapes: (N, ...) -> :class:`ExitOutput`.

    Raises:
        ArgumentTypeError: something is not a module.
        ArgumentValueError: numbers of stages, heads, gates, pools or costs that do not fit, costs that do not rise to
            1; at a call, a stage whose output is not batch-first.
        StateError: :meth:`infer` in training mode.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> model = EarlyExit.from_sequential(net, cuts=[2], example=torch.zeros(1, 8)).eval()
        >>> logits, level = model.infer(torch.randn(5, 8))
        >>> logits.shape, level.shape
        (torch.Size([5, 3]), torch.Size([5]))

    Paper: Jointly-Learned Exit and Inference for a Dynamic Neural Network, arXiv 2310.09163.
    """

    costs: Tensor

    def __init__(
        self,
        stages: Sequence[nn.Module],
        heads: Sequence[nn.Module],
        gates: Sequence[nn.Module],
        final_head: nn.Module,
        pools: nn.Module | Sequence[nn.Module] | None = None,
        costs: Sequence[float] | Tensor | str | None = None,
        *,
        freeze: bool = True,
    ) -> None:
        super().__init__()
        self.stages, self.heads, self.gates = (
            _modules(name, value) for name, value in (("stages", stages), ("heads", heads), ("gates", gates))
        )
        exits = len(self.stages) - 1
        if exits < 1:
            raise ArgumentValueError(f"stages must be at least two modules, got {len(self.stages)}")
        for name, found in (("heads", self.heads), ("gates", self.gates)):
            if len(found) != exits:
                raise ArgumentValueError(f"{name} must be one fewer than the {exits + 1} stages, got {len(found)}")
        if not isinstance(final_head, nn.Module):
            bad_type("final_head", final_head, "a torch.nn.Module")
        self.final_head = final_head
        self.pools = _pools(pools, exits)
        self.frozen = freeze
        self.measured: ExitCosts | None = None
        self._measure = isinstance(costs, str)
        if isinstance(costs, str):
            check_choice("costs", costs, ("measure",))
        equal = (torch.arange(exits + 1, dtype=torch.float64) + 1.0) / (exits + 1)
        given = equal if costs is None or isinstance(costs, str) else check_costs(costs, exits + 1)
        self.register_buffer("costs", given.double().clone())
        if freeze:
            for part in (self.stages, self.pools, self.final_head):
                part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> EarlyExit:
        """Set training mode; a frozen backbone stays in eval mode."""
        super().train(mode)
        if self.frozen:
            for part in (self.stages, self.pools, self.final_head):
                part.train(False)
        return self

    def set_costs(self, costs: Sequence[float] | Tensor, measured: ExitCosts | None = None) -> None:
        """Replace the relative costs.

        Args:
            costs: L + 1 numbers, increasing to 1.
            measured: the count they come from, which lets :meth:`infer` weigh a copy against the work it saves.

        Raises:
            ArgumentValueError: another number of costs, or not increasing to 1.
        """
        self.costs.copy_(check_costs(costs, len(self.stages)))
        self.measured, self._measure = measured, False

    def classify(self, state: Any, place: int) -> Tensor:
        """Class logits (N, C) at exit ``place``, for what stage ``place`` returned."""
        logits: Tensor
        if place == len(self.heads):
            logits = self.final_head(self.pools[-1](state))
        else:
            logits = self.heads[place](self.pools[min(place, len(self.pools) - 1)](state))
        return logits

    def stage(self, state: Any, place: int, rows: int) -> Any:
        """What stage ``place`` makes of ``state``, held to be batch-first."""
        state = self.stages[place](state)
        if count_rows(state, f"the output of stages[{place}]") != rows:
            found = count_rows(state)
            raise ArgumentValueError(
                f"the output of stages[{place}] must be batch-first: {rows} samples went in, the first axis has {found}"
            )
        return state

    def features(self, x: Any) -> ExitFeatures:
        """Run the backbone on ``x``; what heads and gates need, without a graph where the backbone is frozen."""
        rows = self._start(x)
        pooled = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            state = x
            for place in range(len(self.heads)):
                state = self.stage(state, place, rows)
                pooled.append(self.pools[min(place, len(self.pools) - 1)](state))
            final = self.classify(self.stage(state, len(self.heads), rows), len(self.heads))
        return ExitFeatures(tuple(pooled), final)

    def exits(self, features: ExitFeatures) -> ExitOutput:
        """What the exits say, given :meth:`features`.

        Raises:
            StateError: the costs are still to be measured, and these features came from another model.
        """
        if self._measure:
            raise StateError("the costs are not known yet: call measure_costs(model, example), or the model once")
        learned = [head(z) for head, z in zip(self.heads, features.pooled, strict=True)]
        dtype = learned[0].dtype
        logits = torch.stack([*learned, features.final_logits.to(dtype)])
        gate_logits = torch.stack([gate(z) for gate, z in zip(self.gates, learned, strict=True)], -1)
        level = exit_level(gate_logits)
        y_logits = logits[level, torch.arange(len(level), device=level.device)]
        return ExitOutput(logits, gate_logits, exit_probabilities(gate_logits), level, y_logits, self.costs)

    def forward(self, x: Any) -> ExitOutput:
        """All exits of all samples; :meth:`infer` computes only those that are needed."""
        return self.exits(self.features(x))

    @torch.no_grad()
    def infer(
        self, x: Any, mode: str = "compact", budget: float | None = None, min_compact: float = 0.125
    ) -> tuple[Tensor, Tensor]:
        """Class logits and exit of every sample, running each only as deep as its gates want.

        All modes give the same to rounding; later stages are not called once all samples have left.

        Args:
            x: input, batch-first.
            mode: ``"compact"`` drops samples that have left from the batch where that pays: at least ``min_compact`` of
                the rows are done, the batch is large enough (16 rows, 32 on a GPU), and the work saved exceeds the
                copy, as far as it was measured; else it goes on with all rows. ``"masked"`` never drops any.
                ``"sequential"`` runs sample by sample: right for a batch of one.
            budget: largest relative cost of a sample; those that are still in leave at the last exit within it. None
                lets the gates alone decide.
            min_compact: share of finished rows from which they are dropped, in (0, 1].

        Returns:
            logits (N, C), and level (N,) int64 as of :func:`softgate.dynamic.exit_level`.

        Raises:
            ArgumentTypeError: an option has the wrong type.
            ArgumentValueError: an unknown mode, or an option out of range.
            StateError: the model is in training mode, or a BatchNorm inside it is: a smaller batch would change it.
        """
        check_choice("mode", mode, MODES)
        self._check_eval()
        self._start(x)
        if mode == "sequential":
            return run_sequential(self, x, budget)
        return run_compact(self, x, budget, min_compact if mode == "compact" else None)

    def _check_eval(self) -> None:
        if self.training:
            raise StateError("infer needs eval mode: call model.eval() first")
        for name, module in self.named_modules():
            if isinstance(module, _NORMS) and module.training:
                raise StateError(f"infer needs eval mode, and {name} (batch normalisation) is in training mode")

    def _start(self, x: Any) -> int:
        rows = count_rows(x)
        if self._measure and rows:
            measure_costs(self, first(x))
        return rows

    @classmethod
    def from_sequential(cls, seq: nn.Sequential, cuts: Sequence[int], example: Any = None) -> EarlyExit:
        """Exits inside an ``nn.Sequential``.

        Args:
            seq: the classifier; its last linear layer tells the number of classes.
            cuts: an exit stands before each of these places: ``seq[:cuts[0]]`` is the first stage.
            example: an input that tells the widths of the heads; without it they are found at the first call.

        Raises:
            ArgumentTypeError: not an ``nn.Sequential``.
            ArgumentValueError: cuts that do not increase inside ``seq``, or no linear layer.
        """
        model = cls(**_adapters.sequential_parts(seq, cuts, example), costs="measure")
        if example is not None:
            measure_costs(model, first(example))
        return model

    @classmethod
    def from_timm_vit(cls, model: nn.Module, every: int = 1) -> EarlyExit:
        """Exits after every ``every``-th block of a ``VisionTransformer`` of timm, through its final norm and pooling.

        Raises:
            ArgumentTypeError: not such a model.
            ArgumentValueError: ``every`` leaves no exit.
        """
        return cls(**_adapters.timm_vit_parts(model, every), costs="measure")

    @classmethod
    def from_torchvision_resnet(cls, model: nn.Module, every: int | None = None) -> EarlyExit:
        """Exits in a ``ResNet`` of torchvision: after each of its first three layers, or every ``every``-th block.

        Raises:
            ArgumentTypeError: not such a model.
            ArgumentValueError: ``every`` leaves no exit.
        """
        return cls(**_adapters.torchvision_resnet_parts(model, every), costs="measure")

    @classmethod
    def from_transformers_encoder(cls, model: nn.Module, every: int = 1) -> EarlyExit:
        """Exits after every ``every``-th layer of a classifier of transformers.

        Known are BERT, RoBERTa, ELECTRA, DistilBERT and ViT. Inputs are ids or pixels, or a dict with ``input_ids`` or
        ``pixel_values``, ``attention_mask`` and so on.

        Raises:
            ArgumentTypeError: not such a model.
            ArgumentValueError: ``every`` leaves no exit.
        """
        return cls(**_adapters.transformers_parts(model, every), costs="measure")


def _modules(name: str, value: Any) -> nn.ModuleList:
    if isinstance(value, nn.Module) and not isinstance(value, nn.ModuleList | nn.Sequential):
        bad_type(name, value, "a sequence of modules")
    found = list(value)
    wrong = [type(item).__name__ for item in found if not isinstance(item, nn.Module)]
    if wrong:
        raise ArgumentTypeError(f"{name} must be modules, got {', '.join(wrong)}")
    return nn.ModuleList(found)


def _pools(pools: Any, exits: int) -> nn.ModuleList:
    """One shared pool, or one an exit and one for the final head (which gets its state as it is by default)."""
    if pools is None:
        return nn.ModuleList([*(MeanPool() for _ in range(exits)), nn.Identity()])
    if isinstance(pools, nn.Module) and not isinstance(pools, nn.ModuleList):
        return nn.ModuleList([pools])
    found = _modules("pools", pools)
    if len(found) not in (exits, exits + 1):
        raise ArgumentValueError(f"pools must be one module, {exits} or {exits + 1}, got {len(found)}")
    return found if len(found) == exits + 1 else nn.ModuleList([*found, nn.Identity()])
