"""A trained convolutional network made dynamic: every sample runs only the filters that it needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from softgate._checks import check_float_tensor, check_sizes
from softgate.dynamic._compact_run import CompactRun, spread
from softgate.dynamic._conv_patterns import Include, patterns, replace, sources, traced
from softgate.dynamic._gathered import PLANS
from softgate.dynamic.dynamic_conv import MASKING, DynamicConv2d
from softgate.dynamic.exit_costs import counted
from softgate.dynamic.filter_costs import Wiring
from softgate.dynamic.filter_stats import DynamicStats, FilterCounter
from softgate.dynamic.mask_predictor import MaskPredictor
from softgate.errors import StateError, bad_type, bad_value, check_choice

__all__ = ["DynamicNetwork", "prune_dynamic"]

#: Timings of one layer under one plan, of which the fastest counts.
_TRIES = 5


class DynamicNetwork(nn.Module):
    """A network whose convolutions are dynamic, as :func:`softgate.dynamic.prune_dynamic` makes it.

    A call computes all filters and sets those to 0 that are not needed: to train, and for whole batches on a GPU.
    :meth:`infer` skips them. :meth:`dynamic_stats` tells what the masks did in eval mode.

    Args:
        graph: the network, with :class:`softgate.dynamic.DynamicConv2d` in it.
        wiring: where these stand and what they cost.

    Attributes:
        graph: the network.
        plans: name of a dynamic layer -> how :meth:`infer` runs it with ``plan="auto"``; empty until :meth:`tune`.

    Paper: Fire Together Wire Together, arXiv 2110.08232.
    """

    def __init__(self, graph: fx.GraphModule, wiring: Wiring) -> None:
        super().__init__()
        self.graph = graph
        self.wiring = wiring
        self.plans: dict[str, str] = {}
        self.counter = FilterCounter()
        self._runner: CompactRun | None = None  # finding all modules takes longer than running small networks

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_runner": None}

    @property
    def layers(self) -> dict[str, DynamicConv2d]:
        """Name -> dynamic convolution, in the order in which they run."""
        found = {name: self.graph.get_submodule(name) for name in self.wiring.sources}
        return {name: layer for name, layer in found.items() if isinstance(layer, DynamicConv2d)}

    @property
    def predictors(self) -> nn.ModuleList:
        """What is added to the network."""
        return nn.ModuleList(layer.predictor for layer in self.layers.values())

    def train(self, mode: bool = True) -> DynamicNetwork:
        """Set training mode, and begin new statistics."""
        super().train(mode)
        self.counter = FilterCounter()
        return self

    def forward(self, x: Tensor) -> Any:
        """The network's output with unneeded filters at 0; in eval mode the masks are counted."""
        out = self.graph(x)
        if not self.training and len(x):
            self.counter.add(self.layers, self.wiring)
        return out

    def dynamic_stats(self) -> DynamicStats:
        """Figures of all samples since the model was last set to eval (or training) mode; warns of silent layers.

        Raises:
            StateError: no samples in eval mode yet.
        """
        return self.counter.summary(self.wiring)

    @contextmanager
    def masking(self, kind: str) -> Iterator[None]:
        """Let all layers mask by ``"predicted"`` masks, by the ``"target"`` masks, or by ``"none"``, for a while.

        Raises:
            ArgumentValueError: an unknown kind.
        """
        check_choice("kind", kind, MASKING)
        before = {name: layer.masking for name, layer in self.layers.items()}
        for layer in self.layers.values():
            layer.masking = kind
        try:
            yield
        finally:
            for name, layer in self.layers.items():
                layer.masking = before[name]

    @torch.no_grad()
    def infer(self, x: Tensor, plan: str = "auto") -> Tensor:
        """The same as a call in eval mode, sample by sample, each computing only the filters that it needs.

        Args:
            x: (B, C, H, W).
            plan: ``"native"``: needed filters from the channels that are there by the C++ kernel, which gathers
                nothing (``"both"`` for layers that it does not run); ``"both"``: the same, gathering weights;
                ``"rows"``: needed filters from all channels; ``"dense"``: all filters, of which the needed are kept.
                ``"auto"``: what :meth:`tune` found fastest for each layer; the first call tunes on its first sample.

        Returns:
            The network's output, within rounding of a call's.

        Raises:
            ArgumentTypeError: not a tensor.
            ArgumentValueError: an unknown plan.
            StateError: the model is in training mode.
        """
        check_choice("plan", plan, ("auto", "native", *PLANS))
        check_float_tensor("x", x)
        if self.training:
            raise StateError("infer needs eval mode: call model.eval() first")
        if len(x) == 0:
            out: Tensor = self.graph(x)
            return out
        if plan == "auto" and not self.plans:
            self.tune(x[:1])
        plans = self.plans if plan == "auto" else dict.fromkeys(self.wiring.sources, plan)
        if self._runner is None or self._runner.module is not self.graph:
            self._runner = CompactRun(self.graph, plans)
        self._runner.plans = plans
        return torch.cat([spread(self._runner.run(sample)) for sample in x.split(1)])

    @torch.no_grad()
    def tune(self, x: Tensor) -> dict[str, str]:
        """Time the plans of every layer on samples ``x`` and keep the fastest in :attr:`plans`.

        Args:
            x: (B, C, H, W), a few typical samples.

        Returns:
            :attr:`plans`.

        Raises:
            ArgumentValueError: no sample.
            StateError: the model is in training mode.
        """
        if self.training:
            raise StateError("tune needs eval mode: call model.eval() first")
        if len(x) == 0:
            bad_value("x", tuple(x.shape), "at least one sample")
        seconds: dict[str, dict[str, float]] = {name: {} for name in self.wiring.sources}
        for sample in x.split(1):
            _Timed(self.graph, seconds).run(sample)
        self.plans = {name: min(taken, key=lambda plan: taken[plan]) for name, taken in seconds.items()}
        return self.plans


class _Timed(CompactRun):
    """A run that times every plan of every layer on the state that it gets."""

    def __init__(self, graph: fx.GraphModule, seconds: dict[str, dict[str, float]]) -> None:
        super().__init__(graph, dict.fromkeys(seconds, "both"))
        self.seconds = seconds

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A module, timed if it is a dynamic layer."""
        module = self.submodules[target]
        if isinstance(module, DynamicConv2d):
            for plan in module.plans(args[0]):
                taken = []
                for _ in range(_TRIES):
                    start = time.perf_counter()
                    module.compact(args[0], plan)
                    taken.append(time.perf_counter() - start)
                self.seconds[target][plan] = self.seconds[target].get(plan, 0.0) + min(taken)
        return super().call_module(target, args, kwargs)


Head = Mapping[str, Any] | Callable[[int, int], nn.Module] | None


def prune_dynamic(
    model: nn.Module,
    r: float,
    example: Tensor,
    include: Include = "auto",
    head: Head = None,
    *,
    mode: str = "decoupled",
    target: str = "mass",
    min_keep: int = 1,
    block_size: int = 1,
) -> DynamicNetwork:
    """Make the convolutions of a trained network dynamic.

    A convolution is taken together with the batch normalisation and the activation after it: ``conv``, ``bn``, ``act``
    become one layer whose filters are masked after the activation, or before a residual sum. The new predictors know
    nothing: train them with :class:`softgate.dynamic.DynamicTrainer`.

    Args:
        model: a network that ``torch.fx`` can trace; it is copied.
        r: share of the firing to keep (or, with ``target="uniform"``, of the filters to drop).
        example: (B, C, H, W), input of the size that costs are counted for.
        include: ``"auto"``: all convolutions that are followed by batch normalisation or an activation, shortcuts of
            residual blocks (called ``downsample`` or ``shortcut``) left out; names; or a function of name and
            convolution.
        head: options of :class:`softgate.dynamic.MaskPredictor`, or a function from channels and filters to a module.
        mode: see :class:`softgate.dynamic.DynamicConv2d`, as are ``target``, ``min_keep`` and ``block_size``.
        target: of the predictors.
        min_keep: least filters of a target.
        block_size: filters switched together.

    Returns:
        :class:`softgate.dynamic.DynamicNetwork`, in the mode of ``model``.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an option out of range, no convolution that fits, or a model that cannot be traced.

    Example:
        >>> net = nn.Sequential(
        ...     nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(),
        ...     nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
        ... )
        >>> model = prune_dynamic(net, r=0.9, example=torch.zeros(1, 3, 16, 16)).eval()
        >>> list(model.layers)
        ['0', '3']
        >>> x = torch.randn(2, 3, 16, 16)
        >>> bool(torch.allclose(model(x), model.infer(x), atol=1e-5))
        True

    Paper: Fire Together Wire Together, arXiv 2110.08232.
    """
    if not isinstance(model, nn.Module):
        bad_type("model", model, "a torch.nn.Module")
    check_float_tensor("example", example)
    if example.ndim != 4 or len(example) == 0:
        bad_value("example", tuple(example.shape), "of shape (B, C, H, W) with at least one sample")
    check_sizes(block_size=block_size)
    options: dict[str, Any] = {
        "mode": mode, "r": r, "target": target, "min_keep": min_keep, "block_size": block_size,
    }  # fmt: skip

    def make(conv: nn.Conv2d, bn: nn.Module | None, act: nn.Module | None) -> DynamicConv2d:
        predictor = _predictor(head, conv.in_channels, max(1, conv.out_channels // block_size))
        predictor.to(device=conv.weight.device, dtype=conv.weight.dtype)
        return DynamicConv2d(conv, bn, act, predictor, **options)

    graph = traced(model)
    names = replace(graph, patterns(graph, include), make)
    return DynamicNetwork(graph, _wired(model, graph, names, example)).train(model.training)


def _predictor(head: Any, c_in: int, c_out: int) -> nn.Module:
    if head is None or isinstance(head, Mapping):
        return MaskPredictor(c_in, c_out, **(head or {}))
    if not callable(head):
        bad_type("head", head, "a mapping of options, or a function of channels and filters")
    found: nn.Module = head(c_in, c_out)
    return found


@torch.no_grad()
def _wired(model: nn.Module, graph: fx.GraphModule, names: list[str], example: Tensor) -> Wiring:
    """Run the example once through both networks, in eval mode, for sizes and costs."""
    layers = {name: graph.get_submodule(name) for name in names}
    places: dict[str, int] = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, out, name=name: places.update({name: out.shape[2] * out.shape[3]}))
        for name, layer in layers.items()
    ]
    modes = {module: module.training for part in (model, graph) for module in part.modules()}
    try:
        graph.eval()(example[:1])
        _, total = counted(lambda: model.eval()(example[:1]))
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    found = {name: layer for name, layer in layers.items() if isinstance(layer, DynamicConv2d)}
    return Wiring(
        {name: layer.conv for name, layer in found.items()},
        sources(graph, names),
        places,
        {name: int(getattr(layer.predictor, "multiply_adds", 0)) for name, layer in found.items()},
        total,
    )
