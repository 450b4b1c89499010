"""ProAct: learn the bounds of a protected model one layer at a time, from the last to the first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate._checks import check_number, check_sizes
from softgate._evaluation import accuracy_of, evaluating
from softgate.activations.clipping_relu import ClippedReLU
from softgate.errors import StateError, bad_type, check_choice

__all__ = ["LayerBounds", "proact_fit"]

ORDERS = ("last_to_first", "first_to_last")
#: Weight decays to try, each after the one before has cost too much accuracy.
DECAYS = tuple(4.0 * 10.0**-n for n in range(5, 16))
#: Loss of accuracy, as a share of all images, from which on nothing more is tried in a layer.
_HOPELESS = 0.1


class LayerBounds(NamedTuple):
    """What :func:`proact_fit` did to one layer.

    Attributes:
        name: of the module.
        before: mean of its bounds before.
        after: mean of its bounds after.
        kept: how many epochs were kept.
        tried: how many epochs were tried.
        accuracy: on the held-out data with the bounds that were kept.
    """

    name: str
    before: float
    after: float
    kept: int
    tried: int
    accuracy: float


def proact_fit(
    model: nn.Module,
    teacher: nn.Module,
    train_loader: Iterable[tuple[Tensor, Tensor]],
    holdout_loader: Iterable[tuple[Tensor, Tensor]],
    *,
    order: str = "last_to_first",
    tolerance: float = 0.002,
    epochs: int = 105,
    decays: Sequence[float] = DECAYS,
    lr: float = 0.01,
) -> list[LayerBounds]:
    """Shrink the bounds of a protected model as far as its accuracy allows.

    One layer after the other: Adam changes its bounds alone, by cross-entropy plus the distance from the teacher's
    probabilities, while weight decay pulls them down. An epoch after which the accuracy on held-out data is within
    ``tolerance`` of that of the model as given is kept; otherwise the bounds go back and the next, weaker decay is
    tried. All other parameters stay as they are, and the model stays in eval mode: batch norm keeps its statistics.

    Args:
        model: holds :class:`ClippedReLU` modules with ``mode="hyrelu"``; changed in place.
        teacher: the unprotected model.
        train_loader: batches (inputs, labels), iterated once per epoch.
        holdout_loader: batches (inputs, labels) that decide; not the test data.
        order: ``"last_to_first"`` in the order of execution, as in the paper, or ``"first_to_last"``.
        tolerance: allowed difference of accuracy, as a share of the images.
        epochs: at most so many per decay.
        decays: weight decays, tried in turn.
        lr: of Adam.

    Returns:
        What was done to each layer, in the order in which it was done.

    Raises:
        ArgumentTypeError: a model is no module.
        ArgumentValueError: an unknown order, numbers out of range, or an empty loader.
        StateError: the model has no smooth ClippedReLU.

    Example:
        >>> import copy
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> safe = copy.deepcopy(net); safe[1] = ClippedReLU(5.0)
        >>> x = torch.randn(64, 2); batches = [(x, net(x).argmax(1))]
        >>> (layer,) = proact_fit(safe, net, batches, batches, epochs=3, decays=(4e-5,))
        >>> layer.name, layer.tried
        ('1', 3)

    Paper: arXiv 2406.06313, progressive training. Unlike the authors' code, the decision is made on held-out data and
    not on the test data, batch norm is left alone, each layer has a fresh optimizer, and the learning rate is constant.
    """
    for name, value in (("model", model), ("teacher", teacher)):
        if not isinstance(value, nn.Module):
            bad_type(name, value, "an nn.Module")
    check_choice("order", order, ORDERS)
    check_sizes(epochs=epochs)
    check_number("tolerance", tolerance, low=0.0, high=1.0)
    check_number("lr", lr, low=0.0, low_open=True, high_open=True)
    for decay in decays:
        check_number("decays", decay, low=0.0, high_open=True)
    frozen = [p for p in model.parameters() if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    try:
        with evaluating(model), evaluating(teacher):
            layers = _in_order(model, holdout_loader)
            reference = accuracy_of(model, holdout_loader)
            fit = _Fit(model, teacher, train_loader, holdout_loader, reference, tolerance, epochs, tuple(decays), lr)
            return [fit.layer(name, m) for name, m in (reversed(layers) if order == "last_to_first" else layers)]
    finally:
        for p in frozen:
            p.requires_grad_(True)


class _Fit(NamedTuple):
    """The arguments of :func:`proact_fit`, and the accuracy that is to be kept."""

    model: nn.Module
    teacher: nn.Module
    train: Iterable[tuple[Tensor, Tensor]]
    holdout: Iterable[tuple[Tensor, Tensor]]
    reference: float
    tolerance: float
    epochs: int
    decays: tuple[float, ...]
    lr: float

    def layer(self, name: str, module: ClippedReLU) -> LayerBounds:
        """Learn the bounds of one layer."""
        bound = module.bound
        bound.requires_grad_(True)
        before, best, accuracy = float(bound.detach().mean()), bound.detach().clone(), self.reference
        kept = tried = 0
        optimizer = torch.optim.Adam([bound], lr=self.lr)
        worst = 0.0
        for decay in self.decays:
            optimizer.param_groups[0]["weight_decay"] = decay
            for _ in range(self.epochs):
                self.epoch(bound, optimizer)
                tried += 1
                found = accuracy_of(self.model, self.holdout)
                worst = abs(self.reference - found)
                if worst > self.tolerance:
                    break
                best, accuracy, kept = bound.detach().clone(), found, kept + 1
            with torch.no_grad():
                bound.copy_(best)
            if worst >= _HOPELESS:
                break
        bound.requires_grad_(False)
        bound.grad = None
        return LayerBounds(name, before, float(bound.mean()), kept, tried, accuracy)

    def epoch(self, bound: nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        """One pass over the training data."""
        for inputs, labels in self.train:
            inputs, labels = inputs.to(bound.device), labels.to(bound.device)
            with torch.no_grad():
                target = self.teacher(inputs).softmax(-1)
            optimizer.zero_grad()
            distillation_loss(self.model(inputs), labels, target).backward()
            optimizer.step()
            with torch.no_grad():
                bound.clamp_(min=0.0)


def distillation_loss(logits: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with the labels plus cross-entropy with the teacher's probabilities, means over the rows."""
    return F.cross_entropy(logits, labels) + F.cross_entropy(logits, target)


def _in_order(model: nn.Module, loader: Iterable[Any]) -> list[tuple[str, ClippedReLU]]:
    """The smooth clipped ReLUs in the order in which one batch meets them."""
    named = {name: m for name, m in model.named_modules() if isinstance(m, ClippedReLU) and m.mode == "hyrelu"}
    if not named:
        raise StateError(
            f"{type(model).__name__} holds no ClippedReLU with mode='hyrelu': protect(model, bounds) first"
        )
    met: dict[str, ClippedReLU] = {}

    def meet(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:  # what a hook returns would replace the output
            met.setdefault(name, named[name])

        return hook

    hooks = [m.register_forward_hook(meet(name)) for name, m in named.items()]
    try:
        for inputs, _ in loader:
            accuracy_of(model, [(inputs, torch.zeros(len(inputs)))])
            break
    finally:
        for hook in hooks:
            hook.remove()
    return list(met.items())
