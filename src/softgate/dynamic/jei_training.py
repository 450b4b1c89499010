"""Training heads and gates in turns, as the paper does, with a state that can be saved at any step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_number, check_sizes
from softgate.dynamic._warm_up import WarmUp
from softgate.dynamic.early_exit import EarlyExit, ExitFeatures, ExitOutput
from softgate.dynamic.feature_cache import Data, FeatureSource
from softgate.dynamic.jei_loss import JEILoss
from softgate.errors import ArgumentValueError, StateError, bad_type

__all__ = ["JEITrainer"]

#: A batch of training: phase, features, labels.
Batch = tuple[str, ExitFeatures, Tensor]


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4)


class JEITrainer:
    """Trains heads and gates of a network with exits for one price of computation.

    First a warm-up of the heads alone: each keeps its best weights by validation accuracy and stops after ``patience``
    epochs without gain. Then gates and heads take turns, ``swap_every`` updates each, every epoch beginning with the
    gates; whoever does not train is left alone by momentum and weight decay too.

    Batches, phases and learning rate depend on the step alone, and :meth:`state_dict` holds everything else: a training
    that is saved after any update and continued is bit for bit the one that was never stopped. :meth:`fit` is the plain
    loop; another loop can call :meth:`batch`, :meth:`loss_of` and :meth:`end_epoch` instead.

    Args:
        model: a network with exits.
        lam: price of the whole network in units of the loss; larger leaves earlier.
        swap_every: updates between two turns.
        epochs: of all, the warm-up included.
        warmup_epochs: most epochs of the warm-up, below ``epochs``.
        patience: epochs without gain after which a head of the warm-up stops.
        batch_size: rows an update.
        optimizer: makes an optimizer of a list of parameters; None is SGD of the paper: rate 0.01, momentum 0.9,
            decay 5e-4.
        min_lr_ratio: where the cosine of the learning rate ends, as a share of its start.
        cache_features: run the frozen backbone once, before training, instead of at every update.
        seed: of the order of samples.
        **loss_options: ``weighting``, ``pos_weight`` and ``objective`` of :class:`softgate.dynamic.JEILoss`.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a number is out of range.
        StateError: the backbone is not frozen.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> model = EarlyExit.from_sequential(net, cuts=[2], example=torch.zeros(1, 8))
        >>> x = torch.randn(64, 8)
        >>> trainer = JEITrainer(model, lam=0.7, epochs=3, warmup_epochs=1, batch_size=16)
        >>> history = trainer.fit((x, net(x).argmax(-1)), (x, net(x).argmax(-1)))
        >>> [epoch["phase"] for epoch in history]
        ['warmup', 'joint', 'joint']

    Paper: Jointly-Learned Exit and Inference for a Dynamic Neural Network, arXiv 2310.09163, section on training.
    """

    train_data: FeatureSource | None
    validation: FeatureSource | None

    def __init__(
        self,
        model: EarlyExit,
        lam: float,
        swap_every: int = 200,
        *,
        epochs: int = 12,
        warmup_epochs: int = 6,
        patience: int = 2,
        batch_size: int = 64,
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
        min_lr_ratio: float = 0.02,
        cache_features: bool = True,
        seed: int = 0,
        **loss_options: str,
    ) -> None:
        if not isinstance(model, EarlyExit):
            bad_type("model", model, "an EarlyExit")
        if not model.frozen:
            raise StateError(
                "the backbone must be frozen, EarlyExit(..., freeze=True): only heads and gates are trained"
            )
        check_sizes(swap_every=swap_every, epochs=epochs, patience=patience, batch_size=batch_size)
        check_number("warmup_epochs", warmup_epochs, low=0)
        if warmup_epochs >= epochs:
            raise ArgumentValueError(f"warmup_epochs must be below epochs, {epochs}, got {warmup_epochs}")
        self.model, self.loss = model, JEILoss(lam, **loss_options)
        self.swap_every, self.epochs, self.batch_size, self.seed = swap_every, epochs, batch_size, seed
        self.cache_features = cache_features
        self.min_lr_ratio = check_number("min_lr_ratio", min_lr_ratio, low=0.0, high=1.0)
        self.make_optimizer = optimizer or _sgd
        self.warm_up = WarmUp(model.heads, epochs=int(warmup_epochs), patience=patience)
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.train_data = self.validation = None
        self._saved: Mapping[str, Any] | None = None

    @property
    def learned(self) -> nn.ModuleDict:
        """Heads and gates, which are what is trained."""
        return nn.ModuleDict({"heads": self.model.heads, "gates": self.model.gates})

    @property
    def epoch_steps(self) -> int:
        """Updates an epoch."""
        assert self.train_data is not None
        return math.ceil(len(self.train_data) / self.batch_size)

    @property
    def steps(self) -> int:
        """Updates of the whole training."""
        return self.epochs * self.epoch_steps

    def prepare(self, train: Data, validation: Data) -> None:
        """Take the data, compute features where they are cached, and make the optimizer."""
        self.model.train()
        self.train_data = FeatureSource(self.model, train, cache=self.cache_features)
        self.validation = FeatureSource(self.model, validation, cache=self.cache_features)
        if min(len(self.train_data), len(self.validation)) == 0:
            raise ArgumentValueError("train and validation must hold at least one sample each")
        with torch.no_grad():
            self.model.exits(self.train_data.rows(torch.arange(1))[0])  # lazy heads find their widths
        self.optimizer = self.make_optimizer(list(self.learned.parameters()))
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]

    def phase(self, step: int) -> str:
        """What update ``step`` trains: ``"warmup"``, ``"gate"`` or ``"inference"``."""
        if self.warm_up.running:
            return "warmup"
        turn = step % self.epoch_steps // self.swap_every
        return ("gate", "inference")[turn % 2]

    def batch(self, step: int) -> Batch:
        """Phase, features and labels of update ``step``; every epoch has an order of its own."""
        assert self.train_data is not None
        epoch, place = divmod(step, self.epoch_steps)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.train_data), generator=generator)
        rows = order[place * self.batch_size : (place + 1) * self.batch_size]
        with torch.no_grad():
            features, labels = self.train_data.rows(rows)
        return self.phase(step), features, labels

    def loss_of(self, batch: Batch) -> Tensor:
        """Loss of a batch; only what its phase trains gets a gradient."""
        phase, features, labels = batch
        return self.loss(self._output(features, phase), labels, phase)

    def _output(self, features: ExitFeatures, phase: str) -> ExitOutput:
        # a gradient of zero is not enough: only what has none is left alone by momentum and weight decay
        self.model.gates.requires_grad_(phase == "gate")
        active = self.warm_up.active.tolist() if phase == "warmup" else [phase == "inference"] * len(self.model.heads)
        for head, trains in zip(self.model.heads, active, strict=True):
            head.requires_grad_(trains)
        return self.model.exits(features)

    def rate(self, step: int) -> float:
        """Factor on the learning rates at update ``step``: a cosine from 1 to ``min_lr_ratio``."""
        progress = min(1.0, step / max(1, self.steps - 1))
        return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))

    def update(self) -> float:
        """One update; returns its loss."""
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss_of(self.batch(self.step))
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def outputs(self, source: FeatureSource) -> tuple[ExitOutput, Tensor]:
        """All exits of all samples of ``source``, with their labels."""
        parts = [source.rows(rows) for rows in torch.arange(len(source)).split(4096)]
        pooled = tuple(torch.cat(columns) for columns in zip(*(f.pooled for f, _ in parts), strict=True))
        features = ExitFeatures(pooled, torch.cat([f.final_logits for f, _ in parts]))
        return self.model.exits(features), torch.cat([y for _, y in parts])

    def end_epoch(self) -> dict[str, Any]:
        """Look at the validation data: keep the best heads of the warm-up, weigh the gates' targets anew.

        Returns:
            ``phase``, ``accuracy`` and ``cost`` of the samples at their exits, ``exit_accuracy`` of every exit.
        """
        assert self.validation is not None
        self.model.eval()
        output, labels = self.outputs(self.validation)
        accuracy = (output.logits.argmax(-1) == labels).float().mean(1).tolist()
        warm = self.warm_up.running
        if warm:
            self.warm_up.end_epoch(accuracy[:-1])
            output, labels = self.outputs(self.validation)
        self.loss.update_pos_weight(output, labels)
        self.model.train()
        return {
            "phase": "warmup" if warm else "joint",
            "accuracy": float((output.y_logits.argmax(-1) == labels).float().mean()),
            "cost": output.mean_cost,
            "exit_accuracy": accuracy,
        }

    def fit(
        self, train: Data, validation: Data, on_epoch: Callable[[dict[str, Any]], object] | None = None
    ) -> list[dict[str, Any]]:
        """Train, from the start or from where a loaded state stood; afterwards the model is in eval mode.

        Args:
            train: (inputs, labels), an iterable of such batches, or what :func:`softgate.dynamic.cache_features` gave.
            validation: likewise; never the data on which results are reported.
            on_epoch: gets the figures of every epoch; the place to save :meth:`state_dict`.

        Returns:
            Figures of every epoch, see :meth:`end_epoch`.

        Raises:
            ArgumentTypeError: data of another form.
            ArgumentValueError: no samples.
        """
        self.prepare(train, validation)
        if self._saved is not None:
            self._restore(self._saved)
        while self.step < self.steps:
            self.model.train()
            self.update()
            if self.step % self.epoch_steps == 0:
                self.history.append(self.end_epoch())
                if on_epoch is not None:
                    on_epoch(self.history[-1])
        self.learned.requires_grad_(True)
        self.model.eval()
        return self.history

    def state_dict(self) -> dict[str, Any]:
        """Everything that a continuation needs but the backbone and the data."""
        if self.train_data is None:
            raise StateError("there is no state yet: state_dict is for a training that has begun")
        return {
            "step": self.step,
            "learned": self.learned.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "warm_up": self.warm_up.state_dict(),
            "positive": self.loss.positive,
            "history": self.history,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue, at the next :meth:`fit`, from what :meth:`state_dict` gave."""
        self._saved = state

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.learned.load_state_dict(state["learned"])
        self.optimizer.load_state_dict(dict(state["optimizer"]))
        self.warm_up.load_state_dict(state["warm_up"])
        self.loss.positive = state["positive"]
        self.step, self.history = int(state["step"]), list(state["history"])
        self._saved = None
