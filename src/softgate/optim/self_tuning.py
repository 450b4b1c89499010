"""Tuning hyper-parameters within one training run: train around them, then move them down the validation loss."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_number, check_sizes
from softgate._evaluation import evaluating
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, check_choice
from softgate.optim.hyper_context import hyper
from softgate.optim.hyper_space import HyperSpace

__all__ = ["SelfTuner"]

TrainLoss = Callable[[nn.Module, Any, Mapping[str, Tensor]], Tensor]
ValidLoss = Callable[[nn.Module, Any], Tensor]


class SelfTuner:
    """Alternates between training a network around its hyper-parameters and moving the hyper-parameters.

    A training step perturbs λ for every example, regularises with the perturbed values, tells them to the
    best-response layers, and updates the network alone. A validation step runs the network in eval mode and updates λ
    and, with ``scale_opt``, the noise alone: the gradient reaches them through the responses, so that nothing of the
    regularisers has to be differentiable. Validation data must not be trained on.

    Args:
        model: with best-response layers for ``len(space)`` hyper-parameters.
        space: the hyper-parameters.
        train_loss: ``(model, batch, values) -> loss``; ``values`` holds the values (B,) by name, for what layers such
            as :class:`HyperDropout` do not do by themselves.
        valid_loss: ``(model, batch) -> loss``, without penalties.
        opt: of the model's parameters.
        hyper_opt: of ``space.raw``.
        scale_opt: of ``space.rho``; None keeps the noise as it is.
        train_steps: training steps before
        valid_steps: validation steps, in turns.
        warmup: training steps before the first turn.
        entropy_weight: weight of the noise's entropy, which keeps it from vanishing, if ``scale_opt`` is given.
        not_finite: ``"raise"`` or ``"skip"`` a step whose loss or gradient of λ or ρ is not finite.
        generator: of the noise, on the CPU.

    Attributes:
        steps: training steps so far.
        schedule: ``(steps, name -> value)`` at the start and after every turn.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> from softgate.optim import BestResponseLinear, HyperDropout, HyperParam, HyperSpace
        >>> model = torch.nn.Sequential(HyperDropout("p"), BestResponseLinear(4, 2, n_hyper=1))
        >>> space = HyperSpace([HyperParam("p", 0.3, high=0.9)])
        >>> loss = lambda model, batch, values=None: torch.nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> tuner = SelfTuner(model, space, loss, loss, torch.optim.SGD(model.parameters(), 0.1),
        ...                   torch.optim.Adam([space.raw], 0.01), train_steps=2)
        >>> batch = torch.randn(8, 4), torch.zeros(8, dtype=torch.long)
        >>> for _ in range(4):
        ...     figures = tuner.step(batch, batch)
        >>> tuner.steps, len(tuner.schedule), sorted(figures)
        (4, 3, ['train_loss', 'valid_loss'])

    Paper: Self-Tuning Networks, arXiv 1903.03088, algorithm 1.
    """

    def __init__(
        self,
        model: nn.Module,
        space: HyperSpace,
        train_loss: TrainLoss,
        valid_loss: ValidLoss,
        opt: torch.optim.Optimizer,
        hyper_opt: torch.optim.Optimizer,
        scale_opt: torch.optim.Optimizer | None = None,
        *,
        train_steps: int = 2,
        valid_steps: int = 1,
        warmup: int = 0,
        entropy_weight: float = 1e-3,
        not_finite: str = "raise",
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            bad_type("model", model, "an nn.Module")
        if not isinstance(space, HyperSpace):
            bad_type("space", space, "a HyperSpace")
        check_sizes(train_steps=train_steps, valid_steps=valid_steps)
        if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
            raise ArgumentValueError(f"warmup must be an int that is not negative, got {warmup!r}")
        check_number("entropy_weight", entropy_weight, low=0.0, high_open=True)
        check_choice("not_finite", not_finite, ("raise", "skip"))
        self.model, self.space, self.train_loss, self.valid_loss = model, space, train_loss, valid_loss
        self.opt, self.hyper_opt, self.scale_opt = opt, hyper_opt, scale_opt
        self.train_steps, self.valid_steps, self.warmup = train_steps, valid_steps, warmup
        self.entropy_weight, self.not_finite, self.generator = entropy_weight, not_finite, generator
        self.steps = 0
        self.schedule: list[tuple[int, dict[str, float]]] = [(0, space.current())]

    def step(self, train_batch: Any, valid_batch: Any) -> dict[str, float]:
        """One training step and, where a turn is complete, the validation steps.

        Args:
            train_batch: what ``train_loss`` takes; its first tensor says how many rows there are.
            valid_batch: what ``valid_loss`` takes, or a function without arguments that gives a batch and is called
                once per validation step.

        Returns:
            ``train_loss`` and, if there was a validation step, ``valid_loss`` of the last one.

        Raises:
            FloatingPointError: a loss, or λ or ρ and their gradients, are not finite; nothing has been updated by the
                step that found it. The message names the hyper-parameter and the step.
        """
        figures = {"train_loss": self._train(train_batch)}
        self.steps += 1
        if self.steps > self.warmup and (self.steps - self.warmup) % self.train_steps == 0:
            for _ in range(self.valid_steps):
                figures["valid_loss"] = self._validate(valid_batch() if callable(valid_batch) else valid_batch)
            self.schedule.append((self.steps, self.space.current()))
        return figures

    def _train(self, batch: Any) -> float:
        self._check_space()
        sample = self.space.sample(rows_of(batch), self.generator)
        self.model.train()
        with hyper(sample.response, sample.values):
            loss = self.train_loss(self.model, batch, sample.values)
        if self._refuses(loss, "training"):
            return float(loss.detach())
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        return float(loss.detach())

    def _validate(self, batch: Any) -> float:
        space, tuned = self.space, self.scale_opt is not None
        raw = space.perturbed(space.noise(rows_of(batch), self.generator)) if tuned else space.raw[None]
        with evaluating(self.model), hyper(space.response(raw), space.values(raw)):
            plain = self.valid_loss(self.model, batch)
        loss = plain - self.entropy_weight * space.entropy() if tuned else plain
        if self._refuses(loss, "validation"):
            return float(plain.detach())
        wanted = [space.raw, space.rho] if tuned else [space.raw]
        # only these: what the network's own parameters would get is never computed into their .grad
        grads = torch.autograd.grad(loss, wanted, allow_unused=True) if loss.requires_grad else (None,)
        for parameter, grad in zip(wanted, grads, strict=False):
            if grad is None:
                raise ArgumentTypeError(
                    "model must have best-response layers for the hyper-parameters: valid_loss does not depend on them"
                )
            if self._not_finite(grad, "gradient"):
                return float(plain.detach())
            parameter.grad = grad
        self.hyper_opt.step()
        if self.scale_opt is not None:
            self.scale_opt.step()
        space.raw.grad = space.rho.grad = None
        return float(plain.detach())

    def _refuses(self, loss: Tensor, kind: str) -> bool:
        """Whether to skip a step for its loss."""
        if math.isfinite(float(loss.detach())):
            return False
        if self.not_finite == "skip":
            return True
        raise FloatingPointError(
            f"the {kind} loss is {float(loss.detach())} at step {self.steps} with {self.space.current()}; a smaller "
            "learning rate helps where λ is large"
        )

    def _check_space(self) -> None:
        for tensor, what in ((self.space.raw, "λ"), (self.space.rho, "ρ")):
            self._not_finite(tensor.detach(), what, always=True)

    def _not_finite(self, tensor: Tensor, what: str, always: bool = False) -> bool:
        good = tensor.isfinite()
        if bool(good.all()):
            return False
        if self.not_finite == "skip" and not always:
            return True
        names = [name for name, fine in zip(self.space.names, good.tolist(), strict=True) if not fine]
        raise FloatingPointError(f"{what} of {', '.join(map(repr, names))} is not finite at step {self.steps}")

    def save_schedule(self, path: str | Path) -> None:
        """Write the schedule to a ``.csv`` (a row per entry, the step first) or ``.json`` file.

        Raises:
            ArgumentValueError: another suffix.
        """
        path = Path(path)
        check_choice("path", path.suffix, (".csv", ".json"))
        rows = [{"step": step, **values} for step, values in self.schedule]
        with open(path, "w", encoding="utf-8", newline="") as stream:
            if path.suffix == ".json":
                json.dump(rows, stream, indent=1)
            else:
                writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)

    def state_dict(self) -> dict[str, Any]:
        """Counters and schedule; model, space and optimizers have their own."""
        return {"steps": self.steps, "schedule": self.schedule}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.steps = int(state["steps"])
        self.schedule = [(int(step), dict(values)) for step, values in state["schedule"]]


def rows_of(batch: Any) -> int:
    """Length of the first tensor in a batch."""
    if isinstance(batch, Tensor):
        if not batch.ndim:
            raise ArgumentValueError("batch must hold tensors with a dimension of rows, got a number")
        return len(batch)
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    for part in parts:
        if isinstance(part, Tensor | Mapping | tuple | list):
            return rows_of(part)
    raise ArgumentTypeError(f"batch must hold a tensor, got {type(batch).__name__}")
