"""Proof, before anything is trained, that a model's layers take prompts as they should."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from softgate.errors import SoftgateError, StateError

if TYPE_CHECKING:
    from softgate.models.iapt.model import IAPTModel

__all__ = ["prove"]

#: How far decoding from a cache may be from computing everything at once, as a share of the largest logit.
_ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-3}
_ROUNDING_16_BIT = 5e-2


@torch.no_grad()
def prove(wrapped: IAPTModel) -> None:
    """Raise unless prompts act on the last logits, and act alike with and without a cache."""
    model: Any = wrapped.model
    if any(parameter.is_meta for parameter in model.parameters()):
        raise StateError("the model has no weights yet (meta device): load them first")
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        device = model.get_input_embeddings().weight.device
        ids = (torch.arange(4, device=device) % model.config.vocab_size)[None]
        instruction = torch.tensor([[1, 1, 1, 0]], device=device)
        whole = _last(model(ids, instruction_mask=instruction, use_cache=False))
        first = model(ids[:, :3], use_cache=True)
        step = _last(model(ids[:, 3:], past_key_values=first.past_key_values, use_cache=True))
        plain = _last(model(ids, adapter_names=[None], use_cache=False))
    except SoftgateError:
        raise
    except Exception as error:  # whatever a foreign model stumbles over
        raise StateError(f"{type(model).__name__} cannot have prompts: {error}") from error
    finally:
        for module, mode in training.items():
            module.training = mode
    size = float(whole.abs().max())
    allowed = _ROUNDING.get(whole.dtype, _ROUNDING_16_BIT) * size
    # written so that NaN fails
    if not float((whole - step).abs().max()) <= allowed:
        raise StateError(f"{type(model).__name__} cannot have prompts: decoding from a cache changes its logits")
    if torch.equal(whole, plain):
        raise StateError(f"{type(model).__name__} cannot have prompts: they do not reach its logits")


def _last(output: Any) -> Tensor:
    logits: Tensor = output.logits[:, -1]
    return logits
