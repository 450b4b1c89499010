"""What a user may pass as a model: arrays, an ``nn.Sequential``, an implicit model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from softgate._checks import check_dim, check_number, check_sizes
from softgate.activations import GroupSort, Householder, group_sort, householder
from softgate.diagnostics.lipschitz.increments import KINDS, Activation
from softgate.diagnostics.lipschitz.networks import Network
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, check_choice

__all__ = ["ImplicitModel"]

#: Least and largest slope of torch's activations, rounded away from 0.
_SLOPES: dict[type[nn.Module], tuple[float, float]] = {
    nn.ReLU: (0.0, 1.0), nn.ReLU6: (0.0, 1.0), nn.Tanh: (0.0, 1.0), nn.Sigmoid: (0.0, 0.25), nn.Softplus: (0.0, 1.0),
    nn.Hardtanh: (0.0, 1.0), nn.Softsign: (0.0, 1.0), nn.GELU: (-0.12892, 1.12892), nn.SiLU: (-0.09985, 1.09985),
}  # fmt: skip
_LINEAR = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout1d,
    nn.Dropout2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.BatchNorm1d,
    nn.BatchNorm2d, nn.ZeroPad2d, nn.PixelUnshuffle, nn.PixelShuffle,
)  # fmt: skip
#: Entries of the largest matrix that convolutions are written out to.
LARGEST = 1 << 26
#: Iterations of an implicit model while its Jacobian is sampled.
_ITERATIONS = 300


class ImplicitModel(NamedTuple):
    """A deep equilibrium model z = φ(W z + U x), y = W_out z, for :func:`lipschitz_bound`.

    Attributes:
        W: (n, n).
        U: (n, inputs).
        W_out: (outputs, n), None for y = z.
    """

    W: Any
    U: Any
    W_out: Any = None


def matrix(name: str, value: Any) -> Tensor:
    """A finite matrix in float64 on the CPU, from a tensor or what numpy understands."""
    try:
        found = value.detach() if isinstance(value, Tensor) else torch.as_tensor(np.ascontiguousarray(value))
    except (TypeError, ValueError):
        bad_type(name, value, "a matrix (tensor or array)")
    if found.is_complex() or found.dtype is torch.bool:
        raise ArgumentTypeError(f"{name} must be real, got {found.dtype}")
    if found.ndim != 2 or not found.numel():
        raise ArgumentValueError(f"{name} must be a matrix (out, in) with entries, got shape {tuple(found.shape)}")
    found = found.to("cpu", torch.float64)
    if not bool(found.isfinite().all()):
        raise ArgumentValueError(f"{name} must be finite, got NaN or an infinity")
    return found


class Options(NamedTuple):
    """How the activations of a list of weights are described."""

    activation: str
    group_size: int
    v: Any
    slope: tuple[float, float]


def checked_options(activation: str, group_size: int, v: Any, slope: Any) -> Options:
    """The options, if each is allowed."""
    check_choice("activation", activation, KINDS)
    check_sizes(group_size=group_size)
    if (v is None) == (activation == "householder"):
        raise ArgumentValueError("v must be given for activation='householder' and for no other")
    if not isinstance(slope, tuple | list) or len(slope) != 2:
        bad_type("slope", slope, "a pair (least, largest)")
    low, high = (check_number("slope", value, low_open=True, high_open=True) for value in slope)
    if low > high:
        raise ArgumentValueError(f"slope must be (least, largest), got {slope}")
    return Options(activation, group_size, v, (low, high))


def read(model: Any, options: Options, residual: Any, input_shape: Sequence[int] | None) -> Network:
    """The network behind the first argument of :func:`lipschitz_bound`."""
    if isinstance(model, nn.Module):
        if residual is not None:
            raise ArgumentValueError(
                "residual must be None for a module; pass the weights of residual blocks as a list"
            )
        return _of_modules(model, input_shape)
    if isinstance(model, ImplicitModel):
        return _of_implicit(model, options)
    if isinstance(model, str | bytes) or not isinstance(model, Iterable):
        bad_type("model", model, "a list of matrices, an ImplicitModel or an nn.Module")
    weights = [matrix(f"weight {i}", value) for i, value in enumerate(model)]
    if not weights:
        raise ArgumentValueError("model must hold at least one matrix, got an empty list")
    if residual is not None:
        return _of_residual(weights, options, residual)
    for i in range(1, len(weights)):
        if weights[i].shape[1] != weights[i - 1].shape[0]:
            shapes = f"{tuple(weights[i].shape)} after {tuple(weights[i - 1].shape)}"
            raise ArgumentValueError(f"weight {i} must take what the one before it gives, got shapes {shapes}")
    activations = _activations(options, [len(weight) for weight in weights[:-1]])
    return Network("feedforward", tuple(weights), activations, function=_feedforward(weights, activations))


def _activations(options: Options, widths: list[int]) -> tuple[Activation, ...]:
    kind = options.activation
    if kind in ("relu", "slope"):
        slope = options.slope if kind == "slope" else (0.0, 1.0)
        return tuple(Activation(kind, slope=slope) for _ in widths)
    if kind == "householder":
        return tuple(
            _reflection(vectors, width) for vectors, width in zip(_vectors(options.v, widths), widths, strict=True)
        )
    size = 2 if kind in ("maxmin", "maxmin_rr") else options.group_size
    for width in widths:
        _check_divides(width, size)
    return tuple(Activation("groupsort" if kind == "maxmin" else kind, size) for _ in widths)


def _check_divides(width: int, size: int) -> None:
    if width % size:
        raise ArgumentValueError(f"the width of every layer must be a multiple of group_size={size}, got {width}")


def _vectors(v: Any, widths: list[int]) -> list[Any]:
    """One array per layer: ``v`` is a list of them, or one array that all layers share."""
    several = isinstance(v, list | tuple) and bool(v) and isinstance(v[0], np.ndarray | Tensor)
    if several and len(v) != len(widths):
        raise ArgumentValueError(f"v must hold an array for each of {len(widths)} layers, got {len(v)}")
    return list(v) if several else [v] * len(widths)


def _reflection(vectors: Any, width: int) -> Activation:
    found = vectors.detach() if isinstance(vectors, Tensor) else torch.as_tensor(np.asarray(vectors))
    found = matrix("v", found[None] if found.ndim == 1 else found)
    norms = torch.linalg.vector_norm(found, dim=1, keepdim=True)
    if not bool((norms > 0).all()):
        raise ArgumentValueError("v must hold no vector of norm 0")
    _check_divides(width, found.shape[1])
    groups = width // found.shape[1]
    if len(found) not in (1, groups):
        raise ArgumentValueError(f"v must have one row or one for each of {groups} groups, got {len(found)}")
    return Activation("householder", found.shape[1], (found / norms).expand(groups, -1).contiguous())


def _apply(activation: Activation, x: Tensor) -> Tensor:
    """The activation itself; for a slope, the kinked line that has both."""
    if activation.kind == "householder":
        assert activation.vectors is not None
        return householder(x, activation.vectors)
    if activation.is_elementwise:
        low, high = activation.slope
        return torch.where(x > 0, high * x, low * x)
    return group_sort(x, activation.group_size)


def _feedforward(weights: list[Tensor], activations: tuple[Activation, ...]) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        for weight, activation in zip(weights, activations, strict=False):
            x = _apply(activation, x @ weight.mT)
        return x @ weights[-1].mT

    return function


def _of_residual(weights: list[Tensor], options: Options, residual: Any) -> Network:
    first = last = None
    if isinstance(residual, str):
        check_choice("residual", residual, ("inner",))
        if len(weights) < 3:
            raise ArgumentValueError("residual='inner' needs a first matrix, blocks and a last one, got fewer than 3")
        first, *weights, last = weights
    widths = [len(weight) for weight in weights]
    if residual is True or isinstance(residual, str):
        outer = [torch.eye(width, dtype=torch.float64) for width in widths]
    elif isinstance(residual, list | tuple) and len(residual) == len(weights):
        outer = [matrix(f"residual {i}", value) for i, value in enumerate(residual)]
    else:
        bad_type("residual", residual, "True, 'inner' or a list with a matrix for each weight")
    state = weights[0].shape[1] if first is None else len(first)
    for i, (weight, after) in enumerate(zip(weights, outer, strict=True)):
        if weight.shape[1] != state or after.shape != (state, len(weight)):
            shapes = f"{tuple(weight.shape)} and then {tuple(after.shape)}"
            raise ArgumentValueError(
                f"block {i} must lead from the {state} entries of the state back to them, got {shapes}"
            )
    if last is not None and last.shape[1] != state:
        raise ArgumentValueError(f"the last matrix must have {state} columns, got {last.shape[1]}")
    activations = _activations(options, widths)

    def function(x: Tensor) -> Tensor:
        x = x if first is None else x @ first.mT
        for weight, after, activation in zip(weights, outer, activations, strict=True):
            x = x + _apply(activation, x @ weight.mT) @ after.mT
        return x if last is None else x @ last.mT

    return Network("residual", tuple(weights), activations, tuple(outer), first, last, function)


def _of_implicit(model: ImplicitModel, options: Options) -> Network:
    loop, enter = matrix("W", model.W), matrix("U", model.U)
    leave = None if model.W_out is None else matrix("W_out", model.W_out)
    if loop.shape[0] != loop.shape[1] or enter.shape[0] != len(loop):
        raise ArgumentValueError(f"W must be square and U have its rows, got {tuple(loop.shape)}, {tuple(enter.shape)}")
    if leave is not None and leave.shape[1] != len(loop):
        raise ArgumentValueError(f"W_out must have {len(loop)} columns, got {leave.shape[1]}")
    activations = _activations(options, [len(loop)])

    def function(x: Tensor) -> Tensor:
        z = torch.zeros(len(x), len(loop), dtype=x.dtype)
        for _ in range(_ITERATIONS):
            before, z = z, _apply(activations[0], z @ loop.mT + x @ enter.mT)
            if float((z - before).detach().abs().max()) <= 1e-12 * float(z.detach().abs().max()):
                break
        return z if leave is None else z @ leave.mT

    return Network("implicit", (loop, enter), activations, last=leave, function=function)


def _of_modules(model: nn.Module, input_shape: Sequence[int] | None) -> Network:
    """A sequence of linear modules and activations, with the linear ones between two activations as one matrix."""
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ArgumentValueError("model must have its weights, got some on the meta device")
    model = copy.deepcopy(model).to("cpu", torch.float64).eval()
    parts = list(_flattened(model))
    shape = _input_shape(parts, input_shape)
    start, weights, activations = shape, [], []
    linear: list[nn.Module] = []
    for part in parts:
        if isinstance(part, _LINEAR):
            linear.append(part)
            continue
        weight, shape = _written_out(linear, shape)
        weights.append(weight)
        activations.append(_activation_of(part, shape))
        linear = []
    weights.append(_written_out(linear, shape)[0])
    checked = tuple(matrix(f"the linear map {i}", weight) for i, weight in enumerate(weights))

    def function(x: Tensor) -> Tensor:
        found: Tensor = model(x.unflatten(1, start))
        return found.flatten(1)

    return Network("feedforward", checked, tuple(activations), function=function)


def _flattened(model: nn.Module) -> Iterable[nn.Module]:
    if isinstance(model, nn.Sequential):
        for part in model:
            yield from _flattened(part)
    elif isinstance(model, (*_LINEAR, *_SLOPES, nn.LeakyReLU, nn.ELU, GroupSort, Householder)):
        yield model
    else:
        raise ArgumentTypeError(
            f"model must be an nn.Sequential of linear layers, convolutions, pooling by means and activations of known "
            f"slope, GroupSort, MaxMin or Householder; got a {type(model).__name__} in it"
        )


def _input_shape(parts: list[nn.Module], given: Sequence[int] | None) -> tuple[int, ...]:
    if given is not None:
        check_sizes(**{f"input_shape[{i}]": size for i, size in enumerate(given)})
        return tuple(given)
    first = next((part for part in parts if not isinstance(part, nn.Flatten | nn.Identity | nn.Dropout)), None)
    if not isinstance(first, nn.Linear):
        raise ArgumentValueError("input_shape must be given where the model does not begin with nn.Linear")
    return (first.in_features,)


@torch.no_grad()
def _written_out(linear: list[nn.Module], shape: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """The matrix of linear modules, and the shape of what they give for an input of ``shape``."""
    inputs = math.prod(shape)
    zero = torch.zeros(1, *shape, dtype=torch.float64)
    offset = nn.Sequential(*linear)(zero)
    if inputs * offset.numel() > LARGEST:
        raise ArgumentValueError(f"model must be small enough to be written out: a linear part has {inputs:,} inputs "
                                 f"and {offset.numel():,} outputs")  # fmt: skip
    columns = nn.Sequential(*linear)(torch.eye(inputs, dtype=torch.float64).reshape(inputs, *shape))
    return (columns - offset).flatten(1).mT, tuple(offset.shape[1:])


def _activation_of(part: Any, shape: tuple[int, ...]) -> Activation:
    if isinstance(part, nn.LeakyReLU):
        return Activation("slope", slope=(min(part.negative_slope, 1.0), max(part.negative_slope, 1.0)))
    if isinstance(part, nn.ELU):
        return Activation("slope", slope=(0.0, max(part.alpha, 1.0)))
    if not isinstance(part, GroupSort | Householder):
        return Activation("slope", slope=_SLOPES[type(part)])
    dim = check_dim(part.dim, 1 + len(shape)) - 1
    if dim < 0:
        raise ArgumentValueError(f"the groups of {part} must not lie along the batch")
    _check_divides(shape[dim], part.group_size)
    order = torch.arange(math.prod(shape)).reshape(shape).movedim(dim, -1).flatten()
    if isinstance(part, GroupSort):
        return Activation("groupsort", part.group_size, order=order)
    copies = math.prod(shape) // shape[dim]
    per_pixel = part.v.expand(shape[dim] // part.group_size, -1)
    reflection = _reflection(per_pixel.repeat(copies, 1), math.prod(shape))
    return Activation("householder", part.group_size, reflection.vectors, order=order)
