"""Exchange the nonlinearities inside feed-forward layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from softgate.errors import StateError
from softgate.swapping.names import check_accepts, check_callable, room, unknown_name
from softgate.swapping.torch_nn import leave_nested_tensors
from softgate.swapping.undo import Undo

#: Classes of torch that count as the nonlinearity of a layer. Tanh and Sigmoid do not: they serve as gates and poolers.
_TORCH = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.Mish, nn.PReLU, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU,
)  # fmt: skip
#: Classes of other libraries that are no nonlinearity of a layer, though they live among their activations.
_NOT = {"LinearActivation", "SqrtSoftplusActivation", "Sigmoid", "HardSigmoid", "HardSigmoidMe", "Tanh"}
_LIBRARIES = ("transformers.activations", "timm.layers.activations", "timm.layers.activations_me")
_FUNCTIONS = (functional.relu, functional.gelu, functional.silu)
_ALSO = "an nn.Module class, an nn.Module (copied to every place) or a function of one tensor"


class FunctionActivation(nn.Module):
    """A function of one tensor as a module."""

    def __init__(self, function: Callable[..., Tensor], options: Mapping[str, Any]) -> None:
        super().__init__()
        self.function, self.options = function, dict(options)

    def forward(self, input: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(input, **self.options)

    def extra_repr(self) -> str:
        """Show the function."""
        return getattr(self.function, "__name__", repr(self.function))


def swap_activation(model: nn.Module, activation: Any, options: Mapping[str, Any], undo: Undo) -> None:
    """Put ``activation`` in the place of every nonlinearity of ``model``."""
    build = activation_builder(activation, options)
    places = [(owner, name) for owner in list(model.modules()) for name in _places(owner)]
    if not places:
        raise StateError(
            f"{type(model).__name__} has no activation module that could be exchanged; known are "
            f"{', '.join(sorted(cls.__name__ for cls in _TORCH))} of torch.nn, the activations of transformers and "
            "timm, and the functions relu, gelu and silu in nn.Transformer layers"
        )
    leave_nested_tensors(model, undo)
    like = next(model.parameters(), None)
    for owner, name in places:
        module = build().train(owner.training)
        undo.set(owner, name, module if like is None else module.to(like.device, like.dtype))
        if isinstance(owner, nn.TransformerEncoderLayer):
            # Its inference path in C++ knows ReLU and GELU only and would go on computing the old one.
            undo.set(owner, "activation_relu_or_gelu", 0)


def activation_names() -> list[str]:
    """Names that ``activation=`` takes: the module classes and one-tensor functions of ``softgate.activations``."""
    return sorted(_named())


def _named() -> dict[str, Any]:
    """Lower-case name -> module class or function; a class wins over the function of the same name."""
    activations = room("activations")
    if activations is None:
        return {}
    found: dict[str, Any] = {}
    public = [getattr(activations, name) for name in activations.__all__]
    for each in sorted(public, key=lambda value: isinstance(value, type)):
        is_module = isinstance(each, type) and issubclass(each, nn.Module)
        record = getattr(each, "__softgate__", None)
        if is_module or (record is not None and record.family in ("scalar_map", "row_map")):
            found[each.__name__.lower()] = each
    return found


def _places(owner: nn.Module) -> list[str]:
    names = [name for name, child in owner.named_children() if _is_activation(child)]
    if isinstance(owner, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
        names += ["activation"] if vars(owner).get("activation") in _FUNCTIONS else []
    return names


def _is_activation(module: nn.Module) -> bool:
    cls = type(module)
    return cls in _TORCH or (cls.__module__ in _LIBRARIES and cls.__name__ not in _NOT)


def activation_builder(activation: Any, options: Mapping[str, Any]) -> Callable[[], nn.Module]:
    """What makes the module behind ``activation=``: a name, a class, a module or a function."""
    if isinstance(activation, str):
        named = _named()
        if activation.lower() not in named:
            unknown_name("activation", activation, named, _ALSO)
        activation = named[activation.lower()]
    check_callable("activation", activation, _ALSO)
    if isinstance(activation, nn.Module):
        if options:
            raise StateError("activation_options are for a name, a class or a function; the module has its own")
        return lambda: copy.deepcopy(activation)
    check_accepts("activation", activation, options, given=0 if isinstance(activation, type) else 1)
    if isinstance(activation, type):
        return lambda: activation(**options)
    return lambda: FunctionActivation(activation, options)
