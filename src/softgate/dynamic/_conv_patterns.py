"""Finding convolutions with their normalisation and activation in a network, and making them dynamic."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn import functional as F

from softgate.dynamic.dynamic_conv import DynamicConv2d
from softgate.errors import ArgumentValueError, bad_type, bad_value

#: Activations that are taken into the layer.
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardtanh,
)  # fmt: skip
#: Modules that leave every channel to itself, and a channel of zeros as it is.
CHANNELWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Identity, nn.Dropout,
    nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
_RELUS: tuple[Any, ...] = (F.relu, torch.relu, "relu", "relu_")
CHANNELWISE_FUNCTIONS: tuple[Any, ...] = (
    *_RELUS, F.relu6, F.silu, F.gelu, F.hardswish, F.dropout, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d,
    F.adaptive_max_pool2d,
)  # fmt: skip
ADDITIONS: tuple[Any, ...] = (operator.add, operator.iadd, torch.add)
#: Parts of names that mark the convolution of a shortcut, which the paper leaves as it is.
_SHORTCUTS = frozenset({"downsample", "shortcut"})

Include = str | Sequence[str] | Callable[[str, nn.Conv2d], bool]


class Found(NamedTuple):
    """A convolution and what follows it, as nodes of a graph."""

    conv: fx.Node
    bn: fx.Node | None
    act: fx.Node | None


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        known = isinstance(module, nn.Conv2d | nn.modules.batchnorm._BatchNorm)
        return known or super().is_leaf_module(module, name)


def traced(model: nn.Module) -> fx.GraphModule:
    """A copy of ``model`` as a graph."""
    copied = copy.deepcopy(model)
    try:
        graph = _Tracer().trace(copied)
    except Exception as error:  # whatever the model's code raises when it meets a symbol in place of a tensor
        raise ArgumentValueError(
            f"model must be traceable by torch.fx, {type(model).__name__} is not: {error}"
        ) from error
    return fx.GraphModule(copied, graph, type(model).__name__)


def module_of(graph: fx.GraphModule, node: fx.Node | None) -> nn.Module | None:
    """The module that ``node`` calls, if it calls one."""
    if node is None or node.op != "call_module":
        return None
    return graph.get_submodule(str(node.target))


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_activation(graph: fx.GraphModule, node: fx.Node | None) -> bool:
    if node is None:
        return False
    if node.op in ("call_function", "call_method"):
        return node.target in _RELUS
    return isinstance(module_of(graph, node), ACTIVATIONS)


def _is_norm(module: nn.Module | None) -> bool:
    if not isinstance(module, nn.BatchNorm2d) or module.running_mean is None:
        return False
    return isinstance(getattr(module, "drop", nn.Identity()), nn.Identity)


def _fits(conv: nn.Module | None) -> bool:
    """Whether a layer can be made of it; a subclass may pad in a way of its own."""
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros":
        return False
    return conv.groups == 1 or conv.groups == conv.in_channels == conv.out_channels


def patterns(graph: fx.GraphModule, include: Include) -> list[Found]:
    """The convolutions of ``graph`` that ``include`` wants."""
    calls = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    found = []
    for node in graph.graph.nodes:
        conv = module_of(graph, node)
        if not _fits(conv) or calls.count(node.target) > 1:
            continue
        after = _only_user(node)
        bn = after if _is_norm(module_of(graph, after)) else None
        after = _only_user(bn) if bn is not None else after
        fused = bn is not None and hasattr(module_of(graph, bn), "act")
        act = after if not fused and _is_activation(graph, after) else None
        assert isinstance(conv, nn.Conv2d)
        if _wanted(include, str(node.target), conv, followed=bn is not None or act is not None):
            found.append(Found(node, bn, act))
    if isinstance(include, Sequence) and not isinstance(include, str):
        missing = sorted(set(include) - {str(item.conv.target) for item in found})
        if missing:
            bad_value("include", missing, "names of convolutions that stand once in the model and fit the pattern")
    if not found:
        raise ArgumentValueError("model must hold a convolution that can be switched filter by filter, found none")
    return found


def _wanted(include: Any, name: str, conv: nn.Conv2d, *, followed: bool) -> bool:
    if callable(include):
        return bool(include(name, conv))
    if isinstance(include, str):
        if include != "auto":
            bad_value("include", include, "'auto', a list of names, or a function of name and convolution")
        return followed and not _SHORTCUTS & set(name.split("."))
    if not isinstance(include, Sequence):
        bad_type("include", include, "'auto', a list of names, or a function of name and convolution")
    return name in include


def replace(graph: fx.GraphModule, found: Sequence[Found], make: Callable[..., DynamicConv2d]) -> list[str]:
    """Put dynamic layers in place of ``found``, in the order of the graph; returns their names."""
    names = []
    for item in found:
        conv, bn = module_of(graph, item.conv), module_of(graph, item.bn)
        act = _activation(graph, item.act)
        if bn is not None and hasattr(bn, "act"):
            bn, act = _split(bn)
        name = str(item.conv.target)
        graph.add_submodule(name, make(conv, bn, act))
        names.append(name)
        for node in (item.bn, item.act):
            if node is not None:
                node.replace_all_uses_with(item.conv)
                graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return names


def _activation(graph: fx.GraphModule, node: fx.Node | None) -> nn.Module | None:
    if node is None:
        return None
    found = module_of(graph, node)
    return nn.ReLU() if found is None else copy.deepcopy(found)


def _split(bn: Any) -> tuple[nn.BatchNorm2d, nn.Module | None]:
    """Normalisation and activation of a module of timm that is both."""
    plain = nn.BatchNorm2d(bn.num_features, bn.eps, bn.momentum, affine=bn.affine)
    plain.weight, plain.bias = bn.weight, bn.bias
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        setattr(plain, name, getattr(bn, name))
    plain.train(bn.training)
    return plain, None if isinstance(bn.act, nn.Identity) else bn.act


def sources(graph: fx.GraphModule, names: Sequence[str]) -> dict[str, str | None]:
    """Name of a dynamic layer -> the one whose channels it reads unchanged, None where others may be there too."""
    return {str(node.target): _source(graph, node.args[0], names) for node in graph.graph.nodes if node.target in names}


def _source(graph: fx.GraphModule, node: Any, names: Sequence[str]) -> str | None:
    while isinstance(node, fx.Node):
        if node.op == "call_module" and node.target in names:
            return str(node.target)
        channelwise = isinstance(module_of(graph, node), CHANNELWISE)
        if not channelwise and not (node.op.startswith("call_") and node.target in CHANNELWISE_FUNCTIONS):
            return None
        node = node.args[0]
    return None
