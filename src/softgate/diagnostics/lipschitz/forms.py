r"""The matrix inequality behind a Lipschitz bound, for any network of linear maps and activations.

With the change x of the input and the unknown changes δ of all activations, z = (x, δ), everything is linear: what the
activations look at is ``seen`` z, the output ``output`` z. A multiplier λ ≥ 0 per group turns its |δ| ≤ |seen z| into

    |output z|² ≤ ρ |x|²    if    ρ |x|² + Σ λ_j (|δ_j|² - |seen_j z|²) - |output z|² ≥ 0  for all z,

which is one positive semidefinite matrix; given λ, the least ρ is an eigenvalue. In the maximum norm, for one output,
ρ |x|² becomes Σ μ_k x_k² and the bound is (Σ μ + t) / 2, t the least number with Σ μ_k x_k² + … - (output z)² / t ≥ 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__: list[str] = []


@dataclass(frozen=True)
class Form:
    """See the module.

    Attributes:
        seen: (k, n + k), what the activations look at.
        output: (p, n + k).
        inputs: n.
        group: (k,), group of every entry of δ.
        layers: how many entries of δ the layers have, in the order of evaluation; an implicit layer sees its own.
    """

    seen: Tensor
    output: Tensor
    inputs: int
    group: Tensor
    layers: tuple[int, ...]

    @property
    def groups(self) -> int:
        """Number of multipliers."""
        return int(self.group.max()) + 1 if len(self.group) else 0

    @property
    def is_zero(self) -> bool:
        """Whether the output does not depend on the input."""
        return self.inputs == 0 or not bool(self.output.any())

    def spread(self, multipliers: Tensor) -> Tensor:
        """The multiplier of every entry of δ."""
        return multipliers[self.group]

    def slack(self, multipliers: Tensor, output: Tensor) -> Tensor:
        """Σ λ_j (|δ_j|² - |seen_j z|²) - |output z|² as a matrix, (n + k, n + k)."""
        weights = self.spread(multipliers)
        own = torch.cat((weights.new_zeros(self.inputs), weights))
        return torch.diag(own) - self.seen.mT @ (weights[:, None] * self.seen) - output.mT @ output

    def least_squared(self, multipliers: Tensor) -> float:
        """The least ρ that the multipliers prove, infinite if they prove none."""
        if self.is_zero:
            return 0.0
        rest = self._eliminated(self.slack(multipliers, self.output))
        if rest is None:
            return math.inf
        return max(0.0, float(torch.linalg.eigvalsh(-rest)[-1]))

    def least_absolute(self, multipliers: Tensor, weights: Tensor) -> float:
        """The least bound in the maximum norm that multipliers and input weights μ prove; scaled for the best."""
        if self.is_zero:
            return 0.0
        matrix = self.slack(multipliers, self.output[:0])
        matrix[range(self.inputs), range(self.inputs)] += weights
        scale = matrix.diagonal()
        if not bool((scale > 0).all()):
            return math.inf
        factor, failed = torch.linalg.cholesky_ex(matrix * (scale.rsqrt()[:, None] * scale.rsqrt()))
        if int(failed):
            return math.inf
        solved = torch.linalg.solve_triangular(factor, (self.output * scale.rsqrt()).mT, upper=False)
        return math.sqrt(float(solved.square().sum()) * float(weights.sum()))

    def _eliminated(self, matrix: Tensor) -> Tensor | None:
        """The Schur complement on x; None where the part on δ is not positive definite."""
        n = self.inputs
        inner = matrix[n:, n:]
        scale = inner.diagonal()
        if not bool((scale > 0).all()):
            return None
        shrink = scale.rsqrt()
        factor, failed = torch.linalg.cholesky_ex(inner * (shrink[:, None] * shrink))
        if int(failed):
            return None
        solved = torch.linalg.solve_triangular(factor, shrink[:, None] * matrix[n:, :n], upper=False)
        return matrix[:n, :n] - solved.mT @ solved

    def pruned(self) -> tuple[Form, Tensor]:
        """Without the groups that see nothing and therefore never change; and the numbers of those that stay."""
        kept = torch.ones(len(self.group), dtype=torch.bool)
        while True:
            columns = torch.cat((kept.new_ones(self.inputs), kept))
            alive = torch.zeros(self.groups, dtype=torch.bool)
            alive[self.group[self.seen[:, columns].ne(0).any(1) & kept]] = True
            if bool((alive[self.group] == kept).all()):
                break
            kept = kept & alive[self.group]
        layers = tuple(int(part.sum()) for part in kept.split(list(self.layers)))
        stay, group = self.group[kept].unique(return_inverse=True)
        seen, output = self.seen[kept][:, columns], self.output[:, columns]
        return replace(self, seen=seen, output=output, group=group, layers=layers), stay

    def without_idle_inputs(self) -> Form:
        """Without the inputs that nothing looks at."""
        used = torch.cat((self.seen[:, : self.inputs], self.output[:, : self.inputs])).ne(0).any(0)
        columns = torch.cat((used, used.new_ones(len(self.group))))
        return replace(self, seen=self.seen[:, columns], output=self.output[:, columns], inputs=int(used.sum()))


def start(form: Form, contraction: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Multipliers that prove some bound, and the matrix that must stay below the input's part.

    From the last layer to the first: multipliers large enough for what later layers and the output ask of a layer, and
    what the layer then asks of those before it.

    Args:
        form: a form without idle groups.
        contraction: for an implicit layer, multipliers with which it is a contraction.

    Returns:
        λ, (groups,), and S, (n, n), with Σ λ_j (|δ_j|² - |seen_j z|²) - |output z|² ≥ -x^T S x.
    """
    multipliers = torch.ones(form.groups, dtype=torch.float64)
    asked = form.output.mT @ form.output
    if contraction is not None:
        return _implicit_start(form, contraction, asked)
    end = form.inputs + len(form.group)
    for layer in reversed(form.layers):
        begin = end - layer
        own = asked[begin:end, begin:end]
        if layer:
            size = float(torch.linalg.eigvalsh(own)[-1])
            level = 2.0 * max(size, 1e-8 * float(asked.diagonal()[:begin].max()), 1e-300)
            rows = slice(begin - form.inputs, end - form.inputs)
            multipliers[form.group[rows]] = level
            margin = level * torch.eye(layer, dtype=torch.float64) - own
            cross = asked[:begin, begin:end]
            seen = form.seen[rows, :begin]
            asked = asked[:begin, :begin] + cross @ torch.linalg.solve(margin, cross.mT) + level * seen.mT @ seen
        end = begin
    return multipliers, asked


def _implicit_start(form: Form, contraction: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
    n = form.inputs
    inner = form.slack(contraction, form.output[:0])[n:, n:]
    values, vectors = torch.linalg.eigh(inner)
    root = vectors * values.clamp_min(1e-300).rsqrt()
    size = float(torch.linalg.eigvalsh(root.mT @ asked[n:, n:] @ root)[-1])
    multipliers = max(2.0 * size, 1.0) * contraction
    rest = form._eliminated(form.slack(multipliers, form.output))
    return multipliers, torch.full((n, n), math.inf, dtype=torch.float64) if rest is None else -rest
