"""The compiled kernels, called directly: every instruction set, algorithm, length and offset."""

import ctypes
import itertools
import mmap
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

from softgate import native

pytestmark = pytest.mark.skipif(not native.available(), reason=native.unavailable_reason() or "kernels are there")

ISAS = native.info()["isas"]
PLANS = {name: number for name, number in native.ALGORITHMS.items()}
SOFTMAX, LOG_SOFTMAX, LOGSUMEXP = 0, 1, 2
F32 = 0
#: Around every vector width, register block, block and segment of the kernels.
LENGTHS = [*range(1, 36), 63, 64, 65, 127, 128, 129, 255, 257, 1039, 2047, 2048, 2049, 4100, 65535, 65537, 131072]


@pytest.fixture(params=ISAS)
def isa(request):
    with native.use_isa(request.param):
        yield request.param


@pytest.fixture(params=PLANS)
def plan(request):
    return PLANS[request.param]


def run(op, x, y, plan=-1, *, shape=None, zero=False, threads=1, dtype=F32):
    outer, n, inner = shape or (x.size // x.shape[-1], x.shape[-1], 1)
    native.kernels().softmax(op, dtype, x.ctypes.data, y.ctypes.data, outer, n, inner, plan, zero, threads)
    return y


def exact(x, axis=-1):
    wide = x.astype(np.float64)
    e = np.exp(wide - wide.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def ulps(got, truth):
    """Error in float32 units in the last place, where the exact value is a normal float."""
    normal = truth >= np.finfo(np.float32).tiny
    spacing = np.spacing(truth[normal].astype(np.float32)).astype(np.float64)
    return (np.abs(got.astype(np.float64)[normal] - truth[normal]) / spacing).max(initial=0.0)


@pytest.mark.parametrize("n", LENGTHS)
def test_every_length_is_exact_to_four_ulp(isa, plan, n):
    x = (np.random.default_rng(n).standard_normal((1 if n > 5000 else 3, n)) * 6).astype(np.float32)
    y = run(SOFTMAX, x, np.full_like(x, np.nan), plan)
    assert ulps(y, exact(x)) <= 4
    assert np.abs(y.astype(np.float64).sum(-1) - 1).max() <= 1e-6
    z = run(LOG_SOFTMAX, x, np.full_like(x, np.nan), plan)
    truth = np.log(exact(x))
    assert (np.abs(z - truth) <= 2e-7 * (1 + np.abs(truth))).all()


@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4, 32767.0, -32769.0, 1e6, -1e6, 2.9e6, -2.9e6, 1e8, -3e30, 3e38])
def test_a_common_shift_loses_nothing(isa, plan, shift):
    x = (np.random.default_rng(0).standard_normal((2, 3001)) * 5 + shift).astype(np.float32)
    y = run(SOFTMAX, x, np.empty_like(x), plan)
    assert ulps(y, exact(x)) <= 4
    lse = run(LOGSUMEXP, x, np.empty(2, np.float32), plan)
    wide = x.astype(np.float64)
    truth = wide.max(-1) + np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1))
    assert np.allclose(lse, truth, rtol=2e-7, atol=0)


@pytest.mark.parametrize("offset", range(16))
@pytest.mark.parametrize("stream", [0, 1])
def test_misaligned_rows_and_canaries(isa, plan, offset, stream):
    """Nothing before or after the output is written, wherever it starts."""
    native.kernels().set_streaming(stream)
    try:
        for n in (1, 15, 37, 300):
            x = np.random.default_rng(n).standard_normal(n + offset).astype(np.float32)[offset:]
            room = np.full(n + 64, 7.5, np.float32)
            y = room[offset : offset + n]
            run(SOFTMAX, x, y, plan, shape=(1, n, 1))
            assert ulps(y, exact(x)) <= 4
            assert (room[:offset] == 7.5).all() and (room[offset + n :] == 7.5).all()
    finally:
        native.kernels().set_streaming(-1)


class Guarded:
    """``size`` bytes that end (or begin) exactly at a page that must not be touched."""

    def __init__(self, size, *, at_end):
        page = mmap.PAGESIZE
        pages = -(-size // page)
        self.map = mmap.mmap(-1, (pages + 2) * page)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        libc = ctypes.CDLL(None, use_errno=True)
        for place in (0, pages + 1):
            assert libc.mprotect(ctypes.c_void_p(self.base + place * page), page, 0) == 0
        self.address = self.base + page + (pages * page - size if at_end else 0)

    def array(self, count, dtype):
        kind = (ctypes.c_char * (count * np.dtype(dtype).itemsize)).from_address(self.address)
        return np.frombuffer(kind, dtype=dtype)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mprotect")
@pytest.mark.parametrize("at_end", [True, False])
def test_no_byte_outside_the_row_is_touched(isa, plan, at_end):
    """A stray read or write beyond input or output hits a protected page and kills the process."""
    for code, dtype, n in itertools.product((0, 2), (np.float32, np.float16), (*range(1, 36), 129, 2051)):
        if (code == 0) != (dtype is np.float32):
            continue
        size = n * np.dtype(dtype).itemsize
        pages = [Guarded(size, at_end=at_end) for _ in range(2)]  # kept: the arrays do not own the memory
        x, y = (page.array(n, dtype) for page in pages)
        x[:] = np.linspace(-3, 3, n)
        for op in (SOFTMAX, LOG_SOFTMAX):
            run(op, x, y, plan, shape=(1, n, 1), dtype=code)
        assert np.isfinite(y).all()
        run(SOFTMAX, x, y, plan, shape=(1, 1, n), dtype=code)  # columns
        native.kernels().gradient(False, code, x.ctypes.data, x.ctypes.data, y.ctypes.data, 1, n, 1, 1)
        native.kernels().gradient(True, code, x.ctypes.data, x.ctypes.data, y.ctypes.data, 1, 1, n, 1)


@pytest.mark.parametrize("inner", [2, 7, 16, 31, 64, 65, 130])
@pytest.mark.parametrize("n", [1, 2, 5, 63, 65, 200])
def test_columns_equal_rows(isa, plan, inner, n):
    x = (np.random.default_rng(inner * n).standard_normal((2, n, inner)) * 4).astype(np.float32)
    y = run(SOFTMAX, x, np.full_like(x, np.nan), plan, shape=(2, n, inner))
    # every lane sums its own column, so a few more roundings follow one another than in a row
    assert ulps(y, exact(x, 1)) <= 4 + np.log2(n) / 2
    z = run(LOG_SOFTMAX, x, np.full_like(x, np.nan), plan, shape=(2, n, inner))
    band = (4 + np.log2(n) / 2) * np.finfo(np.float32).eps  # the accuracy target of a sum of n rounded terms
    assert np.allclose(z, np.log(exact(x, 1)), rtol=band, atol=band)
    lse = run(LOGSUMEXP, x, np.full((2, inner), np.nan, np.float32), plan, shape=(2, n, inner))
    wide = x.astype(np.float64)
    assert np.allclose(lse, np.log(np.exp(wide).sum(1)), rtol=band, atol=band)


SPECIAL = {
    "one -inf": ([1.0, -np.inf, 2.0], True),
    "finfo.min mask": ([1.0, np.finfo(np.float32).min, 2.0], True),
    "only finfo.min": ([np.finfo(np.float32).min] * 3, True),
    "subnormals": ([1e-42, -1e-44, 0.0], True),
    "largest floats": ([3.4e38, -3.4e38, 1.0], True),
    "NaN": ([1.0, np.nan, 2.0], False),
    "NaN and inf": ([np.nan, np.inf, 2.0], False),
    "NaN and -inf": ([np.nan, -np.inf, -np.inf], False),
    "+inf": ([1.0, np.inf, 2.0], False),
    "all -inf": ([-np.inf] * 3, False),
}


@pytest.mark.parametrize("case", SPECIAL)
@pytest.mark.parametrize("n", [3, 40, 700, 70000])
def test_special_values(isa, plan, case, n):
    """Rows with special values, short and long, as rows and as columns; the rows around them do not notice."""
    values, finite = SPECIAL[case]
    x = np.zeros((3, n), np.float32)
    x[1] = np.resize(np.array(values, np.float32), n)
    for data, shape, axis in ((x, (3, n, 1), 1), (np.ascontiguousarray(x.T), (1, n, 3), 0)):
        y = run(SOFTMAX, data, np.empty_like(data), plan, shape=shape)
        z = run(LOG_SOFTMAX, data, np.empty_like(data), plan, shape=shape)
        lse = run(LOGSUMEXP, data, np.empty(3, np.float32), plan, shape=shape)
        middle, middle_log = np.take(y, 1, 1 - axis), np.take(z, 1, 1 - axis)
        assert np.allclose(np.take(y, [0, 2], 1 - axis), 1 / n, rtol=1e-6)
        if finite:
            assert ulps(middle, exact(x[1])) <= 4
            assert (middle[x[1] == -np.inf] == 0).all() and (middle_log[x[1] == -np.inf] == -np.inf).all()
        else:
            assert np.isnan(middle).all() and np.isnan(middle_log).all()
        expected = {"+inf": np.inf, "all -inf": -np.inf}.get(case)
        if expected is not None:
            assert lse[1] == expected
        else:
            assert np.isnan(lse[1]) == (not finite)


def test_empty_rows_give_zeros_when_asked(isa, plan):
    for n in (5, 300):
        x = np.full((2, n), -np.inf, np.float32)
        x[0, 1] = 0.0
        for data, shape in ((x, (2, n, 1)), (np.ascontiguousarray(x.T), (1, n, 2))):
            y = run(SOFTMAX, data, np.empty_like(data), plan, shape=shape, zero=True)
            assert y.sum() == 1.0 and np.isfinite(y).all()
            z = run(LOG_SOFTMAX, data, np.empty_like(data), plan, shape=shape, zero=True)
            assert np.isneginf(z).sum() == 2 * n - 1
        x[1, 2] = np.nan
        assert np.isnan(run(SOFTMAX, x, np.empty_like(x), plan, zero=True)[1]).all()


def test_in_place_equals_out_of_place(isa, plan):
    for shape in ((3, 200, 1), (1, 150000, 1), (2, 40, 70)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        y = run(SOFTMAX, x, np.empty_like(x), plan, shape=shape)
        assert np.array_equal(run(SOFTMAX, x, x, plan, shape=shape), y)


@pytest.mark.parametrize("shape", [(1, 400_003, 1), (2, 200_001, 1), (700, 301, 1), (3, 500, 257)])
def test_threads_do_not_change_bits(isa, plan, shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    for op, size in ((SOFTMAX, x.size), (LOG_SOFTMAX, x.size), (LOGSUMEXP, shape[0] * shape[2])):
        one, two, five = (run(op, x, np.empty(size, np.float32), plan, shape=shape, threads=t) for t in (1, 2, 5))
        assert np.array_equal(one, two) and np.array_equal(one, five)
    gradients = []
    for threads in (1, 2, 5):
        dx = np.empty_like(x)
        native.kernels().gradient(False, F32, x.ctypes.data, x.ctypes.data, dx.ctypes.data, *shape, threads)
        gradients.append(dx)
    assert np.array_equal(gradients[0], gradients[1]) and np.array_equal(gradients[0], gradients[2])


def test_non_temporal_stores_do_not_change_bits(isa, plan):
    x = np.random.default_rng(0).standard_normal((3, 5001)).astype(np.float32)
    results = []
    try:
        for mode in (0, 1):
            native.kernels().set_streaming(mode)
            results.append(run(SOFTMAX, x, np.empty_like(x), plan))
    finally:
        native.kernels().set_streaming(-1)
    assert np.array_equal(*results)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("shape", [(3, 1, 1), (2, 77, 1), (1, 140_001, 1), (2, 33, 5), (1, 130, 100)])
def test_gradient(isa, log, shape):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape)
    p = exact(x, 1)
    y = (np.log(p) if log else p).astype(np.float32)
    dy = rng.standard_normal(shape).astype(np.float32)
    dx = np.empty_like(y)
    native.kernels().gradient(log, F32, y.ctypes.data, dy.ctypes.data, dx.ctypes.data, *shape, 1)
    wide, incoming = y.astype(np.float64), dy.astype(np.float64)
    if log:
        truth = incoming - np.exp(wide) * incoming.sum(1, keepdims=True)
    else:
        truth = wide * (incoming - (wide * incoming).sum(1, keepdims=True))
    assert np.abs(dx - truth).max() <= 1e-5 * np.abs(truth).max()


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_rounds_once(isa, plan, name):
    """Within 0.55 units in the last place: the work is in float32, the result is rounded once."""
    torch = pytest.importorskip("torch")
    dtype = getattr(torch, name)
    code = {"bfloat16": 1, "float16": 2}[name]
    for shape in ((4, 1, 1), (5, 37, 1), (2, 3000, 1), (2, 20, 33)):
        x = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
        y = torch.empty_like(x)
        native.kernels().softmax(SOFTMAX, code, x.data_ptr(), y.data_ptr(), *shape, plan, False, 1)
        truth = x.double().softmax(1)
        _, exponent = torch.frexp(truth.clamp_min(torch.finfo(dtype).tiny))
        spacing = torch.ldexp(torch.full_like(truth, torch.finfo(dtype).eps), exponent - 1)
        assert ((y.double() - truth).abs() / spacing).max() <= 0.55


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_every_half_is_converted_as_torch_does(isa, name):
    """logsumexp of one entry is that entry: all 65536 bit patterns go in and out."""
    torch = pytest.importorskip("torch")
    code = {"bfloat16": 1, "float16": 2}[name]
    bits = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    x = bits.view(getattr(torch, name))
    y = torch.empty_like(x)
    native.kernels().softmax(LOGSUMEXP, code, x.data_ptr(), y.data_ptr(), 65536, 1, 1, 1, False, 1)
    number = ~x.isnan()
    assert torch.equal(y[number], x[number]) and bool(y[~number].isnan().all())


def test_pairs_give_the_log_sum_and_merge(isa):
    x = (np.random.default_rng(0).standard_normal((4, 100_001)) * 30).astype(np.float32)
    mantissa, exponent = np.empty(4, np.float32), np.empty(4, np.float32)
    native.kernels().pairs(F32, x.ctypes.data, mantissa.ctypes.data, exponent.ctypes.data, 4, x.shape[1], 1)
    wide = x.astype(np.float64)
    lse = wide.max(-1) + np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1))
    got = np.log(mantissa.astype(np.float64)) + exponent.astype(np.float64) * np.log(2)
    assert (np.abs(got - lse) <= 3e-7 * np.maximum(1, np.abs(lse))).all()
    assert np.array_equal(exponent, np.round(x.max(-1) / np.log(2)))


def test_all_isas_agree():
    x = (np.random.default_rng(0).standard_normal((3, 5003)) * 8).astype(np.float32)
    for plan in PLANS.values():
        results = []
        for name in ISAS:
            with native.use_isa(name):
                results.append(run(SOFTMAX, x, np.empty_like(x), plan))
        for other in results[1:]:
            large = results[0] > 1e-35
            assert (np.abs(other - results[0])[large] <= 2e-6 * results[0][large]).all()


def test_calls_from_many_threads_at_once():
    """The worker pool serves one call at a time; the others run on their own thread, with the same bits."""
    x = np.random.default_rng(0).standard_normal((1, 300_000)).astype(np.float32)
    expected = run(SOFTMAX, x, np.empty_like(x), threads=2)
    results = [np.empty_like(x) for _ in range(6)]
    workers = [threading.Thread(target=run, args=(SOFTMAX, x, y), kwargs={"threads": 2}) for y in results]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(np.array_equal(y, expected) for y in results)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_gets_workers_of_its_own():
    code = (
        "import os, numpy as np, softgate.numpy as sn\n"
        "x = np.ones((1, 400000), np.float32)\n"
        "sn.softmax(x, num_threads=2)\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    y = sn.softmax(x, num_threads=2)\n"
        "    os._exit(0 if abs(float(y.sum(dtype=np.float64)) - 1) < 1e-6 else 3)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


@pytest.mark.parametrize("forced", ISAS)
def test_environment_forces_an_isa(forced):
    code = f"from softgate import native; i = native.info(); assert i['isa'] == i['forced'] == {forced!r}, i"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "SOFTGATE_ISA": forced}, timeout=120)
    assert done.returncode == 0


def test_environment_refuses_an_unknown_isa():
    env = {**os.environ, "SOFTGATE_ISA": "mmx"}
    done = subprocess.run([sys.executable, "-c", "import softgate.native"], env=env, capture_output=True, text=True)
    assert done.returncode != 0 and "SOFTGATE_ISA must be one of avx512, avx2, scalar, got 'mmx'" in done.stderr


def test_info_describes_the_machine():
    info = native.info()
    assert info["available"] and info["isa"] in info["isas"] and info["best_isa"] == info["isas"][0]
    assert info["l3"] >= info["l2"] > 0 and info["threads"] >= 1 and info["reason"] == ""
    with pytest.raises(ValueError, match="isa must be one of"):
        native.set_isa("neon")
