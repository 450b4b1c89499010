"""The prompt generators of one task, for all layers of a model."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from softgate.errors import check_choice
from softgate.models.iapt.config import IAPTConfig
from softgate.models.iapt.generator import PromptGenerator, StaticPrompts, activation
from softgate.models.iapt.selection import Selection

__all__ = ["Part", "PromptAdapter", "prompts_of"]

#: What of an adapter learns.
Part = Literal["all", "generator", "activation", "none"]


class PromptAdapter(nn.Module):
    """One generator for each layer that gets prompts.

    Args:
        config: sizes and parts.
        width: of the model.
        num_layers: of the model.
    """

    def __init__(self, config: IAPTConfig, width: int, num_layers: int) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleDict()
        indices = config.layer_indices(num_layers)
        size = {"none": 1, "all": len(indices)}[config.share] if isinstance(config.share, str) else config.share
        owner: PromptGenerator | None = None
        for position, index in enumerate(indices):
            if config.prompt == "static":
                self.layers[str(index)] = StaticPrompts(width, config.num_tokens)
                continue
            chosen = activation(config.activation, config.degrees, config.version, config.activation_init)
            generator = PromptGenerator(
                width, config.bottleneck, config.num_tokens, chosen, share=owner if position % size else None
            )
            owner = generator if position % size == 0 else owner
            self.layers[str(index)] = generator
        self.learn({"joint": "all", "fixed": "generator", "bilevel": "generator"}[config.activation_training])

    def generator(self, index: int) -> PromptGenerator | StaticPrompts | None:
        """The generator of a layer, None if that layer gets no prompts."""
        return self._modules["layers"]._modules.get(str(index))  # type: ignore[union-attr,return-value]

    def learn(self, part: str) -> None:
        """Choose what gets gradients, see :meth:`softgate.models.IAPTModel.learn`."""
        check_choice("part", part, ("all", "generator", "activation", "none"))
        for name, parameter in self.named_parameters():
            is_activation = ".activation." in name
            parameter.requires_grad_(part == "all" or part == ("activation" if is_activation else "generator"))


def prompts_of(
    adapters: nn.ModuleDict, index: int, hidden: Tensor, selection: Selection
) -> tuple[Tensor | None, Tensor | None]:
    """Prompts (B, L, D) of one layer, and which of them are there, (B, L) bool or None for all.

    Rows without prompts, or with fewer than others, are filled up with zeros that nobody may see.
    """
    parts: list[tuple[Tensor | None, Tensor]] = []
    for name, rows in selection.groups:
        adapter = adapters[name]
        assert isinstance(adapter, PromptAdapter)
        generator = adapter.generator(index)
        if generator is not None:
            h, mask = (hidden, selection.instruction) if rows is None else (hidden[rows], selection.instruction[rows])
            parts.append((rows, generator(h, mask)))
    if not parts:
        return None, None
    if parts[0][0] is None:
        return parts[0][1], None
    length = max(part.shape[1] for _, part in parts)
    prompts = hidden.new_zeros(len(hidden), length, hidden.shape[-1])
    visible = torch.zeros(len(hidden), length, dtype=torch.bool, device=hidden.device)
    for rows, part in parts:
        assert rows is not None
        prompts = prompts.index_copy(0, rows, functional.pad(part, (0, 0, 0, length - part.shape[1])))
        visible[rows, : part.shape[1]] = True
    everywhere = sum(len(part) for _, part in parts) == len(hidden) and all(p.shape[1] == length for _, p in parts)
    return prompts, None if everywhere else visible
