"""How to train: the numbers that :func:`softgate.lab.training.fit` obeys."""

from __future__ import annotations

from dataclasses import dataclass

from softgate.errors import ArgumentValueError, check_choice
from softgate.lab.distributed import STRATEGIES
from softgate.lab.schedules import SCHEDULES

PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: number of updates.
        lr: peak learning rate (of the default optimizer; a given optimizer keeps its own rates).
        warmup: updates over which the rate grows linearly.
        schedule: ``cosine`` down to ``min_lr_ratio`` or ``constant``; it scales the rate of every parameter group.
        min_lr_ratio: where the cosine ends.
        betas: AdamW's decay rates.
        eps: AdamW's epsilon.
        weight_decay: AdamW's decay, of parameters with two or more dimensions only.
        clip: largest gradient norm; None leaves gradients alone.
        eval_every: updates between evaluations; None evaluates at the end only.
        log_every: updates between live reports; None gives about 100 per run.
        checkpoint_every: updates between checkpoints; None leaves it to ``checkpoint_seconds``.
        checkpoint_seconds: longest work that a kill can cost; None turns this clock off.
        precision: ``fp32``, or ``bf16`` autocast over fp32 weights.
        grad_accumulation: micro-batches into which each process cuts its part of a batch.
        strategy: ``ddp`` or ``fsdp`` where several processes train.
    """

    steps: int
    lr: float
    warmup: int = 0
    schedule: str = "cosine"
    min_lr_ratio: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float | None = 1.0
    eval_every: int | None = None
    log_every: int | None = None
    checkpoint_every: int | None = None
    checkpoint_seconds: float | None = 30.0
    precision: str = "fp32"
    grad_accumulation: int = 1
    strategy: str = "ddp"

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("strategy", self.strategy, STRATEGIES)
        for name, low in (("steps", 1), ("warmup", 0), ("eval_every", 1), ("log_every", 1), ("checkpoint_every", 1),
                          ("grad_accumulation", 1)):  # fmt: skip
            value = getattr(self, name)
            optional = name.endswith("_every") and value is None
            if not optional and (type(value) is not int or value < low):
                raise ArgumentValueError(f"{name} must be an int of at least {low}, got {value!r}")
        for name in ("lr", "min_lr_ratio", "eps", "weight_decay"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ArgumentValueError(f"{name} must be finite and not negative, got {getattr(self, name)!r}")
        if self.clip is not None and not self.clip > 0.0:
            raise ArgumentValueError(f"clip must be positive or None, got {self.clip!r}")


#: Fields that may differ between a run and its continuation: they do not change what is computed.
FREE_FIELDS = ("log_every", "checkpoint_every", "checkpoint_seconds", "strategy")
