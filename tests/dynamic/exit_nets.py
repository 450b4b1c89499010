"""Small networks with exits that the tests share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from softgate.dynamic import EarlyExit


class Planted(nn.Module):
    """A gate that opens for the rows whose largest logit is one of these classes."""

    def __init__(self, *classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, logits: Tensor) -> Tensor:
        found = torch.stack([logits.argmax(-1) == c for c in (-1, *self.classes)]).any(0)
        return torch.where(found, 20.0, -20.0)


def mlp(width: int = 12, blocks: int = 4, classes: int = 5, seed: int = 0, scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for _ in range(blocks):
        layers += [nn.Linear(width, width), nn.Tanh()]
    net = nn.Sequential(*layers, nn.Linear(width, classes))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= scale
    return net


def with_exits(width: int = 12, blocks: int = 4, classes: int = 5) -> EarlyExit:
    """An MLP with an exit after every block but the last; each random gate opens for a third of standard inputs."""
    net = mlp(width, blocks, classes)
    model = EarlyExit.from_sequential(net, [2 * place for place in range(1, blocks)], torch.zeros(1, width)).eval()
    with torch.no_grad():
        for head, gate in zip(model.heads, model.gates, strict=True):
            nn.init.normal_(head.weight, std=1.0)
            nn.init.normal_(gate.linear.weight, std=9.0)
        for gate, logits in zip(model.gates, model(torch.randn(500, width)).logits, strict=False):
            gate.linear.bias -= gate(logits).quantile(2 / 3)
    return model
