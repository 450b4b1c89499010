"""Log-probability of soft tokens: the density of the noise that they carry."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from softgate._checks import check_float_tensor, check_number, check_same_device
from softgate._math.compress import compute_dtype
from softgate.dispatch import call, transform_reason
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value, check_choice
from softgate.policy._soft_noise import NoiseSettings, check_noise
from softgate.policy.soft_tokens import NoiseName
from softgate.registry import method, record_of

__all__ = ["soft_token_log_prob"]

Reduce = Literal["mean", "sum", "concrete"]
_Sample = tuple[tuple[Any, ...], dict[str, Any]]


def _reference(
    logits: Tensor,
    ids: Tensor | None,
    g: Tensor,
    *,
    kept: Tensor | None = None,
    noise: NoiseName = "gumbel",
    noise_scale: float = 1.0,
    tau: float = 0.1,
    temperature: float = 1.0,
    reduce: Reduce = "mean",
    threshold: float | None = None,
    clamp: tuple[float, float] | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Softmax over the K selected logits, then the density of ``g`` given these probabilities."""
    chosen, settings = check_noise(noise, noise_scale, tau, clamp, eps)
    dtype = compute_dtype(torch.promote_types(logits.dtype, g.dtype))
    z_K = (logits if ids is None else logits.gather(-1, ids)).to(dtype) / temperature
    p_K, g_K = z_K.softmax(-1), g.detach().to(dtype)
    allowed_K = torch.ones_like(p_K, dtype=torch.bool) if kept is None else kept
    if reduce == "concrete":
        return _concrete(torch.log(p_K + eps), g_K, allowed_K, settings)
    counts_K = _counted(p_K.detach(), allowed_K, chosen.threshold if threshold is None else threshold, settings, noise)
    density_K = torch.where(counts_K, chosen.log_density(p_K, g_K, settings), 0.0)
    return density_K.sum(-1) / counts_K.sum(-1).clamp(min=1) if reduce == "mean" else density_K.sum(-1)


def _counted(p_K: Tensor, allowed_K: Tensor, threshold: float, settings: NoiseSettings, noise: str) -> Tensor:
    """Candidates above the threshold, and the likeliest one in any case: the mean of none would be 0 / 0."""
    value_K = torch.where(allowed_K, p_K + settings.eps if noise == "gumbel" else p_K, -torch.inf)
    return (value_K > threshold) | (allowed_K & (value_K == value_K.amax(-1, keepdim=True)))


def _concrete(a_K: Tensor, g_K: Tensor, kept_K: Tensor, settings: NoiseSettings) -> Tensor:
    """Log-density of ``y = softmax(g / tau)``; a noise scale c divides ``a`` and multiplies the temperature."""
    a_K, tau = a_K / settings.scale, settings.tau / settings.scale
    log_y_K = (g_K / settings.tau).masked_fill(~kept_K, -torch.inf).log_softmax(-1).masked_fill(~kept_K, 0.0)
    number = kept_K.sum(-1).to(a_K.dtype)
    total = torch.where(kept_K, a_K - (tau + 1) * log_y_K, 0.0).sum(-1)
    shift = (a_K - tau * log_y_K).masked_fill(~kept_K, -torch.inf).logsumexp(-1)
    return torch.lgamma(number) + (number - 1) * math.log(tau) + total - number * shift


def _samples(dtype: torch.dtype, generator: torch.Generator) -> Iterator[_Sample]:
    """Values that suit every noise: between 0.1 and 0.5, and away from the kinks of the clamps."""

    def draw(*shape: int) -> Tensor:
        return (torch.randint(-16, 17, shape, generator=generator) / 16).to(dtype)

    def noisy(*shape: int) -> Tensor:
        return (0.3 + 0.2 * (torch.randint(-16, 17, shape, generator=generator) / 17)).to(dtype)

    ids = torch.tensor([[1, 3, 0], [4, 2, 5]])
    yield (draw(2, 6).requires_grad_(), ids, noisy(2, 3)), {}
    yield (draw(2, 2, 4).requires_grad_(), None, noisy(2, 2, 4)), {"temperature": 0.7, "noise_scale": 1.5}
    kept = torch.tensor([[True, True, False], [True, False, False]])
    yield (draw(2, 6).requires_grad_(), ids, noisy(2, 3)), {"kept": kept}
    yield (draw(3, 1).requires_grad_(), None, noisy(3, 1)), {}
    yield (draw(0, 6).requires_grad_(), ids[:0], noisy(0, 3)), {}


def _bad_inputs() -> Iterator[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]:
    z, ids, g = torch.zeros(2, 4), torch.tensor([[0, 1], [2, 3]]), torch.zeros(2, 2)
    yield (z, ids.float(), g), {}, ArgumentTypeError, "ids"
    yield (z, ids[:1], g), {}, ArgumentValueError, "ids"
    yield (z, ids + 1, g), {}, ArgumentValueError, "ids"
    yield (z, ids, g[:, :1]), {}, ArgumentValueError, "g"
    yield (z, None, g), {}, ArgumentValueError, "g"
    yield (torch.tensor(0.0), None, torch.tensor(0.0)), {}, ArgumentValueError, "logits"
    yield (z, ids, g), {"kept": torch.ones(2, 2)}, ArgumentTypeError, "kept"
    yield (z, ids, g), {"kept": torch.ones(2, 3, dtype=torch.bool)}, ArgumentValueError, "kept"
    yield (z, ids, g), {"noise": "gaussian", "reduce": "concrete"}, ArgumentValueError, "reduce"
    for name, value in (("noise_scale", 0.0), ("tau", 0.0), ("tau", -1.0), ("temperature", 0.0), ("threshold", 1.0),
                        ("eps", 0.0), ("clamp", (3.0, -1.5)), ("noise", "laplace"), ("reduce", "max")):  # fmt: skip
        yield (z, ids, g), {name: value}, ArgumentValueError, name
    yield (z, ids, g), {"clamp": 3.0}, ArgumentTypeError, "clamp"


@method(
    site="policy",
    family="custom",
    paper="soft-grpo",
    source="mean over the likely candidates of the Gumbel log-density -e - exp(-e), e = clamp(g - a, -1.5, 3), "
    "a = log(softmax of the selected logits + 1e-6); Gaussian and Gamma densities as in the authors' code",
    reference=_reference,
    variants={
        "default": {},
        "concrete": {"reduce": "concrete", "tau": 0.5},
        "gaussian": {"noise": "gaussian"},
        "dirichlet": {"noise": "dirichlet", "reduce": "sum"},
    },
    samples=_samples,
    bad_inputs=_bad_inputs,
    deviations=(
        "where no candidate is above the threshold the likeliest one counts; the authors' code divides 0 by 0",
        "with noise_scale c other than 1 the density is that of g, with the residual divided by c",
    ),
)
def soft_token_log_prob(
    logits: Tensor,
    ids: Tensor | None,
    g: Tensor,
    *,
    kept: Tensor | None = None,
    noise: NoiseName = "gumbel",
    noise_scale: float = 1.0,
    tau: float = 0.1,
    temperature: float = 1.0,
    reduce: Reduce = "mean",
    threshold: float | None = None,
    clamp: tuple[float, float] | None = None,
    eps: float = 1e-6,
) -> Tensor:
    r"""Log-probability of soft tokens under new logits: the density of the noise that their values now carry.

    .. math:: a_k = \log(\mathrm{softmax}(z_{t_1} \dots z_{t_K})_k + 10^{-6}), \quad
              e_k = \mathrm{clamp}(g_k - a_k, -1.5, 3), \quad
              \log \pi = \mathrm{mean}_{k : a_k > -3} (-e_k - \exp(-e_k))

    The normaliser over the vocabulary cancels, so the K logits of the candidates suffice (``ids=None``). Gather at the
    stored candidates, never at new ones. The mean is no joint density: PPO's clip range of 0.2 is wider than usual.

    Args:
        logits: ``(..., V)`` with ``ids``, or the candidates' own logits ``(..., K)`` with ``ids=None``. The only
            argument that gets a gradient.
        ids: ``(..., K)`` int64, the stored candidates.
        g: ``(..., K)``, their stored noisy values.
        kept: ``(..., K)`` bool, candidates that may count; all if None. ``reduce="concrete"`` needs it if top-p was
            used: a removed candidate is stored with probability 1e-6 and would be scored with its true one.
        noise: as sampled: ``"gumbel"``, ``"gaussian"`` or ``"dirichlet"``.
        noise_scale: as sampled, positive.
        tau: temperature of the Gumbel-softmax, for ``"concrete"`` only.
        temperature: divides the logits, as sampled.
        reduce: ``"mean"`` over the likely candidates (the paper's); ``"sum"``, their joint density; ``"concrete"``,
            the density of the weights themselves (Gumbel noise; experimental).
        threshold: candidates of at most this probability do not count, in [0, 1); if None exp(-3) for Gumbel noise,
            compared with ``p + eps``, else 0.05. The likeliest candidate always counts.
        clamp: bounds of the residual (Gumbel), of the distance in standard deviations (Gaussian) or of the log-density
            (Dirichlet); beyond them the gradient is 0. If None (-1.5, 3), (-3, 3) and (-5, 3).
        eps: added to probabilities before the logarithm.

    Returns:
        ``(...)``, in nats, float32 for 16-bit logits. A density: it may be positive. NaN logits give NaN.

    Raises:
        ArgumentTypeError: wrong types or dtypes.
        ArgumentValueError: shapes do not match, an id is out of range, or an option is not allowed.

    Example:
        >>> z, g = torch.tensor([1.0, 0.0]), torch.tensor([0.0, -1.0])
        >>> soft_token_log_prob(z, None, g)
        tensor(-1.0443)

    Paper: SofT-GRPO, arXiv 2511.06411.
    """
    check_float_tensor("logits", logits)
    check_float_tensor("g", g)
    if logits.ndim == 0:
        bad_value("logits", "a 0-d tensor", "of shape (..., V)")
    shape = logits.shape if ids is None else _check_ids(ids, logits)
    if g.shape != shape or shape[-1] == 0:
        bad_value("g", tuple(g.shape), f"of the shape of the candidates {tuple(shape)}, at least one of them")
    if kept is not None:
        if not isinstance(kept, Tensor) or kept.dtype != torch.bool:
            bad_type("kept", kept, "None or a bool tensor")
        if kept.shape != shape:
            bad_value("kept", tuple(kept.shape), f"of the shape of the candidates {tuple(shape)}")
    check_same_device(logits=logits, ids=ids, g=g, kept=kept)
    options = check_score_options(
        noise=noise, noise_scale=noise_scale, tau=tau, temperature=temperature, reduce=reduce, threshold=threshold,
        clamp=clamp, eps=eps,
    )  # fmt: skip
    return call(record_of(soft_token_log_prob), logits, ids, g, kept=kept, **options)


def _check_ids(ids: Any, logits: Tensor) -> torch.Size:
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64:
        raise ArgumentTypeError(f"ids must be an int64 tensor or None, got {getattr(ids, 'dtype', type(ids).__name__)}")
    if ids.ndim != logits.ndim or ids.shape[:-1] != logits.shape[:-1]:
        bad_value("ids", tuple(ids.shape), f"of shape {(*logits.shape[:-1], 'K')}")
    vocabulary = logits.shape[-1]
    if ids.is_cpu and ids.numel() and transform_reason(logits, ids) is None:  # elsewhere it would wait for the device
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= vocabulary:
            bad_value("ids", low if low < 0 else high, f"in [0, {vocabulary})")
    return ids.shape


def check_score_options(**options: Any) -> dict[str, Any]:
    """The options of :func:`soft_token_log_prob`, or an error."""
    check_noise(options["noise"], options["noise_scale"], options["tau"], options["clamp"], options["eps"])
    check_number("temperature", options["temperature"], low=0.0, low_open=True, high_open=True)
    check_choice("reduce", options["reduce"], ("mean", "sum", "concrete"))
    if options["reduce"] == "concrete" and options["noise"] != "gumbel":
        bad_value("reduce", "concrete", f"'mean' or 'sum' for noise={options['noise']!r}")
    if options["threshold"] is not None:
        check_number("threshold", options["threshold"], low=0.0, high=1.0, high_open=True)
    return options
