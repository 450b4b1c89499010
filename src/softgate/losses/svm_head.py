"""The last layer of a classifier as a linear support vector machine, trained with the rest of the network."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from softgate._checks import check_sizes
from softgate.errors import ArgumentValueError, StateError, check_choice
from softgate.losses._margin import check_margin_options, penalty_of
from softgate.losses._platt import fit_platt
from softgate.losses.crammer_singer import crammer_singer_loss
from softgate.losses.svm import Hinge, Regularizer, l2_svm_loss

__all__ = ["SVMHead"]

Rule = Literal["argmax", "sign_argmax"]
RULES = ("argmax", "sign_argmax")


class SVMHead(nn.Linear):
    r"""A linear layer with the loss, the penalty and the decision rule of a support vector machine.

    It is an ``nn.Linear`` whose weights the loss penalises, so it can take the place of a classifier's last layer. Do
    not decay its weights in the optimizer as well, and do not put a softmax behind it.

    Args:
        in_features: width of its input.
        num_classes: number of classes; 1 makes a binary machine with one score, positive for class 1.
        C: weight of the hinge loss against the penalty.
        multiclass: ``"one_vs_rest"`` (:func:`l2_svm_loss`) or ``"crammer_singer"`` (:func:`crammer_singer_loss`).
        reg: penalty on the weight (not the bias): ``"sum_half"``, ``"mean"`` or None.
        hinge: ``"squared"`` or ``"linear"``; None takes squared for one-vs-rest and linear for Crammer-Singer.
        margin: positive.
        reduction: ``"mean"`` or ``"sum"`` of the samples' hinge losses; with ``"sum"`` the meaning of C depends on the
            batch size.
        over_classes: ``"sum"`` or ``"mean"`` of the classes' hinge losses, for one-vs-rest.
        bias: whether the scores have an offset.
        device: of the parameters.
        dtype: of the parameters.

    Shapes: ``(..., in_features)`` -> ``(..., num_classes)``.

    Example:
        >>> import torch
        >>> head = SVMHead(8, 3, C=0.5)
        >>> features, labels = torch.randn(4, 8), torch.tensor([0, 2, 1, 1])
        >>> head.loss(head(features), labels).backward()
        >>> head.predict(features).shape
        torch.Size([4])

    Paper: arXiv 1712.03541 (CNN-SVM), arXiv 1709.03082 (GRU-SVM).
    """

    platt: Tensor

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        C: float = 1.0,
        *,
        multiclass: Literal["one_vs_rest", "crammer_singer"] = "one_vs_rest",
        reg: Regularizer | None = "sum_half",
        hinge: Hinge | None = None,
        margin: float = 1.0,
        reduction: Literal["mean", "sum"] = "mean",
        over_classes: Literal["sum", "mean"] = "sum",
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(in_features=in_features, num_classes=num_classes)
        check_choice("multiclass", multiclass, ("one_vs_rest", "crammer_singer"))
        check_choice("reduction", reduction, ("mean", "sum"))
        check_choice("over_classes", over_classes, ("sum", "mean"))
        if multiclass == "crammer_singer" and (num_classes == 1 or over_classes == "mean"):
            raise ArgumentValueError("multiclass='crammer_singer' needs num_classes of at least 2 and "
                                     "over_classes='sum': it compares two classes")  # fmt: skip
        hinge = hinge or ("squared" if multiclass == "one_vs_rest" else "linear")
        check_margin_options(C, margin, hinge, reg)
        super().__init__(in_features, num_classes, bias, device, dtype)
        self.multiclass = multiclass
        self.reg = reg
        self.options: dict[str, Any] = {"C": C, "margin": margin, "hinge": hinge, "reduction": reduction}
        if multiclass == "one_vs_rest":
            self.options["over_classes"] = over_classes
        # NaN until calibrate() has run: a buffer of fixed shape survives a round trip through a state dict
        self.register_buffer("platt", torch.full((2, num_classes), float("nan"), dtype=torch.float64, device=device))

    @property
    def num_classes(self) -> int:
        """Number of score columns."""
        return self.out_features

    def decision_function(self, features: Tensor) -> Tensor:
        """Scores ``(..., num_classes)`` of ``features``; the name that scikit-learn gives them."""
        return self(features)

    def penalty(self) -> Tensor:
        """Penalty on the weight, a 0-d tensor; the bias is free."""
        return penalty_of(self.weight, self.reg)

    def loss(self, scores: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -100) -> Tensor:
        """C times the hinge loss of ``scores``, plus the penalty on this layer's weight.

        Args:
            scores: ``(..., num_classes)``, what the layer returned.
            target: class indices ``(...)`` (0 or 1 for the binary machine), or labels of the shape of ``scores`` as
                :func:`l2_svm_loss` and :func:`crammer_singer_loss` take them.
            weight: weight of every class.
            ignore_index: samples with this target do not count.

        Raises:
            ArgumentTypeError: a tensor has the wrong dtype.
            ArgumentValueError: shapes do not match or a label is not allowed.
        """
        if scores.ndim == 0 or scores.shape[-1] != self.num_classes:
            raise ArgumentValueError(f"scores must have shape (..., {self.num_classes}), got {tuple(scores.shape)}")
        if self.num_classes == 1:
            target = self._binary_labels(scores, target)
        rows = target.flatten(0, -2) if target.ndim > 1 and target.is_floating_point() else target.reshape(-1)
        if scores.ndim == 1:
            rows = target
        function = l2_svm_loss if self.multiclass == "one_vs_rest" else crammer_singer_loss
        flat = scores if scores.ndim == 1 else scores.flatten(0, -2)
        return function(flat, rows, weight, ignore_index, head_weight=self.weight, reg=self.reg, **self.options)

    def _binary_labels(self, scores: Tensor, target: Tensor) -> Tensor:
        if target.is_floating_point():
            return target
        if target.shape != scores.shape[:-1] or bool(((target != 0) & (target != 1)).any()):
            raise ArgumentValueError(
                f"target of the binary machine must be 0 or 1 of shape {tuple(scores.shape[:-1])}, got shape "
                f"{tuple(target.shape)} with values {target.unique()[:5].tolist()}"
            )
        return target.unsqueeze(-1).to(scores.dtype)

    def decide(self, scores: Tensor, rule: Rule = "argmax") -> Tensor:
        """Class indices ``(...)`` for ``scores``.

        Args:
            scores: ``(..., num_classes)``.
            rule: ``"argmax"`` takes the largest score. ``"sign_argmax"`` is how the authors' code evaluates its
                machines, for comparison with their figures only: it takes the first class with a positive score,
                whichever is the largest, and class 0 if there is none.
        """
        check_choice("rule", rule, RULES)
        if self.num_classes == 1:
            return (scores[..., 0] > 0).long()
        # where several classes share the largest value, argmax returns the first
        return (scores if rule == "argmax" else scores.sign()).argmax(-1)

    @torch.no_grad()
    def predict(self, features: Tensor, rule: Rule = "argmax") -> Tensor:
        """Class indices ``(...)`` for ``features``; see :meth:`decide`."""
        return self.decide(self(features), rule)

    @torch.no_grad()
    def calibrate(self, features: Tensor, target: Tensor) -> None:
        """Fit Platt's sigmoids on held-out ``features`` (N, in_features) and class indices ``target`` (N,)."""
        if features.ndim != 2 or target.shape != features.shape[:1] or target.is_floating_point():
            raise ArgumentValueError(
                f"features and target must have shapes (N, {self.in_features}) and (N,) of class indices, got "
                f"{tuple(features.shape)} and {tuple(target.shape)} {target.dtype}"
            )
        classes = (
            torch.ones(1, device=target.device)
            if self.num_classes == 1
            else torch.arange(self.num_classes, device=target.device)
        )
        self.platt.copy_(fit_platt(self(features), target.unsqueeze(1) == classes))

    @torch.no_grad()
    def predict_proba(self, features: Tensor) -> Tensor:
        """Calibrated probabilities ``(..., num_classes)``, two columns for the binary machine.

        Raises:
            StateError: :meth:`calibrate` has not run.
        """
        if bool(self.platt.isnan().any()):
            raise StateError("predict_proba needs calibrate(features, target) first: scores are no probabilities")
        scores = self(features)
        single = torch.sigmoid(self.platt[0] * scores + self.platt[1])
        if self.num_classes == 1:
            return torch.cat((1 - single, single), dim=-1).to(scores.dtype)
        return (single / single.sum(-1, keepdim=True)).to(scores.dtype)

    def extra_repr(self) -> str:
        """The settings, for ``repr``."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{super().extra_repr()}, multiclass={self.multiclass!r}, reg={self.reg!r}, {options}"
