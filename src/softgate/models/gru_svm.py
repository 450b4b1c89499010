"""A recurrent network over sequences of symbols with a support vector machine as its last layer."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate._checks import check_number, check_sizes
from softgate.dispatch import transform_reason
from softgate.errors import ArgumentValueError, bad_type, check_choice
from softgate.losses.svm_head import Rule
from softgate.models._heads import Head, make_head
from softgate.models.gru_reset_before import GRUCellResetBefore

__all__ = ["GRUSVM"]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class GRUSVM(nn.Module):
    """A gated recurrent network that reads a table row as a sequence of symbols, with a linear machine at its end.

    Every feature of a row is one step, its value a symbol, which enters one-hot. The defaults are the paper's: 256
    units, TensorFlow's cell, two score columns, C = 0.5, sums over samples and classes plus half the head's squared
    weights, dropout of the one-hot inputs 0.15 (0.2 for the softmax twin).

    Args:
        num_symbols: number of symbols, the width of the one-hot inputs.
        hidden_size: units.
        num_classes: number of classes; 1 makes a binary machine with one score.
        head: ``"svm"``, or ``"softmax"`` for the twin with mean cross-entropy.
        C: weight of the hinge loss; with sums its meaning depends on the batch size.
        cell: ``"tf"`` (:class:`GRUCellResetBefore`, the paper's) or ``"torch"`` (``nn.GRU``).
        dropout: of the one-hot inputs, in [0, 1); None takes the paper's.
        reduction: ``"sum"`` or ``"mean"`` of the samples' hinge losses.
        unknown: what a symbol outside ``[0, num_symbols)`` does: ``"error"``, or ``"zeros"`` for a step without input,
            which is what one-hot coding in the authors' code makes of it.

    Shapes: symbols ``(B, T)`` of an integer dtype -> scores ``(B, num_classes)``.

    Example:
        >>> model = GRUSVM(hidden_size=8)
        >>> scores = model(torch.tensor([[0, 3, 9], [1, 1, 2]]))
        >>> model.loss(scores, torch.tensor([0, 1])).shape, model.decide(scores).shape
        (torch.Size([]), torch.Size([2]))

    Paper: arXiv 1709.03082, sec. 3.
    """

    def __init__(
        self,
        num_symbols: int = 10,
        hidden_size: int = 256,
        num_classes: int = 2,
        *,
        head: Head = "svm",
        C: float = 0.5,
        cell: Literal["tf", "torch"] = "tf",
        dropout: float | None = None,
        reduction: Literal["sum", "mean"] = "sum",
        unknown: Literal["error", "zeros"] = "error",
    ) -> None:
        super().__init__()
        check_sizes(num_symbols=num_symbols, hidden_size=hidden_size, num_classes=num_classes)
        check_choice("cell", cell, ("tf", "torch"))
        check_choice("unknown", unknown, ("error", "zeros"))
        if dropout is None:
            dropout = 0.15 if head == "svm" else 0.2
        check_number("dropout", dropout, low=0.0, high=1.0, high_open=True)
        self.num_symbols, self.unknown, self.dropout = num_symbols, unknown, dropout
        self.cell: GRUCellResetBefore | nn.GRU
        self.cell = GRUCellResetBefore(num_symbols, hidden_size) if cell == "tf" else nn.GRU(num_symbols, hidden_size)
        self.head = make_head(head, hidden_size, num_classes, 0.01, None, C=C, reduction=reduction)

    def forward(self, symbols: Tensor, state: Tensor | None = None) -> Tensor:
        """Scores ``(B, num_classes)``; ``state`` as for :meth:`encode`."""
        scores: Tensor = self.head(self.encode(symbols, state))
        return scores

    def encode(self, symbols: Tensor, state: Tensor | None = None) -> Tensor:
        """The state ``(B, hidden_size)`` after the last symbol.

        Args:
            symbols: ``(B, T)`` of an integer dtype, T at least 1.
            state: ``(B, hidden_size)`` before the first symbol, zeros if None. The authors' training starts every batch
                from the last state of the batch before, whose rows are unrelated: pass ``encode(...).detach()`` for
                that.
        """
        self._check(symbols)
        steps = symbols.T.unsqueeze(-1) == torch.arange(self.num_symbols, device=symbols.device)
        one_hot = F.dropout(steps.to(self.head.weight.dtype), self.dropout, self.training)
        if isinstance(self.cell, GRUCellResetBefore):
            drive = F.linear(one_hot, self.cell.weight_ih, self.cell.bias)
            return self.cell.scan_drive(drive, state)[-1]
        return self.cell(one_hot, None if state is None else state.unsqueeze(0))[1][0]

    def loss(self, scores: Tensor, target: Tensor) -> Tensor:
        """The head's loss of ``scores`` and class indices ``target`` (B,), with the penalty on its weights."""
        return self.head.loss(scores, target)

    def decide(self, scores: Tensor, rule: Rule = "argmax") -> Tensor:
        """Class indices ``(B,)``; see :meth:`softgate.losses.SVMHead.decide` for the rules."""
        return self.head.decide(scores, rule)

    def _check(self, symbols: Any) -> None:
        if not isinstance(symbols, Tensor):
            bad_type("symbols", symbols, "a torch.Tensor")
        if symbols.dtype not in _INTEGERS or symbols.ndim != 2 or symbols.shape[1] == 0:
            raise ArgumentValueError(
                f"symbols must be integers of shape (B, T) with T >= 1, got {tuple(symbols.shape)} {symbols.dtype}"
            )
        # reading values would break a trace; there unknown symbols count as no input
        if self.unknown == "error" and symbols.numel() and transform_reason(symbols) is None:
            low, high = (int(value) for value in symbols.aminmax())
            if low < 0 or high >= self.num_symbols:
                raise ArgumentValueError(
                    f"symbols must be in [0, {self.num_symbols}) (or set unknown='zeros'), got {low} to {high}"
                )
