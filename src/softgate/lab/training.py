"""The training loop of every reproduction: one process or many, and a kill at any moment loses nothing but time.

After a kill, the same call with ``run.resume`` gives the bit-identical loss curve, weights and figures, on the same
machine with the same number of threads and processes.
"""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softgate.errors import ArgumentTypeError, StateError
from softgate.lab import distributed, optimizers, resume, seeds
from softgate.lab.cell import CellRun
from softgate.lab.checkpoint import Checkpoints, from_bytes, to_bytes
from softgate.lab.files import folder_lock
from softgate.lab.history import History
from softgate.lab.interrupts import Interrupted, SignalFlag, deferred_signals
from softgate.lab.schedules import lr_factor
from softgate.lab.train_config import FREE_FIELDS, TrainConfig

__all__ = ["Interrupted", "TrainConfig", "fit"]

#: What a step function returns: the mean loss over its batch, and optionally figures to record beside it.
StepResult = Tensor | tuple[Tensor, Mapping[str, Tensor | float]]


def fit(
    model: nn.Module,
    step_loss: Callable[[nn.Module, Any], StepResult],
    config: TrainConfig,
    *,
    batches: Callable[[int], Any],
    run: CellRun | None = None,
    optimizer: optimizers.OptimizerLike | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    name: str = "fit",
    state: Mapping[str, resume.Restorable] | None = None,
    stop_when: Callable[[Mapping[str, float]], bool] | None = None,
    batch_weight: Callable[[Any], float] | None = None,
) -> dict[str, list[float]]:
    """Train ``model`` in place.

    Under ``torchrun`` or ``accelerate launch`` all processes call it alike and each computes on its slice of every
    batch; rank 0 logs and writes the checkpoints, which any number of processes can continue.

    Args:
        model: what to train; moved to ``run.device``.
        step_loss: ``(model, batch) -> loss``, the mean over the batch's rows, or ``(loss, figures)``.
        config: how to train.
        batches: ``step -> batch``, the whole batch of update ``step`` (from 0), the same whenever it is called: draw
            from ``seeds.generator(seed, "data", step)``.
        run: folder for checkpoints and live figures, seed, threads, device, whether to resume; None keeps nothing.
        optimizer: a ready optimizer, or a function that makes one from the parameters; AdamW by default. The rate of a
            parameter group that holds ``schedule="constant"`` stays as it is.
        evaluate: ``model -> figures``, called in eval mode, without gradients, on a random stream of its own.
        name: tells apart several ``fit`` of one run.
        state: generators and other objects to save and restore besides model and optimizer.
        stop_when: ends the run after an evaluation whose figures it accepts.
        batch_weight: weight of a slice of a batch where that is not its number of rows (its unmasked tokens, say); the
            loss and the figures of the slices are averaged with it.

    Returns:
        ``step``, ``loss``, ``lr`` and the step figures, one entry per update; ``eval_step`` and the figures of
        ``evaluate``, one per evaluation.

    Raises:
        Interrupted: SIGINT or SIGTERM arrived; the step was finished and a checkpoint written.
        CheckpointError: a checkpoint cannot be written, or none of those to resume from fits or is intact.
        StateError: another process trains in the same folder, or this run has used ``name`` before.
    """
    device = run.device if run else str(next((p.device for p in model.parameters()), "cpu"))
    world = distributed.join(device)
    model.to(world.device).train()
    with ExitStack() as stack:
        if run is not None:
            _claim_name(run, name)
            stack.enter_context(_threads(run.threads))
            if world.is_main:
                stack.enter_context(folder_lock(run.folder / "checkpoints" / name))
        trainer = _Trainer(model, step_loss, config, batches, run, world)
        trainer.evaluate, trainer.stop_when, trainer.batch_weight = evaluate, stop_when, batch_weight
        trainer.set_up(optimizer, name, dict(state or {}))
        trainer.train(stack.enter_context(deferred_signals()))
        return trainer.history.export(trainer.step, trainer.lr)


_used_names: dict[int, tuple[weakref.ref[CellRun], set[str]]] = {}


def _claim_name(run: CellRun, name: str) -> None:
    """Two trainings under one name would resume from each other's checkpoints."""
    reference, names = _used_names.get(id(run), (None, set()))
    if reference is None or reference() is not run:
        reference, names = weakref.ref(run), set()
        _used_names[id(run)] = (reference, names)
    if name in names:
        raise StateError(f"this run has already called fit(name={name!r}); give every fit of a run its own name")
    names.add(name)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Sums depend on how many threads share them, so a run trains with the number it was given."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Trainer:
    """State of one ``fit``; ``step`` counts finished updates and is the position in the data."""

    evaluate: Callable[[nn.Module], Mapping[str, float]] | None
    stop_when: Callable[[Mapping[str, float]], bool] | None
    batch_weight: Callable[[Any], float] | None

    def __init__(
        self,
        model: nn.Module,
        step_loss: Callable[[nn.Module, Any], StepResult],
        config: TrainConfig,
        batches: Callable[[int], Any],
        run: CellRun | None,
        world: distributed.World,
    ) -> None:
        self.model, self.config, self.batches, self.run, self.world = model, config, batches, run, world
        self.step, self.finished = 0, False
        self.history = History(config.steps, world)
        self.seed = run.seed if run else 0
        self.forward, self.context = distributed.distribute(model, step_loss, config.strategy, world)
        self.log_every = config.log_every or max(1, config.steps // 100)
        self.cut = world.size * config.grad_accumulation > 1
        self.clock = time.monotonic()

    def set_up(self, optimizer: optimizers.OptimizerLike | None, name: str, state: dict[str, Any]) -> None:
        """Make the optimizer, then continue from a checkpoint or clear the way for new ones."""
        config = self.config
        if optimizers.is_ready(optimizer) and config.strategy == "fsdp" and self.world.size > 1:
            raise ArgumentTypeError("under fsdp, which replaces the parameters, optimizer must be a function of them")
        self.optimizer = optimizers.make_optimizer(
            self.model,
            optimizer,
            lambda parameters: optimizers.adamw(
                parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
            ),
        )
        self.base_lrs = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.clipped = [p for p in self.model.parameters() if p.requires_grad]
        self.state = state
        if self.world.rank:  # dropout must differ between processes
            seeds.seed_everything(seeds.derive(self.seed, "rank", self.world.rank))
        if self.run is None:
            return
        self.checkpoints = Checkpoints(self.run.folder / "checkpoints" / name)
        if self.run.resume:
            self.restore()
        elif self.world.is_main:
            self.checkpoints.clear()

    def lr(self, step: int) -> float:
        """Learning rate of the first parameter group at update ``step``."""
        return self.base_lrs[0] * self.factor(step)

    def factor(self, step: int) -> float:
        """Schedule at update ``step``."""
        c = self.config
        return lr_factor(step, steps=c.steps, warmup=c.warmup, schedule=c.schedule, min_ratio=c.min_lr_ratio)

    def train(self, signals: SignalFlag) -> None:
        """Update until the end, a stop or a signal."""
        steps, run = self.config.steps, self.run
        self.clock = time.monotonic()
        while not self.finished:
            self.update()
            self.finished = self.step >= steps
            self.evaluate_if_due()
            if run and (self.step % self.log_every == 0 or self.finished):
                self.log()
            signum, due = self.decide(signals)
            if run and due:
                self.save()
            if signum:
                raise Interrupted(signum)

    def update(self) -> None:
        """One optimizer step."""
        factor = self.factor(self.step)
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            lr = base if group.get("schedule") == "constant" else base * factor
            if group["lr"] != lr:
                optimizers.set_lr(group, lr)
        batch = self.batches(self.step)
        if self.world.device.type != "cpu":
            batch = distributed.map_tensors(batch, lambda tensor: tensor.to(self.world.device, non_blocking=True))
        self.optimizer.zero_grad()
        loss, figures = self.gradient(batch)
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self.clipped, self.config.clip)
        self.optimizer.step()
        self.history.record(self.step, loss, figures)
        self.step += 1

    def gradient(self, batch: Any) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """Gradient of the batch's mean loss; returns this process's share of the loss and of the figures."""
        if not self.cut:
            loss, figures = self.loss(batch)
            loss.backward()
            return loss.detach(), figures
        count, size = self.config.grad_accumulation, self.world.size
        pieces = distributed.shares(batch, size * count, self.batch_weight)
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        sums: dict[str, Tensor | float] = {}
        for index, (piece, share) in enumerate(pieces[self.world.rank * count :][:count]):
            with self.context(index == count - 1):
                loss, figures = self.loss(piece)
                (loss * (share * size)).backward()  # DDP and FSDP divide the sum over processes by their number
            if share:
                total += loss.detach() * share
            for name, value in figures.items():
                value = value.detach() if isinstance(value, Tensor) else value
                sums[name] = sums.get(name, 0.0) + (value * share if share else 0.0)
        return total, sums

    def loss(self, batch: Any) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        """Run the step function, under autocast where asked for."""
        with self.autocast():
            result = self.forward(batch)
        loss, figures = result if isinstance(result, tuple) else (result, {})
        if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
            raise ArgumentTypeError(f"step_loss must return a scalar tensor with a gradient, got {loss!r}")
        return loss, figures

    def autocast(self) -> AbstractContextManager[Any]:
        """Context of the forward pass."""
        if self.config.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.world.device.type, dtype=torch.bfloat16)

    def evaluate_if_due(self) -> None:
        """Evaluate after every ``eval_every`` updates and at the end; ``stop_when`` may make this the end."""
        every = self.config.eval_every
        if self.evaluate is None or not (self.finished or (every and self.step % every == 0)):
            return
        self.model.eval()
        # a stream of its own: how often one evaluates must not change the training
        with seeds.isolated_rng(seeds.derive(self.seed, "evaluate", self.step)), torch.no_grad(), self.autocast():
            figures = {name: float(value) for name, value in self.evaluate(self.model).items()}
        self.model.train()
        if self.world.size > 1:  # ranks must not disagree on stopping for the last bit of a figure
            values = self.world.gather(torch.tensor(list(figures.values()), dtype=torch.float64))[0].tolist()
            figures = dict(zip(figures, values, strict=True))
        self.history.evaluated(self.step, figures)
        if self.run and self.world.is_main:
            self.run.log(self.step, self.config.steps, **figures)
        self.finished = self.finished or bool(self.stop_when and self.stop_when(figures))

    def log(self) -> None:
        """Report live figures; the only regular wait for the device."""
        self.history.settle(self.step)
        if self.run and self.world.is_main:
            self.run.log(self.step, self.config.steps, lr=self.lr(self.step - 1), **self.history.last(self.step))

    def decide(self, signals: SignalFlag) -> tuple[int, bool]:
        """The signal to obey (0 if none) and whether to write a checkpoint; the same in all processes."""
        every, seconds = self.config.checkpoint_every, self.config.checkpoint_seconds
        overdue = seconds is not None and time.monotonic() - self.clock >= seconds
        signum = signals.signum
        if self.world.size > 1:
            signum, overdue = self.world.agree(torch.tensor([signum, int(overdue)])).tolist()
        on_step = every is not None and self.step % every == 0
        return signum, bool(overdue or on_step or self.finished or signum)

    def save(self) -> None:
        """Write a checkpoint; every process contributes, rank 0 writes."""
        self.history.settle(self.step)
        generators = [seeds.rng_state()]
        if self.world.size > 1:
            generators = [from_bytes(data) for data in self.world.gather_bytes(to_bytes(generators[0]))]
        content = {
            "step": self.step,
            "finished": self.finished,
            "made_by": self.identity(),
            "threads": torch.get_num_threads(),
            "model": distributed.full(self.model.state_dict()),
            "optimizer": distributed.full(self.optimizer.state_dict()),
            "generators": generators,
            "state": {name: resume.state_of(item) for name, item in self.state.items()},
            "history": self.history.state(self.step),
        }
        if self.world.is_main:
            self.checkpoints.save(content)
        self.clock = time.monotonic()

    def restore(self) -> None:
        """Continue from the newest good checkpoint, if there is one; rank 0 decides which that is."""
        content = self.checkpoints.load() if self.world.is_main else None
        if self.world.size > 1:
            chosen = self.world.from_main(str(self.checkpoints.newest or ""))
            if not self.world.is_main and chosen:
                content = self.checkpoints.load(Path(chosen))
        if content is None:
            return
        resume.check_identity(content["made_by"], self.identity(), self.checkpoints.newest)
        if content["threads"] != torch.get_num_threads():
            warnings.warn(
                f"resuming with {torch.get_num_threads()} torch threads a run made with {content['threads']}: "
                "the continuation is correct but not bit-identical",
                stacklevel=3,
            )
        own = self.model.state_dict()
        self.model.load_state_dict({k: distributed.like(v, own[k]) for k, v in content["model"].items()})
        optimizers.load_optimizer(self.optimizer, distributed.like_optimizer(content["optimizer"], self.optimizer))
        for name, item in self.state.items():
            resume.restore_state(item, content["state"][name])
        if self.world.rank < len(content["generators"]):
            seeds.restore_rng_state(content["generators"][self.world.rank])
        self.history.restore(content["step"], content["history"])
        self.step, self.finished = content["step"], content["finished"]

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must have in common with the run that continues from it."""
        config = {key: value for key, value in asdict(self.config).items() if key not in FREE_FIELDS}
        run = self.run and {key: getattr(self.run, key) for key in ("paper", "scale", "cell", "seed", "config")}
        tensors = {key: f"{tuple(value.shape)} {value.dtype}" for key, value in self.model.state_dict().items()}
        parts = {"config": config, "run": run, "model": tensors, "optimizer": type(self.optimizer).__name__,
                 "state": sorted(self.state)}  # fmt: skip
        return resume.plain(parts)
