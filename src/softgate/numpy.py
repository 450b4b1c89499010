"""Softmax, its logarithm and log-sum-exp of numpy arrays; importing this does not import torch.

float32 and float16 arrays run on the native kernels where these are compiled in, everything else on numpy.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softgate import native
from softgate.errors import ArgumentTypeError, ArgumentValueError, bad_type, bad_value, check_choice

__all__ = ["log_softmax", "logsumexp", "softmax"]

Floats = NDArray[np.floating[Any]]
_SOFTMAX, _LOG_SOFTMAX, _LOGSUMEXP = 0, 1, 2
_CODES = {np.dtype(np.float32): 0, np.dtype(np.float16): 2}
_DTYPES = (np.dtype(np.float64), np.dtype(np.float32), np.dtype(np.float16))


def softmax(
    x: ArrayLike,
    axis: int | None = -1,
    *,
    algorithm: str = "auto",
    out: Floats | None = None,
    empty: str = "nan",
    num_threads: int | None = None,
) -> Floats:
    """Softmax of an array along ``axis``: ``exp(x_i) / sum_j exp(x_j)``.

    Args:
        x: float64, float32 or float16 array of any shape, byte order and strides, or what numpy makes one of.
        axis: the axis that sums to one; None takes the whole array as one row.
        algorithm: as in :func:`softgate.normalizers.softmax`; ``"numpy"`` keeps the kernels out of it.
        out: C-contiguous array that receives the result; may be ``x`` itself.
        empty: what a row with nothing but ``-inf`` gives, ``"nan"`` or ``"zero"``.
        num_threads: at most this many threads, all that the process may use if None. Bits do not depend on it.

    Returns:
        An array like ``x``. ``-inf`` gives exactly 0; NaN or ``+inf`` anywhere makes the whole row NaN.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.

    Example:
        >>> import numpy as np
        >>> softmax(np.array([0.0, 0.0, -np.inf], dtype=np.float32)).tolist()
        [0.5, 0.5, 0.0]

    Source: arXiv 2001.04438, algorithms 1-3.
    """
    return _call(_SOFTMAX, x, axis, algorithm, out, empty, num_threads)


def log_softmax(
    x: ArrayLike,
    axis: int | None = -1,
    *,
    algorithm: str = "auto",
    out: Floats | None = None,
    empty: str = "nan",
    num_threads: int | None = None,
) -> Floats:
    """Log-softmax of an array along ``axis``: ``x_i - log sum_j exp(x_j)``.

    Args:
        x: as in :func:`softmax`.
        axis: as in :func:`softmax`.
        algorithm: as in :func:`softmax`.
        out: as in :func:`softmax`.
        empty: what a row with nothing but ``-inf`` gives, ``"nan"`` or ``"zero"`` (``log 0 = -inf``).
        num_threads: as in :func:`softmax`.

    Returns:
        An array like ``x``.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.
    """
    return _call(_LOG_SOFTMAX, x, axis, algorithm, out, empty, num_threads)


def logsumexp(
    x: ArrayLike,
    axis: int | None = -1,
    *,
    algorithm: str = "auto",
    out: Floats | None = None,
    num_threads: int | None = None,
) -> Floats:
    """Log-sum-exp of an array along ``axis``: ``log sum_j exp(x_j)``.

    Args:
        x: as in :func:`softmax`.
        axis: the axis that is reduced; None reduces all.
        algorithm: as in :func:`softmax`.
        out: C-contiguous array that receives the result.
        num_threads: as in :func:`softmax`.

    Returns:
        An array with the shape of ``x`` without ``axis`` (0-d for a single row). No entry, or nothing but ``-inf``,
        gives ``-inf``.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.
    """
    return _call(_LOGSUMEXP, x, axis, algorithm, out, "nan", num_threads)


def _call(op: int, x: Any, axis: Any, algorithm: Any, out: Any, empty: Any, num_threads: Any) -> Floats:
    check_choice("algorithm", algorithm, (*native.ALGORITHMS, "numpy"))
    check_choice("empty", empty, ("nan", "zero"))
    array = _array(x)
    shape = array.shape
    rows = array.reshape(-1) if axis is None else array
    index = 0 if axis is None else _index(axis, array.ndim)
    kept = rows.shape[:index] + rows.shape[index + 1 :]
    result_shape = (() if axis is None else kept) if op == _LOGSUMEXP else shape
    result = np.empty(result_shape, array.dtype) if out is None else _check_out(out, array, result_shape, x)
    threads = _threads(num_threads)
    if _runs_native(array, algorithm) and array.size:
        dims = _split(rows.shape, index)
        pointers = _address(rows), _address(result)
        plan = native.ALGORITHMS[algorithm]
        native.kernels().softmax(op, _CODES[array.dtype], *pointers, *dims, plan, empty == "zero", threads)
    else:
        result[...] = _reference(op, rows, index, empty == "zero").reshape(result_shape)
    return result


def _array(x: Any) -> Floats:
    array = np.asarray(x)
    if array.dtype.newbyteorder("=") not in _DTYPES:
        raise ArgumentTypeError(f"x must be a float64, float32 or float16 array, got dtype {array.dtype}")
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).reshape(array.shape)


def _index(axis: Any, ndim: int) -> int:
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer):
        bad_type("axis", axis, "None or an int")
    size = max(ndim, 1)
    if not -size <= axis < size:
        raise ArgumentValueError(f"axis must be in [{-size}, {size - 1}] for a {ndim}-d array, got {axis}")
    return int(axis) % size


def _check_out(out: Any, x: Floats, shape: tuple[int, ...], given: Any) -> Floats:
    if not isinstance(out, np.ndarray):
        bad_type("out", out, "a numpy array")
    if out.dtype != x.dtype:
        raise ArgumentTypeError(f"out must have dtype {x.dtype} like x, got {out.dtype}")
    if out.shape != shape:
        raise ArgumentValueError(f"out must have shape {shape}, got {out.shape}")
    if not out.flags.c_contiguous or not out.flags.writeable:
        raise ArgumentValueError("out must be a writeable C-contiguous array")
    exact = out.size == x.size and _address(out) == _address(x)
    if isinstance(given, np.ndarray) and not exact and np.may_share_memory(out, x):
        raise ArgumentValueError("out must be x itself or not overlap it in memory; it overlaps x partly")
    return out


def _threads(num_threads: Any) -> int:
    if num_threads is None:
        return int(native.info()["threads"] or 1)
    if isinstance(num_threads, bool) or not isinstance(num_threads, int):
        bad_type("num_threads", num_threads, "None or an int")
    if num_threads < 1:
        bad_value("num_threads", num_threads, "at least 1")
    return num_threads


def _runs_native(x: Floats, algorithm: str) -> bool:
    off = os.environ.get("SOFTGATE_KERNELS", "").strip() == "reference"
    return native.available() and not off and algorithm != "numpy" and x.dtype in _CODES


def _address(array: Floats) -> int:
    return int(array.__array_interface__["data"][0])


def _split(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    if not shape:
        return 1, 1, 1
    outer, inner = 1, 1
    for size in shape[:axis]:
        outer *= size
    for size in shape[axis + 1 :]:
        inner *= size
    return outer, shape[axis], inner


def _reference(op: int, x: Floats, axis: int, zero: bool) -> Floats:
    """The definitions, with the largest entry subtracted; half precision is computed in float32."""
    rows = x.reshape(1) if x.ndim == 0 else x
    wide: Any = rows.astype(np.float32) if rows.dtype == np.float16 else rows
    if rows.shape[axis] == 0:
        return np.full([n for i, n in enumerate(rows.shape) if i != axis], -np.inf) if op == _LOGSUMEXP else rows
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        top = wide.max(axis=axis, keepdims=True)
        nothing = np.isneginf(top)
        shifted = wide - np.where(nothing | (np.isposinf(top) & (op == _LOGSUMEXP)), 0, top)
        total = np.exp(shifted).sum(axis=axis, keepdims=True, dtype=wide.dtype)
        if op == _LOGSUMEXP:
            return (np.log(total) + np.where(np.isfinite(top), top, 0)).squeeze(axis)
        result = np.exp(shifted) / total if op == _SOFTMAX else shifted - np.log(total)
    if not zero:
        return np.where(nothing, np.nan, result)
    return np.where(nothing, 0.0 if op == _SOFTMAX else -np.inf, result)
