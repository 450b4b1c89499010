"""The records that describe every method, and the decorator that makes them.

A record says what a public function *is*: where it stands in a network, which paper and equations it implements, which
laws it obeys, how it treats masked rows, which kernels can run it. Tests, command line, documentation, ``swap`` and
``compare`` iterate over the records; there is no central list to edit.

Example:
    >>> from softgate.registry import method
    >>> @method(site="normalizers", family="row_map", paper="two-pass-softmax", source="eq. 1", laws=("sums_to_one",))
    ... def my_softmax(x, dim=-1):
    ...     "Softmax along ``dim``."
    ...     return x.softmax(dim)
    >>> my_softmax.__softgate__.name
    'my_softmax'
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from softgate.errors import ArgumentTypeError, ArgumentValueError, StateError, check_choice, did_you_mean

#: The rooms: where in a network a method acts.
SITES = (
    "normalizers",
    "attention",
    "routing",
    "dynamic",
    "losses",
    "policy",
    "activations",
    "optim",
    "diagnostics",
    "detection",
    "models",
)

#: What a method's arguments look like; the conformance suite generates inputs by family.
#: ``row_map``: (x, dim) -> same shape. ``row_reduction``: (x, dim) -> shape without dim. ``scalar_map``: elementwise.
#: ``attention``: like scaled_dot_product_attention. ``loss``: like F.cross_entropy. ``custom``: give ``samples``.
Family = Literal["row_map", "row_reduction", "scalar_map", "attention", "loss", "custom"]


@dataclass(frozen=True)
class Kernel:
    """A faster implementation behind the same function.

    Attributes:
        name: what ``SOFTGATE_KERNELS`` and :func:`softgate.explain` call it.
        run: takes the arguments of the public function, already validated.
        refuses: takes the same arguments; returns why the kernel cannot (or should not) run this call, None if it runs.
    """

    name: str
    run: Callable[..., Any]
    refuses: Callable[..., str | None]


@dataclass(frozen=True)
class Method:
    """The record of one public function.

    Attributes:
        name: name of the public function.
        site: the room it lives in, one of :data:`SITES`.
        family: shape of its signature, which decides the generated inputs.
        paper: slug of the paper (its file in ``softgate.papers``), None for plain building blocks.
        source: equations, sections or tables implemented, in words.
        function: the public, validated function.
        reference: plain torch, float64-able; equal to ``function`` where no kernel exists.
        kernels: accelerations in order of preference.
        variants: name -> keyword arguments; every variant is checked by the conformance suite.
        laws: names of laws in ``softgate.testing.laws`` that the function claims to obey.
        exempt: policies of the family (laws that hold for every op unless listed here) that do not hold for this
            function, name -> why; the conformance suite checks that they indeed do not.
        smallest_width: for family ``attention``, the smallest head dimension that the function is defined for.
        output_range: closed interval that holds every output.
        error_scale: what rounding errors are measured against: each entry (``"relative"``) or the largest one
            (``"tensor"``), for maps whose small entries are differences of larger numbers, or each entry but at least
            1 (``"logarithm"``), for logarithms of sums. None: by ``output_range``.
        masks: which masks an attention function takes: ``"any"``, or ``"keys"`` for those that are the same for all
            heads and queries, (…, 1, 1, S), as attention that never forms its weights can apply.
        fixed: arguments of the family's signature that accept nothing but their default.
        integers: arguments for which integer tensors are taken too and converted.
        shapes: whether the shapes of the results follow from those of the arguments (``"static"``) or from their values
            (``"data"``); such a function cannot be compiled as one graph, exported or vectorised by ``vmap``.
        masked_rows: what a row without any allowed entry gives.
        samples: ``samples(dtype, generator)`` yields ``(args, kwargs)``; replaces or, for family ``attention`` and
            ``loss``, extends the generated inputs with arguments that the family does not know.
        bad_inputs: yields ``(args, kwargs, exception type, word the message must contain)``.
        deviations: where the function knowingly differs from the paper or the authors' code.
        gradient: whether gradients are those of the function (``"derivative"``) or, for steps and other functions
            without useful ones, a ``"surrogate"`` that the reference has as well: then no finite difference is tried.
    """

    name: str
    site: str
    family: Family
    paper: str | None
    source: str
    function: Callable[..., Any]
    reference: Callable[..., Any]
    kernels: tuple[Kernel, ...] = ()
    variants: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: {"default": {}})
    laws: tuple[str, ...] = ()
    exempt: Mapping[str, str] = field(default_factory=dict)
    smallest_width: int = 1
    output_range: tuple[float, float] = (float("-inf"), float("inf"))
    error_scale: Literal["relative", "tensor", "logarithm"] | None = None
    masks: Literal["any", "keys"] = "any"
    fixed: tuple[str, ...] = ()
    integers: tuple[str, ...] = ()
    shapes: Literal["static", "data"] = "static"
    masked_rows: Literal["zeros", "nan", "not applicable"] = "not applicable"
    samples: Callable[..., Iterable[tuple[tuple[Any, ...], dict[str, Any]]]] | None = None
    bad_inputs: Callable[[], Iterable[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]]] | None = None
    deviations: tuple[str, ...] = ()
    gradient: Literal["derivative", "surrogate"] = "derivative"

    @property
    def qualified_name(self) -> str:
        """``room.function``, as a user imports it below ``softgate``."""
        return f"{self.site}.{self.name}"

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (self.function.__doc__ or "").strip().splitlines()[0] if self.function.__doc__ else ""


_METHODS: dict[str, Method] = {}
F = TypeVar("F", bound=Callable[..., Any])


def method(
    *,
    site: str,
    family: Family,
    source: str,
    paper: str | None = None,
    reference: Callable[..., Any] | None = None,
    register: bool = True,
    **fields: Any,
) -> Callable[[F], F]:
    """Record the decorated public function as a method; the function itself is returned unchanged.

    Args:
        site: room, one of :data:`SITES`.
        family: signature family, see :data:`Family`.
        source: which equations, sections or tables it implements.
        paper: slug of its paper, or None.
        reference: plain-torch implementation with the same signature; the function itself if omitted.
        register: False leaves the record on the function only (for ops of a user, and in tests).
        **fields: the remaining fields of :class:`Method`.

    Returns:
        A decorator that sets ``function.__softgate__``.
    """
    if site not in SITES:
        raise ArgumentValueError(f"site must be one of {', '.join(SITES)}, got {site!r}")

    def decorate(function: F) -> F:
        record = Method(
            name=function.__name__,
            site=site,
            family=family,
            paper=paper,
            source=source,
            function=function,
            reference=reference or function,
            **fields,
        )
        known = _METHODS.get(record.qualified_name)
        if register and known is not None and known.function.__module__ != function.__module__:
            raise StateError(
                f"two methods are called {record.qualified_name}: {known.function.__module__} and {function.__module__}"
            )
        if register:
            _METHODS[record.qualified_name] = record
        function.__softgate__ = record  # type: ignore[attr-defined]
        return function

    return decorate


def record_of(op: Any) -> Method:
    """Return the record of ``op``: a decorated function, a record, or a name (``"attention.gated_attention"``)."""
    if isinstance(op, Method):
        return op
    if isinstance(op, str):
        found = [m for m in methods() if op in (m.name, m.qualified_name)]
        if len(found) != 1:
            names = ", ".join(m.qualified_name for m in (found or methods()))
            hint = did_you_mean(op, [m.name for m in methods()]) if not found else ""
            raise ArgumentValueError(f"op must name one method, got {op!r}{hint or ';'} known: {names}")
        return found[0]
    record = getattr(op, "__softgate__", None)
    if not isinstance(record, Method):
        what = getattr(op, "__qualname__", type(op).__name__)
        raise ArgumentTypeError(
            f"op must be a softgate method, its record or its name (softgate.methods() lists them), got {what}; "
            "softgate.registry.method makes a record of a function of your own"
        )
    return record


def methods(site: str | None = None) -> tuple[Method, ...]:
    """All recorded methods, optionally of one room (one of :data:`SITES`), sorted by name. Imports every room."""
    if site is not None:
        check_choice("site", site, SITES)
    for room in SITES if site is None else (site,):
        _import_room(room)
    return tuple(m for name, m in sorted(_METHODS.items()) if site is None or m.site == site)


def _import_room(room: str) -> None:
    try:
        package = importlib.import_module(f"softgate.{room}")
    except ModuleNotFoundError as error:
        if error.name == f"softgate.{room}":  # a room that has no methods yet
            return
        raise
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
