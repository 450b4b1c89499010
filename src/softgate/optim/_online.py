"""What every online learner shares: the order of predict and update, checks of what comes in, regret, state."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from softgate._checks import check_device, check_sizes
from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError, bad_type

__all__: list[str] = []

#: A gradient, or the function that gives it at a point.
Gradient = Tensor | Sequence[float] | Callable[[Tensor], Any]


class OnlineLearner:
    """Rounds of predict and update over one stream or a batch of independent ones.

    Subclasses implement ``_play(hint)``, ``_learn(g, m, gradient)`` and name their tensors in ``_STATE``.
    """

    _STATE: tuple[str, ...] = ()

    def __init__(self, dim: int, batch_shape: Sequence[int], dtype: Any, device: Any) -> None:
        check_sizes(dim=dim)
        if not isinstance(batch_shape, Sequence) or isinstance(batch_shape, str):
            bad_type("batch_shape", batch_shape, "a sequence of positive ints")
        for size in batch_shape:
            check_sizes(batch_shape=size)
        if dtype not in (torch.float32, torch.float64):
            raise ArgumentTypeError(f"dtype must be torch.float32 or torch.float64, got {dtype!r}")
        self.device = torch.device("cpu" if device is None else device)
        check_device(str(self.device))
        self.dim, self.batch_shape, self.dtype = dim, tuple(batch_shape), dtype
        self.shape = (*self.batch_shape, dim)
        self.rounds = 0
        self._played: Tensor | None = None
        self._m = self._zeros()
        self._last = self._zeros()
        self._loss = torch.zeros(self.batch_shape, dtype=torch.float64, device=self.device)

    def _zeros(self) -> Tensor:
        return torch.zeros(self.shape, dtype=self.dtype, device=self.device)

    def _play(self, hint: Tensor | None) -> Tensor:
        """The point of this round; ``hint`` is what the caller of predict gave."""
        raise NotImplementedError

    def _learn(self, g: Tensor, gradient: Gradient) -> None:
        """Take in the gradient ``g`` at the point that was played; ``gradient`` is what the caller gave."""
        raise NotImplementedError

    def predict(self, hint: Any = None) -> Tensor:
        """The point to play in this round, ``(*batch_shape, dim)``.

        Args:
            hint: guess of the gradient that will come, of that shape, instead of what the learner would take.

        Raises:
            ArgumentValueError: ``hint`` has another shape or an entry that is not finite.
            StateError: this round's point was already asked for with another hint.
        """
        given = None if hint is None else self._tensor("hint", hint)
        if self._played is None:
            self._played = self._play(given)
        elif given is not None and not torch.equal(given, self._m):
            raise StateError(
                f"round {self.rounds + 1} was predicted with another hint; call update before the next one"
            )
        return self._played

    def update(self, grad: Gradient, loss: Any = None) -> None:
        """Take in what happened in this round.

        Args:
            grad: gradient of the loss at the point that was played, ``(*batch_shape, dim)``, or the function that
                gives the gradient at a point.
            loss: the loss itself, one number per stream, for :meth:`regret`; if None that of the linear loss
                ``⟨grad, x⟩``.

        Raises:
            StateError: no point was predicted for this round.
            ArgumentValueError: a tensor has another shape or an entry that is not finite.
        """
        if self._played is None:
            raise StateError(f"update needs the point of round {self.rounds + 1}: call predict first")
        g = self._of_shape("grad", grad(self._played) if callable(grad) else grad, self.shape, self.dtype)
        linear = torch.linalg.vecdot(g, self._played)
        # finite unless an entry of g is not (or it overflows), and cheaper to look at
        self._check_finite("grad", g, linear)
        if loss is None:
            self._loss = self._loss + linear
        else:
            self._loss = self._loss + self._finite("loss", loss, self.batch_shape, torch.float64)
        self._learn(g, grad)
        self._last, self._played = g, None
        self.rounds += 1

    def regret(self, comparator_losses: Any) -> Tensor:
        """Sum of the losses so far minus the comparator's, one number per stream, float64.

        Args:
            comparator_losses: losses of the comparator in every round, ``(rounds, *batch_shape)``: of one point
                for static regret, of a sequence of points for dynamic regret (report both where data drift).

        Raises:
            ArgumentValueError: the shape is another one.
        """
        losses = self._finite("comparator_losses", comparator_losses, (self.rounds, *self.batch_shape), torch.float64)
        return self._loss - losses.sum(0)

    def _tensor(self, name: str, value: Any) -> Tensor:
        return self._finite(name, value, self.shape, self.dtype)

    def _finite(self, name: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        tensor = self._of_shape(name, value, shape, dtype)
        self._check_finite(name, tensor, tensor)
        return tensor

    def _check_finite(self, name: str, value: Tensor, witness: Tensor) -> None:
        if not math.isfinite(witness.sum().item()) and not bool(value.isfinite().all()):
            raise ArgumentValueError(f"{name} must be finite, got NaN or inf in round {self.rounds + 1}")

    def _of_shape(self, name: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        try:
            tensor = torch.as_tensor(value, dtype=dtype, device=self.device).detach()
        except (TypeError, ValueError, RuntimeError):
            bad_type(name, value, f"numbers of shape {shape}")
        if tuple(tensor.shape) != shape:
            raise ArgumentValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        return tensor

    def _state(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in ("_m", "_last", "_loss", *self._STATE)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that rounds have changed; a learner made alike continues from it bit by bit."""
        tensors = {name.strip("_"): value.clone() for name, value in self._state().items()}
        played = None if self._played is None else self._played.clone()
        return {"rounds": self.rounds, "played": played, **tensors}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` gave.

        Raises:
            ArgumentValueError: it is the state of a learner of another kind or size; nothing is changed then.
        """
        own = {name.strip("_"): value for name, value in self._state().items()}
        if set(state_dict) != {"rounds", "played", *own}:
            raise ArgumentValueError(f"state_dict must have the keys {sorted({'rounds', 'played', *own})}, "
                                     f"got {sorted(state_dict)}")  # fmt: skip
        for name, value in own.items():
            if state_dict[name].shape != value.shape or state_dict[name].dtype != value.dtype:
                raise ArgumentValueError(f"state_dict must fit: {name} is {value.dtype} {tuple(value.shape)} here, got "
                                         f"{state_dict[name].dtype} {tuple(state_dict[name].shape)}")  # fmt: skip
        for name, value in self._state().items():
            value_given = state_dict[name.strip("_")].to(value.device)
            self._set_state(name, value_given.clone())
        self.rounds, played = state_dict["rounds"], state_dict["played"]
        self._played = None if played is None else played.to(self.device).clone()

    def _set_state(self, name: str, value: Tensor) -> None:
        setattr(self, name, value)
