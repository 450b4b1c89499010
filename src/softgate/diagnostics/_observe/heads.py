"""How much a small classifier head can amplify: a bound on its Lipschitz constant."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from softgate.activations import GroupSort, Householder, MaxMin

__all__: list[str] = []

#: What the last layers are called in transformers, timm and plain models.
_NAMES = ("classifier", "score", "head", "fc", "lm_head", "qa_outputs", "out_proj", "output")
#: Largest head that is looked at, in weights: its Gram matrix is decomposed.
LARGEST = 1 << 22
#: Lipschitz constants of activations; of elementwise ones the largest slope. GELU at x = √2, SiLU at x ≈ 2.4.
_SLOPES: dict[type[nn.Module], float] = {
    nn.ReLU: 1.0, nn.Tanh: 1.0, nn.Sigmoid: 0.25, nn.Softplus: 1.0, nn.Identity: 1.0, nn.Dropout: 1.0,
    nn.Flatten: 1.0, nn.GELU: 1.12891, nn.SiLU: 1.09985,
    GroupSort: 1.0, MaxMin: 1.0, Householder: 1.0,
}  # fmt: skip


def small_heads(model: nn.Module) -> Iterator[tuple[str, nn.Module, list[Tensor]]]:
    """Name, module and weight matrices of each head that is made of linear layers and maps of known slope."""
    named = [(name, module) for name, module in model.named_modules() if name in _NAMES]
    if isinstance(model, nn.Linear | nn.Sequential):
        named.append(("", model))
    for name, module in named:
        parts = list(module) if isinstance(module, nn.Sequential) else [module]
        weights = [part.weight for part in parts if isinstance(part, nn.Linear)]
        known = all(isinstance(part, nn.Linear) or type(part) in _SLOPES for part in parts)
        if weights and known and not any(w.is_meta for w in weights) and sum(w.numel() for w in weights) <= LARGEST:
            yield name or type(module).__name__, module, weights


@torch.no_grad()
def lipschitz_product(module: nn.Module, weights: list[Tensor]) -> float:
    """Product of the spectral norms and of the slopes between them: exact for one linear layer, else from above."""
    bound = 1.0
    for weight in weights:
        wide = weight.detach().double()
        gram = wide @ wide.T if wide.shape[0] <= wide.shape[1] else wide.T @ wide
        bound *= float(torch.linalg.eigvalsh(gram)[-1].clamp_min(0.0).sqrt())
    for part in module if isinstance(module, nn.Sequential) else ():
        bound *= _SLOPES.get(type(part), 1.0)
    return bound
