"""Training a dynamic network: predictors first, then all together, then the network under masks that stand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from softgate._checks import check_number, check_sizes
from softgate.dynamic.dynamic_network import DynamicNetwork
from softgate.dynamic.mask_loss import FTWTLoss
from softgate.errors import ArgumentValueError, StateError, bad_type

__all__ = ["DynamicTrainer"]

#: Where the rate of the network falls to a tenth, as shares of the training: epochs 81, 122 and 151 of 200.
MILESTONES = (0.405, 0.61, 0.755)
#: A batch of training: phase, images, labels.
Batch = tuple[str, Tensor, Tensor]


class DynamicTrainer:
    """Trains a network of :func:`softgate.dynamic.prune_dynamic` for its task under the masks that it predicts.

    First ``warm_up`` updates of the predictors alone, all filters passing, since predictors that know nothing would
    drop half of the filters. Then network and predictors together: cross-entropy plus the mask loss. For the last
    ``cooldown`` of the epochs predictors stand still and the network adapts to them.

    Batches, phases and rates depend on the step alone, and :meth:`state_dict` holds everything else: a training that is
    saved after any update and continued is bit for bit the one that was never stopped. :meth:`fit` is the plain loop;
    another loop can call :meth:`batch` and :meth:`loss_of` instead.

    Args:
        model: the network; trained already, with predictors that know nothing.
        cooldown: share of the epochs at the end in which predictors stand still.
        predictor_lr: rate of the predictors, constant.
        epochs: after the warm-up.
        batch_size: samples an update.
        lr: rate of the network at the start.
        milestones: shares of the epochs after which it falls to a tenth.
        momentum: of both.
        weight_decay: of the network alone.
        warm_up: updates of the predictors alone.
        augment: changes images (B, C, H, W) of a batch, given a generator; None leaves them as they are.
        seed: of the order of samples and of ``augment``.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: a number is out of range.

    Example:
        >>> from softgate.dynamic import prune_dynamic
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
        >>> model = prune_dynamic(net, r=0.9, example=torch.zeros(1, 1, 6, 6))
        >>> trainer = DynamicTrainer(model, epochs=2, batch_size=16, warm_up=2)
        >>> history = trainer.fit((torch.randn(32, 1, 6, 6), torch.randint(3, (32,))))
        >>> len(history), trainer.phase(0), trainer.phase(2), trainer.phase(4)
        (2, 'warm_up', 'masks', 'cooldown')

    Paper: Fire Together Wire Together, arXiv 2110.08232, training recipe.
    """

    data: tuple[Tensor, Tensor] | None

    def __init__(
        self,
        model: DynamicNetwork,
        cooldown: float = 0.5,
        predictor_lr: float = 0.1,
        *,
        epochs: int = 200,
        batch_size: int = 128,
        lr: float = 0.01,
        milestones: tuple[float, ...] = MILESTONES,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        warm_up: int = 150,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(model, DynamicNetwork):
            bad_type("model", model, "a DynamicNetwork, as prune_dynamic makes it")
        check_sizes(epochs=epochs, batch_size=batch_size)
        self.cooldown = check_number("cooldown", cooldown, low=0.0, high=1.0)
        check_number("warm_up", warm_up, low=0)
        for name, value in (("predictor_lr", predictor_lr), ("lr", lr), ("momentum", momentum)):
            check_number(name, value, low=0.0, high_open=True)
        check_number("weight_decay", weight_decay, low=0.0, high_open=True)
        if list(milestones) != sorted(milestones):
            raise ArgumentValueError(f"milestones must rise, got {list(milestones)}")
        self.model, self.loss = model, FTWTLoss()
        self.epochs, self.batch_size, self.warm_up, self.seed = epochs, batch_size, int(warm_up), seed
        self.lr, self.predictor_lr, self.milestones = lr, predictor_lr, tuple(milestones)
        self.momentum, self.weight_decay, self.augment = momentum, weight_decay, augment
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.data = None
        self._saved: Mapping[str, Any] | None = None

    @property
    def epoch_steps(self) -> int:
        """Updates an epoch."""
        if self.data is None:
            raise StateError("there is no data yet: call prepare(data) or fit(data)")
        return math.ceil(len(self.data[1]) / self.batch_size)

    @property
    def steps(self) -> int:
        """Updates of the whole training, the warm-up included."""
        return self.warm_up + self.epochs * self.epoch_steps

    def prepare(self, data: tuple[Tensor, Tensor]) -> None:
        """Take images (N, C, H, W) and labels (N,), and make the optimizer."""
        if not isinstance(data, tuple) or len(data) != 2 or not all(isinstance(part, Tensor) for part in data):
            bad_type("data", data, "a pair of tensors, images and labels")
        if len(data[0]) != len(data[1]) or len(data[1]) == 0:
            raise ArgumentValueError(f"data must be as many images as labels, got {len(data[0])} and {len(data[1])}")
        self.data = data
        self.optimizer = self.make_optimizer()

    def make_optimizer(self, _: Any = None) -> torch.optim.SGD:
        """SGD with a group for the network and one, whose rate stays, for the predictors."""
        predictors = list(self.model.predictors.parameters())
        own = {id(p) for p in predictors}
        network = [p for p in self.model.parameters() if id(p) not in own]
        groups = [
            {"params": network, "lr": self.lr, "weight_decay": self.weight_decay},
            {"params": predictors, "lr": self.predictor_lr, "weight_decay": 0.0, "schedule": "constant"},
        ]
        return torch.optim.SGD([group for group in groups if group["params"]], lr=self.lr, momentum=self.momentum)

    def progress(self, step: int) -> float:
        """Share of the epochs that are over at update ``step``, 0 in the warm-up."""
        return max(0.0, (step - self.warm_up) / (self.epochs * self.epoch_steps))

    def phase(self, step: int) -> str:
        """What update ``step`` trains: ``"warm_up"`` predictors, ``"masks"`` all, ``"cooldown"`` the network."""
        if step < self.warm_up:
            return "warm_up"
        return "masks" if self.progress(step) < 1.0 - self.cooldown else "cooldown"

    def batch(self, step: int) -> Batch:
        """Phase, images and labels of update ``step``; every epoch has an order of its own."""
        per_epoch = self.epoch_steps
        assert self.data is not None
        epoch, place = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.data[1]), generator=generator)
        rows = order[place * self.batch_size : (place + 1) * self.batch_size].to(self.data[1].device)
        images = self.data[0][rows]
        if self.augment is not None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step + 500_001)
            images = self.augment(images, generator)
        device = next(self.model.parameters()).device
        return self.phase(step), images.to(device), self.data[1][rows].to(device)

    def loss_of(self, batch: Batch) -> Tensor:
        """Loss of a batch; only what its phase trains gets a gradient."""
        phase, images, labels = batch
        self._arrange(phase)
        if phase == "warm_up":
            with self.model.masking("none"):
                self.model(images)
            return self.loss.masks(self.model)
        logits = self.model(images)
        return (
            self.loss(logits, labels, self.model) if phase == "masks" else nn.functional.cross_entropy(logits, labels)
        )

    def _arrange(self, phase: str) -> None:
        # a gradient of zero is not enough: only what has none is left alone by momentum and weight decay
        self.model.requires_grad_(phase != "warm_up")
        self.model.predictors.requires_grad_(phase != "cooldown")
        # in the warm-up normalisation must not learn from samples either
        self.model.train(phase != "warm_up")

    def rate(self, step: int) -> float:
        """Rate of the network at update ``step``."""
        progress = self.progress(step)
        return self.lr * 0.1 ** sum(progress >= milestone for milestone in self.milestones)

    def update(self) -> float:
        """One update; returns its loss."""
        self.optimizer.param_groups[0]["lr"] = self.rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss_of(self.batch(self.step))
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def end_epoch(self, validation: tuple[Tensor, Tensor], batch_size: int = 256) -> dict[str, float]:
        """``accuracy``, ``reduction`` of multiply-adds, ``mask_accuracy`` and ``dynamic_fraction`` on samples."""
        self.model.eval()
        right = 0
        device = next(self.model.parameters()).device
        for images, labels in zip(validation[0].split(batch_size), validation[1].split(batch_size), strict=True):
            right += int((self.model(images.to(device)).argmax(-1) == labels.to(device)).sum())
        stats = self.model.dynamic_stats()
        return {
            "accuracy": right / len(validation[1]),
            "reduction": stats.reduction,
            "mask_accuracy": stats.mask_accuracy,
            "dynamic_fraction": stats.dynamic_fraction,
        }

    def fit(
        self,
        train: tuple[Tensor, Tensor],
        validation: tuple[Tensor, Tensor] | None = None,
        on_epoch: Callable[[dict[str, Any]], object] | None = None,
    ) -> list[dict[str, Any]]:
        """Train, from the start or from where a loaded state stood; afterwards the model is in eval mode.

        Args:
            train: images (N, C, H, W) and labels (N,).
            validation: likewise, looked at after every epoch.
            on_epoch: gets the figures of every epoch; the place to save :meth:`state_dict`.

        Returns:
            Figures of every epoch after the warm-up: ``phase``, mean ``loss``, and those of :meth:`end_epoch`.

        Raises:
            ArgumentTypeError: data of another form.
            ArgumentValueError: no samples.
        """
        self.prepare(train)
        if self._saved is not None:
            self._restore(self._saved)
        losses: list[float] = []
        while self.step < self.steps:
            losses.append(self.update())
            done = self.step - self.warm_up
            if done > 0 and done % self.epoch_steps == 0:
                self._log(losses, validation)
                losses = []
                if on_epoch is not None:
                    on_epoch(self.history[-1])
        self.model.requires_grad_(True)
        self.model.eval()
        return self.history

    def _log(self, losses: list[float], validation: tuple[Tensor, Tensor] | None) -> None:
        figures = {} if validation is None else self.end_epoch(validation)
        mean = sum(losses) / len(losses)
        self.history.append({"phase": self.phase(self.step - 1), "loss": mean, **figures})

    def state_dict(self) -> dict[str, Any]:
        """Everything that a continuation needs but the data."""
        if self.data is None:
            raise StateError("there is no state yet: state_dict is for a training that has begun")
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": list(self.history),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue, at the next :meth:`fit`, from what :meth:`state_dict` gave."""
        self._saved = state

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(dict(state["optimizer"]))
        self.step, self.history = int(state["step"]), list(state["history"])
        self._saved = None
