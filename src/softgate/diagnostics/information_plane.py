"""The information plane of a network while it trains: what each layer says about input and label, over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from softgate._checks import check_sizes
from softgate._evaluation import evaluating
from softgate.diagnostics.information import (
    MIResult,
    Settings,
    estimate,
    information_sensitivity,
    input_symbols,
    label_symbols,
)
from softgate.errors import ArgumentValueError, StateError, bad_type, check_choice, did_you_mean

__all__ = ["Compression", "InformationCurve", "InformationPlane", "log2_epochs"]

#: What the output of the model is called among the layers.
OUTPUT = "output"
_PASSIVE = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd, nn.AlphaDropout)
_STEPS_PER_DOUBLING = 8


class InformationCurve(NamedTuple):
    """Estimates of one layer, one entry per recorded epoch.

    Attributes:
        epochs: when.
        i_tx: information about the input, bits.
        i_ty: about the label, bits; NaN without labels.
        saturated: whether ``i_tx`` was at its limit, where it says nothing.
    """

    epochs: tuple[int, ...]
    i_tx: tuple[float, ...]
    i_ty: tuple[float, ...]
    saturated: tuple[bool, ...]


class Compression(NamedTuple):
    """How much information about the input a layer lost again.

    Attributes:
        drop: largest I(T; X) less the last one, bits.
        share: ``drop`` over the largest.
        peak: epoch of the largest.
    """

    drop: float
    share: float
    peak: int


def log2_epochs(last: int, points: int = 400) -> list[int]:
    """Epochs from 1 to ``last`` at about equal distances on a logarithmic scale, without repetitions.

    Args:
        last: the last epoch.
        points: how many would be chosen if there were no repetitions.

    Returns:
        Ascending epochs.

    Raises:
        ArgumentTypeError: not ints.
        ArgumentValueError: not positive.

    Example:
        >>> log2_epochs(32, 6)
        [1, 2, 4, 8, 16, 32]

    Paper: Adaptive Estimators, arXiv 1902.09037, when the activity is measured.
    """
    check_sizes(last=last, points=points)
    places = [i / max(points - 1, 1) for i in range(points)]
    return sorted({1, last} | {int(last**place + 1e-9) for place in places})


class InformationPlane:
    """Records I(T; X) and I(T; Y) of the layers of a model, epoch by epoch.

    Measure on *all* inputs that the statement is about, training and test data. The numbers are those of the estimator
    (:func:`mutual_information` says why): record two planes with different ones, and look at :meth:`sensitivity`
    before a layer is said to compress.

    Args:
        model: any module; its training mode and its gradients stay as they are.
        X: inputs, (N, …), given to the model ``batch_size`` at a time. Equal rows count as one input.
        y: labels as :func:`mutual_information` takes them, or None.
        layers: names of modules, ``"output"`` for the model's own. None takes every module without children that has
            no weight and is no dropout, identity or flattening: activations, softmax, gates; all modules without
            children where there is none such; and the output. Of a tuple the first tensor is measured.
        schedule: when :meth:`record` measures: ``"log2"`` (every epoch at first, then eight times per doubling),
            ``"every"``, or the epochs themselves, such as :func:`log2_epochs` gives.
        estimator: see :func:`mutual_information`.
        output: what the model's output passes before it is measured, the softmax over the last axis by default.
        batch_size: rows of a forward pass; None takes all at once.
        **options: further arguments of :func:`mutual_information`. For ``estimator="fixed"`` give ``range``: without
            it every layer and epoch has bins of its own width.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an unknown layer, schedule or option, or labels that do not fit ``X``.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> X = torch.randn(100, 4)
        >>> plane = InformationPlane(net, X, X[:, 0] > 0, bins=8)
        >>> for epoch in range(3):
        ...     # train for an epoch here
        ...     found = plane.record(epoch)
        >>> list(found), plane.curve()["1"].epochs, plane.compression()["1"].drop
        (['1', 'output'], (0, 1, 2), 0.0)

    Paper: Adaptive Estimators, arXiv 1902.09037.
    """

    def __init__(
        self,
        model: nn.Module,
        X: Tensor,
        y: Tensor | None = None,
        layers: Sequence[str] | None = None,
        schedule: str | Iterable[int] = "log2",
        estimator: str = "ebab",
        *,
        output: Callable[[Tensor], Tensor] | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            bad_type("model", model, "an nn.Module")
        if not isinstance(X, Tensor):
            bad_type("X", X, "a torch.Tensor")
        if X.ndim < 1 or len(X) < 2:
            raise ArgumentValueError(f"X must have shape (N, ...) with N at least 2, got {tuple(X.shape)}")
        if batch_size is not None:
            check_sizes(batch_size=batch_size)
        self.model, self.X, self.batch_size = model, X, batch_size or len(X)
        self.output = output or _softmax
        self.layers = _chosen(model, layers)
        self._due = _due(schedule)
        self._inputs, self._labels, self._y = input_symbols(X, X), label_symbols(y, X), y
        for name in options:
            check_choice("options", name, Settings._fields[1:])
        self.settings = Settings(estimator, **options)
        estimate(torch.tensor([[0.0], [1.0]]), None, None, self.settings)  # refuses settings that are wrong
        self._found: dict[str, dict[int, MIResult]] = {name: {} for name in self.layers}

    def record(self, epoch: int) -> dict[str, MIResult] | None:
        """Measure all layers, if ``epoch`` is due.

        Args:
            epoch: number of finished epochs, not negative; one that was recorded before is replaced.

        Returns:
            Layer -> estimate, or None if the epoch is not due.

        Raises:
            ArgumentTypeError: ``epoch`` is no int.
            ArgumentValueError: it is negative, or a layer gave numbers that are not finite (the message names it).
            StateError: a layer did not run, or gave no tensor with one row per input.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, int):
            bad_type("epoch", epoch, "an int")
        if epoch < 0:
            raise ArgumentValueError(f"epoch must not be negative, got {epoch}")
        if not self._due(epoch):
            return None
        found = {
            name: estimate(T, self._inputs, self._labels, self.settings, f"activity of {name!r}")
            for name, T in self._activities().items()
        }
        for name, result in found.items():
            self._found[name][epoch] = result
        return found

    def curve(self) -> dict[str, InformationCurve]:
        """Layer -> estimates by epoch, ascending; the layers in the order of the model."""
        curves = {}
        for name, by_epoch in self._found.items():
            epochs = tuple(sorted(by_epoch))
            found = [by_epoch[epoch] for epoch in epochs]
            curves[name] = InformationCurve(
                epochs,
                tuple(f.i_tx for f in found),
                tuple(math.nan if f.i_ty is None else f.i_ty for f in found),
                tuple(f.saturated for f in found),
            )
        return curves

    def compression(self) -> dict[str, Compression]:
        """Layer -> how far I(T; X) fell from its largest value.

        Raises:
            StateError: nothing has been recorded.
        """
        self._need_records()
        return {name: compression_of(curve.epochs, curve.i_tx) for name, curve in self.curve().items()}

    def sensitivity(self, **settings: Any) -> dict[str, dict[str, MIResult]]:
        """Layer -> :func:`information_sensitivity` of the model as it is now.

        Args:
            **settings: ``bins`` and ``noise``, the settings to try.
        """
        X = None if self._inputs is None else self._inputs.codes
        return {name: information_sensitivity(T, X, self._y, **settings) for name, T in self._activities().items()}

    def plot(self, axes: Any = None) -> Any:
        """Draw the plane, one line per layer from first to last epoch, into ``axes`` of matplotlib (None: new ones).

        Saturated points are hollow, the limit is a dotted line, and the title says which estimator made the numbers.

        Raises:
            StateError: nothing has been recorded.
        """
        self._need_records()
        if axes is None:
            from matplotlib.figure import Figure

            axes = Figure().subplots()
        for name, curve in self.curve().items():
            heights = [0.0 if math.isnan(value) else value for value in curve.i_ty]
            (line,) = axes.plot(curve.i_tx, heights, linewidth=1, label=name)
            for x, height, hollow in zip(curve.i_tx, heights, curve.saturated, strict=True):
                axes.plot(x, height, "o", color=line.get_color(), markersize=4, fillstyle="none" if hollow else "full")
        last = [by_epoch[max(by_epoch)] for by_epoch in self._found.values()]
        axes.axvline(last[0].limit, color="gray", linestyle=":", linewidth=1)
        axes.set(xlabel="I(T; X), bits", ylabel="I(T; Y), bits" if self._labels else "no labels")
        axes.set_title(f"{self.settings.estimator}: {last[0].assumption}", fontsize=8)
        axes.legend(fontsize=8)
        return axes

    def _need_records(self) -> None:
        if not any(self._found.values()):
            raise StateError("nothing has been recorded yet: call record(epoch)")

    @torch.no_grad()
    def _activities(self) -> dict[str, Tensor]:
        """Layer -> activity on all inputs."""
        parts: dict[str, list[Tensor]] = {name: [] for name in self.layers}
        like = next(self.model.parameters(), self.X)
        with evaluating(self.model), _hooked(self.model, parts):
            for rows in self.X.split(self.batch_size):
                result = _first(self.model(rows.to(like.device)))
                if OUTPUT in parts and result is not None:
                    parts[OUTPUT].append(self.output(result))
        whole = {}
        for name, found in parts.items():
            if sum(map(len, found)) != len(self.X):
                raise StateError(
                    f"layer {name!r} must give one tensor with a row per input, {len(self.X)}, in a forward pass, got "
                    f"{[tuple(part.shape) for part in found] or 'none'}"
                )
            whole[name] = torch.cat(found).to(self.X.device)
        return whole


def compression_of(epochs: Sequence[int], bits: Sequence[float]) -> Compression:
    """How far a curve fell from its largest value."""
    largest = max(bits)
    drop = largest - bits[-1]
    return Compression(drop, drop / largest if largest else 0.0, epochs[list(bits).index(largest)])


def _softmax(logits: Tensor) -> Tensor:
    return logits.softmax(-1) if logits.is_floating_point() and logits.ndim > 1 else logits


def _chosen(model: nn.Module, layers: Sequence[str] | None) -> tuple[str, ...]:
    modules = dict(model.named_modules())
    if layers is None:
        leaves = [name for name, m in modules.items() if name and not any(True for _ in m.children())]
        plain = [n for n in leaves if not isinstance(modules[n], _PASSIVE) and not hasattr(modules[n], "weight")]
        return (*(plain or leaves), OUTPUT)
    if isinstance(layers, str) or not layers:
        raise ArgumentValueError(f"layers must be a sequence of names of modules, or None, got {layers!r}")
    for name in layers:
        if name != OUTPUT and (name not in modules or not name):
            hint = did_you_mean(name, [*filter(None, modules), OUTPUT])
            raise ArgumentValueError(f"layers must name modules of the model or {OUTPUT!r}, got {name!r}{hint}")
    return tuple(layers)


def _due(schedule: str | Iterable[int]) -> Callable[[int], bool]:
    if isinstance(schedule, str):
        check_choice("schedule", schedule, ("log2", "every"))
        return _on_log2 if schedule == "log2" else lambda epoch: True
    epochs = frozenset(schedule)
    return lambda epoch: epoch in epochs


def _on_log2(epoch: int) -> bool:
    """Whether some 2^(k/8), rounded, is ``epoch``; 0 always is."""
    if epoch < _STEPS_PER_DOUBLING:
        return True
    step = round(_STEPS_PER_DOUBLING * math.log2(epoch))
    return any(round(2.0 ** (k / _STEPS_PER_DOUBLING)) == epoch for k in (step - 1, step, step + 1))


@contextmanager
def _hooked(model: nn.Module, parts: Mapping[str, list[Tensor]]) -> Iterator[None]:
    """Inside, what the named modules return is appended to their parts."""

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, result: Any) -> None:
            tensor = _first(result)
            if tensor is not None:
                parts[name].append(tensor)

        return hook

    named = [(name, model.get_submodule(name)) for name in parts if name != OUTPUT]
    handles = [module.register_forward_hook(keep(name)) for name, module in named]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first(result: Any) -> Tensor | None:
    """A tensor, or the first one of a tuple, list or mapping, detached."""
    if isinstance(result, Tensor):
        return result.detach()
    items = result.values() if isinstance(result, Mapping) else result if isinstance(result, tuple | list) else ()
    return next((item.detach() for item in items if isinstance(item, Tensor)), None)
