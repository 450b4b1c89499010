"""Whole groups in every mini-batch: what listwise objectives need and TRL's shuffling of rows does not keep."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softgate.errors import ArgumentValueError, StateError

__all__ = ["GroupIntegrityMixin"]


class GroupIntegrityMixin:
    """Adds ``group_id`` to the inputs of the loss and keeps the rows of a group together, in contiguous rows.

    Mix in before a trainer that derives from ``trl.GRPOTrainer``.
    """

    keep_groups: bool = False
    args: Any
    _buffered_inputs: Any

    def check_groups(self) -> None:
        """Raise unless the batch of every process holds whole groups.

        Raises:
            ArgumentValueError: the batch per device is no multiple of the answers per prompt.
        """
        sizes = {"per_device_train_batch_size": self.args.num_generations}
        if self.args.eval_strategy != "no":
            sizes["per_device_eval_batch_size"] = self.args.num_generations_eval or self.args.num_generations
        for name, group in sizes.items():
            batch = getattr(self.args, name)
            if batch % group:
                raise ArgumentValueError(
                    f"{name} must be a multiple of the answers per prompt ({group}) to keep groups whole, got {batch}"
                )

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        if self.keep_groups:
            batch["group_id"] = self._group_ids(batch["prompt_ids"])
            self._whole_batch = batch
        return batch

    def _group_ids(self, prompt_ids: Tensor) -> Tensor:
        training = self.model.training  # type: ignore[attr-defined]
        group = self.args.num_generations if training else (self.args.num_generations_eval or self.args.num_generations)
        rows = prompt_ids.shape[0]
        if rows % group:
            raise StateError(f"{rows} rows do not make whole groups of {group}")
        grouped = prompt_ids.view(rows // group, group, -1)
        if not bool((grouped == grouped[:, :1]).all()):
            raise StateError(f"the rows of a batch are not ordered by prompt, {group} answers each")
        return torch.arange(rows, device=prompt_ids.device) // group

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        self._whole_batch = None
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)  # type: ignore[misc]
        whole = self._whole_batch
        self._whole_batch = None
        if whole is None or not self.model.training:  # type: ignore[attr-defined]
            return inputs
        self._buffered_inputs = _split_groups(whole, self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]  # type: ignore[attr-defined]

    _whole_batch: dict[str, Any] | None = None


def _split_groups(batch: dict[str, Any], parts: int) -> list[dict[str, Any]]:
    """The batch in ``parts`` of equal size, groups in random order."""
    from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

    group_id = batch["group_id"]
    groups = int(group_id[-1]) + 1
    order = torch.randperm(groups)[:, None] * (len(group_id) // groups) + torch.arange(len(group_id) // groups)
    order = order.flatten()

    def permute(value: Any) -> Any:
        if value is None or (isinstance(value, Tensor) and value.ndim == 0):
            return value
        return value[order.to(value.device)] if isinstance(value, Tensor) else [value[i] for i in order]

    permuted = {name: permute(value) for name, value in split_pixel_values_by_grid(batch).items()}
    split: list[Any] = split_tensor_dict(permuted, parts)
    return [unsplit_pixel_values_by_grid(part) for part in split]
