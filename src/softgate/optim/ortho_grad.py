"""OrthoGrad (perpGrad): remove from every gradient the part that only rescales its weights."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value, check_choice
from softgate.optim._projection import project
from softgate.registry import method

__all__ = ["OrthoGrad", "project_orthogonal_"]

SCOPES = ("tensor", "global")

#: Parameters that keep their gradient: the tensors themselves, or a predicate on a parameter.
Exclude = Callable[[Tensor], bool] | Iterable[Tensor] | None


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterable[tuple[tuple[Any, ...], dict[str, Any]]]:
    for scope in SCOPES:
        weights = [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in ((4, 3), (5,))]
        for weight in weights:
            weight.grad = torch.randn(weight.shape, dtype=dtype, generator=generator)
        yield (weights,), {"scope": scope}


def _bad_inputs() -> Iterable[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    weight = torch.ones(3, requires_grad=True)
    sparse = torch.ones(3, requires_grad=True)
    sparse.grad = torch.ones(3).to_sparse()
    for wrong in (3, None, 1.5, object(), torch.float32, [weight, 1.0], [None], ["w"], "w", [[weight]], [sparse]):
        yield (wrong,), {}, TypeError, "params"
    for wrong in ("row", "Tensor", "", "all"):
        yield ([weight],), {"scope": wrong}, ValueError, "scope"
    for wrong in (None, 1, True, ["tensor"]):
        yield ([weight],), {"scope": wrong}, TypeError, "scope"
    for wrong in (1, None, "yes", 0.0):
        yield ([weight],), {"rescale": wrong}, TypeError, "rescale"
    for wrong in (3, 1.0, [1.0], "w", [None]):
        yield ([weight],), {"exclude": wrong}, TypeError, "exclude"


@method(
    site="optim",
    family="custom",
    paper="stablemax",
    source="sec. 5, eq. 11 (projection); rescaling and per-tensor application as in the authors' OrthoGrad",
    variants={"default": {}, "projection only": {"rescale": False}},
    samples=_samples,
    bad_inputs=_bad_inputs,
    deviations=(
        "tensors with one entry are skipped: the authors' code freezes them and amplifies rounding noise",
        "a gradient parallel to its tensor up to rounding becomes 0; the authors' code rescales the rounding noise",
    ),
)
def project_orthogonal_(
    params: Tensor | Iterable[Tensor], *, rescale: bool = True, scope: str = "tensor", exclude: Exclude = None
) -> None:
    r"""Project gradients orthogonally to their parameters, in place; call it before ``optimizer.step()``.

    .. math:: g_\perp = g - \frac{\langle w, g\rangle}{\langle w, w\rangle} w, \qquad
              g \leftarrow \frac{\lVert g \rVert}{\lVert g_\perp \rVert}\, g_\perp

    Use it after ``GradScaler.unscale_`` and after the gradients were averaged over processes (DDP does that in the
    backward pass). Sharded parameters (FSDP2, ``DTensor``) are handled: their dot products are all-reduced, one
    collective for all tensors.

    Args:
        params: parameters with gradients; those without are skipped. Complex ones count as real vectors of their parts.
        rescale: give the projected gradient the norm of the original one, as the authors' code does; False is the
            plain projection of the paper.
        scope: ``"tensor"`` projects every tensor against itself, ``"global"`` all against the concatenated vector.
        exclude: parameters that keep their gradient: an iterable of tensors, or a predicate on a parameter.

    Raises:
        ArgumentTypeError: an argument has the wrong type, or a gradient is sparse; nothing was changed then.
        ArgumentValueError: ``scope`` is unknown, or a sharded gradient is placed unlike its parameter.

    With ``scope="tensor"`` a tensor with a single entry is always parallel to its gradient, so it is skipped and a
    warning says so. A zero gradient stays zero, a zero tensor leaves its gradient alone.

    Source: Prieto et al., Grokking at the Edge of Numerical Stability, arXiv 2501.04697, sec. 5.
    """
    params = _tensors("params", params)
    _check_options(rescale, scope)
    _project(_eligible(params, scope, _excluded(params, exclude)), rescale, scope)


def _tensors(name: str, values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if not isinstance(values, Iterable):
        bad_type(name, values, "an iterable of tensors")
    tensors = list(values)
    for value in tensors:
        if not isinstance(value, Tensor):
            bad_type(name, value, "an iterable of tensors")
    return tensors


def _check_options(rescale: Any, scope: Any) -> None:
    if not isinstance(rescale, bool):
        bad_type("rescale", rescale, "a bool")
    check_choice("scope", scope, SCOPES)


def _excluded(params: Iterable[Tensor], exclude: Any) -> set[Tensor]:
    if exclude is None:
        return set()
    if callable(exclude):
        return {p for p in params if exclude(p)}
    if not isinstance(exclude, Iterable):
        bad_type("exclude", exclude, "a predicate or an iterable of tensors")
    return set(_tensors("exclude", exclude))


def _eligible(params: Iterable[Tensor], scope: str, excluded: set[Tensor]) -> list[Tensor]:
    """Parameters to project; warns about single entries, which would lose their whole gradient."""
    kept = [p for p in params if p not in excluded]
    single = [p for p in kept if p.numel() == 1] if scope == "tensor" else []
    if single:
        warnings.warn(
            f"{len(single)} parameter(s) with a single entry are left out of the orthogonal projection: their gradient "
            "is always parallel to them; pass them in exclude to silence this warning",
            stacklevel=3,
        )
    return [p for p in kept if p.numel() != 1] if single else kept


def _project(params: list[Tensor], rescale: bool, scope: str) -> None:
    for p in params:
        if p.grad is not None and p.grad.layout is not torch.strided:
            raise ArgumentTypeError(f"params must have dense gradients, got layout {p.grad.layout} for a parameter of "
                                    f"shape {tuple(p.shape)}")  # fmt: skip
    with torch.no_grad():
        project(params, rescale=rescale, together=scope == "global")


class OrthoGrad(Optimizer):
    """Any optimizer, fed with gradients orthogonal to the weights: grokking without weight decay, and without delay.

    It owns the base optimizer (``.base``) and shares its ``param_groups`` and ``state``, so schedulers, ``GradScaler``
    and checkpoints see an ordinary optimizer; the state dict is the base optimizer's own and loads into either.
    Since the base optimizer preconditions after the projection, an adaptive step is not exactly orthogonal.

    Args:
        params: what ``base_optimizer_cls`` takes: parameters, named parameters or groups.
        base_optimizer_cls: a ``torch.optim.Optimizer`` class such as ``torch.optim.AdamW``.
        rescale: keep the norm of every gradient, see :func:`project_orthogonal_`.
        scope: ``"tensor"`` or ``"global"``.
        exclude: parameters that keep their gradient: an iterable of tensors, or a predicate on a parameter.
        **base_kwargs: arguments of ``base_optimizer_cls``. Note that AdamW decays weights by 0.01 unless told
            otherwise; the paper's runs use ``weight_decay=0``.

    Raises:
        ArgumentTypeError: ``base_optimizer_cls`` is no optimizer class or does not know one of ``base_kwargs``.
        ArgumentValueError: ``params`` is empty, or an option is not allowed.

    Example:
        >>> model = torch.nn.Linear(4, 3)
        >>> optimizer = OrthoGrad(model.parameters(), torch.optim.AdamW, lr=1e-2, weight_decay=0.0)

    Source: Prieto et al., Grokking at the Edge of Numerical Stability, arXiv 2501.04697, sec. 5 (perpGrad).
    """

    def __init__(
        self,
        params: Any,
        base_optimizer_cls: type[Optimizer],
        rescale: bool = True,
        scope: str = "tensor",
        exclude: Exclude = None,
        **base_kwargs: Any,
    ) -> None:
        if not (inspect.isclass(base_optimizer_cls) and issubclass(base_optimizer_cls, Optimizer)):
            raise ArgumentTypeError(f"base_optimizer_cls must be an optimizer class, got {base_optimizer_cls!r}")
        if issubclass(base_optimizer_cls, OrthoGrad):
            bad_value("base_optimizer_cls", base_optimizer_cls.__name__, "an optimizer that does not project already")
        _check_options(rescale, scope)
        if not isinstance(params, Iterable) or isinstance(params, Tensor):
            bad_type("params", params, "an iterable of parameters, named parameters or groups")
        params = list(params)
        if not params:
            raise ArgumentValueError("params must hold at least one parameter, got none")
        unknown = set(base_kwargs) - set(inspect.signature(base_optimizer_cls).parameters)
        if unknown:
            known = base_optimizer_cls.__name__
            raise ArgumentTypeError(f"base_kwargs must be arguments of {known}, got {sorted(unknown)}")
        self.base = base_optimizer_cls(params, **base_kwargs)
        self.rescale, self.scope, self._exclude = rescale, scope, exclude
        self._targets: list[Tensor] = []
        super().__init__(self.base.param_groups, self.base.defaults)
        self._share()
        self._choose_targets()

    def _share(self) -> None:
        """Look at the base optimizer's groups and state, which loading replaces by new objects."""
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def _choose_targets(self) -> None:
        params = [p for group in self.param_groups for p in group["params"]]
        self._targets = _eligible(params, self.scope, _excluded(params, self._exclude))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; its parameters are projected as well."""
        if self.__dict__.get("param_groups") is self.base.param_groups:
            self.base.add_param_group(param_group)
            self._choose_targets()
        else:  # called by Optimizer.__init__ for the groups that the base optimizer already has
            super().add_param_group(param_group)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Project the gradients and let the base optimizer step.

        Args:
            closure: recomputes the loss and the gradients, which are then projected after every evaluation.

        Returns:
            What the base optimizer's ``step`` returns.
        """
        if closure is None:
            _project(self._targets, self.rescale, self.scope)
            return self.base.step()

        def projected() -> float:
            loss = closure()
            _project(self._targets, self.rescale, self.scope)
            return loss

        return self.base.step(projected)

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state dict; projecting keeps no state."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this optimizer or of a base optimizer alone."""
        self.base.load_state_dict(state_dict)
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        own = {name: self.__dict__[name] for name in ("base", "rescale", "scope", "_exclude", "_targets")}
        return {**super().__getstate__(), **own}

    def __repr__(self) -> str:
        return f"OrthoGrad(rescale={self.rescale}, scope={self.scope!r}, base={self.base!r})"
