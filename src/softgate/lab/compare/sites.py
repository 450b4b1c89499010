"""The places in a network whose methods can be compared, and the methods that each of them knows."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn import functional as F

from softgate.errors import ArgumentValueError
from softgate.lab.compare.dataset import Kind
from softgate.lab.compare.networks import Parts, patches_per_side
from softgate.lab.compare.scores import Loss, registered_losses
from softgate.lab.compare.sizes import Size
from softgate.lab.compare.tasks import Shape
from softgate.lab.compare.variants import Variant
from softgate.routing.gates import Gate
from softgate.swapping.activations import activation_builder, activation_names
from softgate.swapping.attention_methods import (
    attention_names,
    choose_attention,
    choose_normalizer,
    normalizer_methods,
)

__all__ = ["SITES", "Method", "Site", "check_name", "resolve"]


@dataclass(frozen=True)
class Method:
    """A variant as code.

    Attributes:
        parts: of its network.
        common: of the network whose start all variants share.
        loss: what it is trained with.
    """

    parts: Parts
    common: Parts
    loss: Loss


@dataclass(frozen=True)
class Site:
    """One place in a network.

    Attributes:
        name: as on the command line.
        kinds: of the data that its methods can be compared on.
        names: the methods it knows.
        resolve: a variant as code, for the shape of the data, the size and the number of updates.
    """

    name: str
    kinds: tuple[Kind, ...]
    names: Callable[[], list[str]]
    resolve: Callable[[Variant, Shape, Size, int], Method]


def check_name(site: str, variant: Variant) -> None:
    """Raise, with the known names, unless ``site`` knows the method."""
    known = SITES[site].names()
    if variant.name not in known:
        raise ArgumentValueError(f"--variants: {variant.name!r} is no method of {site}; known are {', '.join(known)}")


def resolve(site: str, variant: Variant, shape: Shape, size: Size, steps: int) -> Method:
    """``variant`` of ``site`` as code.

    Raises:
        ArgumentValueError: a name that the site does not know, or options that its method refuses.
    """
    check_name(site, variant)
    return SITES[site].resolve(variant, shape, size, steps)


_CROSS_ENTROPY = Loss(F.cross_entropy, F.cross_entropy)


def _attention(variant: Variant, shape: Shape, size: Size, steps: int) -> Method:
    if variant.name == "gated":
        parts = Parts("gated", variant.options)
    elif variant.name in attention_names():
        choice = choose_attention(variant.name, variant.options)
        length = shape.inputs[0] if shape.kind == "text" else patches_per_side(shape.inputs[1], size) ** 2
        parts = Parts(choice.function, choice.with_length(length))
    else:
        choice = choose_normalizer(variant.name, variant.options)
        parts = Parts(choice.function, dict(choice.options))
    return Method(parts, Parts(), _CROSS_ENTROPY)


def _loss(variant: Variant, shape: Shape, size: Size, steps: int) -> Method:
    return Method(Parts(), Parts(), registered_losses()[variant.name](variant.options))


#: Activations of torch that a method is likely to be compared with.
_TORCH_ACTIVATIONS: Mapping[str, type[nn.Module]] = {
    "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU, "mish": nn.Mish, "identity": nn.Identity,
}  # fmt: skip


def _activation_names() -> list[str]:
    """torch's, and those of the library by their short names: ``hermite`` for ``HermiteActivation``."""
    return [*_TORCH_ACTIVATIONS, *sorted(_own_activations())]


def _own_activations() -> dict[str, str]:
    """Short name -> name that ``softgate.swap(activation=…)`` knows; a class wins over a function."""
    names = sorted(activation_names(), key=lambda name: "_" not in name)
    return {re.sub("_?activation$", "", name): name for name in names}


def _activation(variant: Variant, shape: Shape, size: Size, steps: int) -> Method:
    if variant.name in _TORCH_ACTIVATIONS:
        make: Callable[[], nn.Module] = functools.partial(_TORCH_ACTIVATIONS[variant.name], **variant.options)
    else:
        make = activation_builder(_own_activations()[variant.name], variant.options)
    return Method(Parts(activation=make), Parts(activation=nn.ReLU), _CROSS_ENTROPY)


#: Short names of gates, with the options that make them so.
_ROUTERS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "softmax": ("top_k_softmax", {}),
    "sigmoid": ("sigmoid_bias", {"bias_update": 0.0}),
    "activation": ("activation_gate", {}),
}


def _router_names() -> list[str]:
    return [*_ROUTERS, *sorted(_gates())]


def _gates() -> dict[str, type[Gate]]:
    """Every gate of the room by its name in snake case."""
    room = importlib.import_module("softgate.routing")
    public = [getattr(room, name) for name in room.__all__]
    gates = [each for each in public if isinstance(each, type) and issubclass(each, Gate) and each is not Gate]
    return {re.sub(r"(?<!^)(?=[A-Z])", "_", gate.__name__).lower(): gate for gate in gates}


def _router(variant: Variant, shape: Shape, size: Size, steps: int) -> Method:
    name, fixed = _ROUTERS.get(variant.name, (variant.name, {}))
    kind = _gates()[name]
    takes = inspect.signature(kind).parameters
    options = {**({"steps": steps} if "steps" in takes else {}), **fixed, **variant.options}

    def make(width: int, experts: int, top_k: int) -> nn.Module:
        count = {"k": top_k} if "k" in takes else {"k_max": top_k}
        return kind(width, experts, **{**count, **options})

    common = Parts(gate=lambda width, experts, top_k: _gates()["top_k_softmax"](width, experts, k=top_k))  # type: ignore[call-arg]
    return Method(Parts(gate=make), common, _CROSS_ENTROPY)


SITES: dict[str, Site] = {
    "attention": Site(
        "attention",
        ("text", "images"),
        lambda: sorted({*attention_names(), *normalizer_methods()}),
        _attention,
    ),
    "loss": Site("loss", ("images", "table", "text"), lambda: sorted(registered_losses()), _loss),
    "activation": Site("activation", ("text", "images", "table"), _activation_names, _activation),
    "router": Site("router", ("text",), _router_names, _router),
}
