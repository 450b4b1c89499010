"""The training monitor as a callback of transformers' ``Trainer`` (and TRL's trainers, which derive from it)."""

from __future__ import annotations

from typing import Any

from torch import nn

from softgate.diagnostics import TrainingMonitor
from softgate.errors import bad_type
from softgate.swapping.attention_interface import load_transformers

__all__ = ["DiagnosticsCallback"]

load_transformers()

from transformers import TrainerCallback  # noqa: E402  (torchvision may have to be repaired first)


class DiagnosticsCallback(TrainerCallback):  # type: ignore[misc]
    """Logs what :class:`softgate.diagnostics.TrainingMonitor` sees, and warns; on the main process only.

    The figures, called ``softgate/…``, go into ``trainer.state.log_history`` (and so into every checkpoint's
    ``trainer_state.json``) and, with ``send_to(trainer)``, through ``trainer.log`` to TensorBoard and the like.

    Args:
        every: look at the forward pass of every ``every``-th optimiser step.
        **options: further arguments of :class:`softgate.diagnostics.TrainingMonitor`.

    Attributes:
        monitor: the monitor, None before the training begins.

    Example::

        callback = DiagnosticsCallback(every=200)
        trainer = Trainer(model=model, args=args, train_dataset=rows, callbacks=[callback])
        callback.send_to(trainer)  # optional: TensorBoard, W&B, … get the figures too
        trainer.train()
    """

    def __init__(self, every: int = 200, **options: Any) -> None:
        TrainingMonitor(nn.Identity(), every, **options)  # a wrong option fails now, not when the training begins
        self.monitor: TrainingMonitor | None = None
        self._every, self._options = every, options
        self._trainer: Any = None
        self._logged = -1

    def send_to(self, trainer: Any) -> None:
        """Hand the figures to ``trainer.log`` from now on."""
        if not callable(getattr(trainer, "log", None)):
            bad_type("trainer", trainer, "a transformers.Trainer")
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Watch the model of this training."""
        self.monitor = TrainingMonitor(kwargs["model"], self._every, **self._options)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the coming forward pass if it is due."""
        if self.monitor is not None and state.is_world_process_zero:
            self.monitor.step(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log what was seen in this step."""
        if self.monitor is None or not self.monitor.history or self.monitor.history[-1][0] == self._logged:
            return
        step, figures = self.monitor.history[-1]
        self._logged = step
        named = {f"softgate/{name}": value for name, value in figures.items()}
        if self._trainer is not None:
            self._trainer.log(named)
        else:
            state.log_history.append({**named, "epoch": state.epoch, "step": state.global_step})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave nothing on the model."""
        if self.monitor is not None:
            self.monitor.close()
