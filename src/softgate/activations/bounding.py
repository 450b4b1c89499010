"""Bounds for the activations of a trained model: measure them, put them in, take the smoothness out again."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from softgate._checks import check_number
from softgate._evaluation import evaluating
from softgate.activations.clipping_relu import MODES, ClippedReLU
from softgate.errors import ArgumentValueError, StateError, bad_type, check_choice

__all__ = ["calibrate_bounds", "protect", "separate_relus", "strip"]

GRANULARITIES = ("layer", "neuron", "hybrid")
_RELUS = (nn.ReLU, nn.ReLU6)
_FUNCTIONS = (functional.relu, functional.relu_, functional.relu6, torch.relu, torch.relu_)
_METHODS = ("relu", "relu_")


class _Tracer(fx.Tracer):
    """Looks into everything but the modules of torch and the bounded activations."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, ClippedReLU) or super().is_leaf_module(m, module_qualified_name)


def _traced(model: nn.Module) -> fx.GraphModule:
    return fx.GraphModule(model, _Tracer().trace(model))


def separate_relus(model: nn.Module) -> fx.GraphModule:
    """A copy of the graph of ``model`` in which every ReLU that is called is a module of its own.

    Functions (``F.relu``, ``torch.relu``, ``x.relu()``) become modules ``relu_1``, ``relu_2``, …, and so does every
    further call of a module that is called twice. The other modules, and all weights, are those of ``model``.

    Args:
        model: a model that ``torch.fx`` can trace.

    Returns:
        The graph as a module.

    Raises:
        StateError: ``torch.fx`` cannot trace the model.

    Example:
        >>> class Net(torch.nn.Module):
        ...     def forward(self, x):
        ...         return torch.relu(x) - torch.nn.functional.relu(-x)
        >>> sorted(name for name, _ in separate_relus(Net()).named_children())
        ['relu_1', 'relu_2']

    Paper: arXiv 2406.06313 bounds every call of a ReLU.
    """
    try:
        graph = _traced(model)
    except Exception as error:  # whatever the model's own code raises at a proxy
        raise StateError(f"torch.fx cannot trace {type(model).__name__}: {error}") from error
    seen: set[str] = set()
    for node in list(graph.graph.nodes):
        module = graph.get_submodule(node.target) if node.op == "call_module" else None
        function = node.op == "call_function" and node.target in _FUNCTIONS
        method = node.op == "call_method" and node.target in _METHODS
        again = isinstance(module, _RELUS) and node.target in seen
        if isinstance(module, _RELUS):
            seen.add(node.target)
        if not (function or method or again):
            continue
        six = node.target is functional.relu6 or isinstance(module, nn.ReLU6)
        name = next(f"relu_{i}" for i in range(1, 10**6) if not hasattr(graph, f"relu_{i}"))
        graph.add_submodule(name, nn.ReLU6() if six else nn.ReLU())
        node.op, node.target, node.args, node.kwargs = "call_module", name, tuple(node.all_input_nodes[:1]), {}
    graph.recompile()
    return graph.train(model.training)


def calibrate_bounds(
    model: nn.Module,
    loader: Iterable[Any],
    granularity: str = "hybrid",
    statistic: str | float = "max",
) -> dict[str, Tensor]:
    """Measure how large the outputs of every ReLU of a model become.

    Args:
        model: its ReLU and ReLU6 modules are measured, in eval mode and without gradients; functions are not seen
            (:func:`separate_relus` makes modules of them).
        loader: batches: tensors, or tuples whose first entry is the model's input.
        granularity: ``"layer"`` gives one bound per module, ``"neuron"`` one per position of its output, ``"hybrid"``
            the latter for the module that is called last and the former for all others.
        statistic: ``"max"``, or a quantile in (0, 1] of the outputs of each batch (over the images of the batch for
            neurons), of which the largest over the batches is taken.

    Returns:
        Name of the module -> bound, () or of the shape of the output without the batch, in the order of execution.

    Raises:
        ArgumentTypeError: ``model`` is no module.
        ArgumentValueError: an unknown granularity or statistic, or an empty loader.
        StateError: there is no ReLU to measure.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2), torch.nn.ReLU())
        >>> {name: tuple(bound.shape) for name, bound in calibrate_bounds(model, [torch.randn(8, 3)]).items()}
        {'1': (), '3': (2,)}

    Paper: arXiv 2406.06313, hybrid bounds; the pass over training images is that of Ranger (2003.13874).
    """
    check_choice("granularity", granularity, GRANULARITIES)
    quantile = 1.0
    if statistic != "max":
        quantile = check_number("statistic", statistic, low=0.0, high=1.0, low_open=True)
    bounds: dict[str, Tensor] = {}
    calls: dict[str, int] = {}

    def measure(name: str, output: Tensor) -> None:
        neurons = granularity != "layer"
        found = _largest(output, quantile, neurons)
        if name in bounds and bounds[name].shape != found.shape:  # images of another size: there are no neurons
            raise ArgumentValueError(f"loader must give one shape: {name} had {tuple(bounds[name].shape)} outputs, now "
                                     f"{tuple(found.shape)}")  # fmt: skip
        bounds[name] = torch.maximum(bounds[name], found) if name in bounds else found
        calls[name] = calls.get(name, 0) + 1

    batches = _run(model, loader, measure)
    twice = [name for name, count in calls.items() if count > batches]
    if twice:
        warnings.warn(
            f"{', '.join(twice)} is called several times in one pass and gets one bound for all; separate_relus splits "
            "it",
            stacklevel=2,
        )
    if granularity == "hybrid":
        last = next(reversed(bounds))
        bounds = {name: bound if name == last else bound.amax() for name, bound in bounds.items()}
    return bounds


def _run(model: nn.Module, loader: Iterable[Any], measure: Any) -> int:
    """Let ``measure(name, output)`` see every ReLU's output; the number of batches."""
    if not isinstance(model, nn.Module):
        bad_type("model", model, "an nn.Module")
    found = {name: m for name, m in model.named_modules() if isinstance(m, _RELUS)}
    if not found:
        raise StateError(
            f"{type(model).__name__} holds no ReLU or ReLU6 as a module; separate_relus makes modules of functions"
        )
    hooks = [
        module.register_forward_hook(lambda _m, _i, output, name=name: measure(name, output.detach()))
        for name, module in found.items()
    ]
    like, batches = next(model.parameters(), None), 0
    try:
        with evaluating(model), torch.no_grad():
            for batch in loader:
                inputs = batch[0] if isinstance(batch, tuple | list) else batch
                model(inputs if like is None else inputs.to(like.device))
                batches += 1
    finally:
        for hook in hooks:
            hook.remove()
    if not batches:
        raise ArgumentValueError("loader must give at least one batch, it gave none")
    return batches


def _largest(output: Tensor, quantile: float, neurons: bool) -> Tensor:
    if not neurons:
        output = output.flatten()[:, None]
    largest = output.amax(0) if quantile == 1.0 else output.float().quantile(quantile, 0).to(output.dtype)
    return largest if neurons else largest[0]


def protect(model: nn.Module, bounds: Mapping[str, Tensor], mode: str = "hyrelu", k: float = 20.0) -> nn.Module:
    """Put :class:`ClippedReLU` in the place of the ReLUs of a model, in place.

    Args:
        model: what :func:`calibrate_bounds` measured, or a copy of it.
        bounds: name of a module -> its bound.
        mode: ``"hyrelu"``, ``"zero"`` or ``"saturate"``.
        k: steepness of ``"hyrelu"``.

    Returns:
        ``model``. ``sum(b.numel() for b in bounds.values())`` numbers were added to its memory.

    Raises:
        ArgumentValueError: an unknown mode, a negative bound, no bounds, or a name that is no ReLU of the model.

    Warns:
        UserWarning: ReLUs of the model that got no bound: modules, and calls of functions where ``torch.fx`` can see.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU())
        >>> protect(model, {"1": torch.tensor(2.0)}, "zero")[1]
        ClippedReLU(bound 2, mode='zero')

    Paper: arXiv 2406.06313.
    """
    check_choice("mode", mode, MODES)
    modules = dict(model.named_modules())
    unknown = [name for name in bounds if not isinstance(modules.get(name), _RELUS)]
    if unknown or not bounds:
        known = ", ".join(name for name, m in modules.items() if isinstance(m, _RELUS)) or "none"
        raise ArgumentValueError(f"bounds must name ReLUs of the model ({known}), got {', '.join(unknown) or 'none'}")
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for owner in modules.values():
        for name, child in owner._modules.items():
            places.setdefault(id(child), []).append((owner, name))
    for name, bound in bounds.items():
        old = modules[name]
        new = ClippedReLU(bound, mode, k).train(old.training)
        for owner, place in places[id(old)]:  # a shared module stays shared
            setattr(owner, place, new)
    left = [name for name, m in model.named_modules() if isinstance(m, _RELUS)] + _function_calls(model)
    if left:
        warnings.warn(f"without a bound stay: {', '.join(left)}", stacklevel=2)
    return model


def _function_calls(model: nn.Module) -> list[str]:
    """ReLUs that are functions, as far as ``torch.fx`` can trace the model."""
    try:
        nodes = _traced(model).graph.nodes
    except Exception:  # a model that cannot be traced cannot be looked into
        return []
    return [
        f"the function {node.name}"
        for node in nodes
        if (node.op == "call_function" and node.target in _FUNCTIONS)
        or (node.op == "call_method" and node.target in _METHODS)
    ]


def strip(model: nn.Module) -> nn.Module:
    """Turn every smooth :class:`ClippedReLU` of a model into the one that clips to 0 at once, in place.

    For inference: no sigmoid is computed, and the values below the bound are those of ReLU.

    Args:
        model: a protected model.

    Returns:
        ``model``.

    Raises:
        StateError: there is nothing to strip.

    Example:
        >>> strip(torch.nn.Sequential(ClippedReLU(2.0)))[0]
        ClippedReLU(bound 2, mode='zero')

    Paper: arXiv 2406.06313; with growing steepness HyReLU tends to it.
    """
    smooth = [m for m in model.modules() if isinstance(m, ClippedReLU) and m.mode == "hyrelu"]
    if not smooth:
        raise StateError(f"{type(model).__name__} holds no ClippedReLU with mode='hyrelu'")
    for module in smooth:
        module.mode = "zero"
    return model
