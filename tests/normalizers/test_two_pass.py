"""softmax, log_softmax, logsumexp and pairs: gradients, arguments, aliasing, transforms, numpy."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import grad, jacrev, jvp, vmap

import softgate
from softgate import native
from softgate import numpy as sn
from softgate.normalizers import Softmax, log_softmax, logsumexp, logsumexp_pair, merge_pairs, softmax
from softgate.normalizers.two_pass.reference import pair_reference

# torch's own forward-mode and batched-gradient machinery warns about itself
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
needs_kernels = pytest.mark.skipif(not native.available(), reason="the native kernels are not compiled in")
MAPS = {softmax: torch.softmax, log_softmax: torch.log_softmax}
NATIVE = ("two_pass", "three_pass_recompute", "three_pass_reload", "online")


@pytest.fixture(params=MAPS, ids=lambda f: f.__name__)
def pair(request):
    return request.param, MAPS[request.param]


@needs_kernels
@pytest.mark.parametrize("algorithm", ("auto", *NATIVE))
@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_backward_equals_autograd(pair, algorithm, dim):
    ours, theirs = pair
    x = torch.randn(3, 70, 33, requires_grad=True)
    seed = torch.randn(3, 70, 33)
    y = ours(x, dim, algorithm=algorithm)
    assert "_Kernel" in type(y.grad_fn).__name__
    (g,) = torch.autograd.grad(y, x, seed)
    (truth,) = torch.autograd.grad(theirs(x.double(), dim), x, seed.double())
    assert (g - truth).abs().max() <= 1e-5 * truth.abs().max()


@needs_kernels
@pytest.mark.parametrize("function", [softmax, log_softmax, logsumexp])
def test_double_backward(function):
    """The gradient of the native backward equals that of torch in float64."""
    x = torch.randn(4, 37)

    def curvature(f, x):
        x = x.clone().requires_grad_()
        (g,) = torch.autograd.grad((f(x, -1) ** 2).sum(), x, create_graph=True)
        return torch.autograd.grad((g**2).sum(), x)[0]

    reference = function.__softgate__.reference
    ours, truth = curvature(function, x), curvature(reference, x.double())
    assert (ours - truth).abs().max() <= 1e-5 * truth.abs().max()


@pytest.mark.parametrize("function", [softmax, log_softmax, logsumexp])
@pytest.mark.parametrize("dim", [0, -1])
def test_gradcheck(function, dim):
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: function(x, dim), x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: function(x, dim), x)


def test_pair_gradcheck():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: logsumexp_pair(x)[0], x)


@needs_kernels
def test_empty_rows_have_no_gradient(pair):
    ours, _ = pair
    x = torch.zeros(2, 40)
    x[0] = -math.inf
    x.requires_grad_()
    y = ours(x, empty="zero")
    (g,) = torch.autograd.grad(y[1, 3] + y[0].exp().sum(), x)
    assert (g[0] == 0).all() and g[1].abs().sum() > 0 and g.isfinite().all()
    reference = ours.__softgate__.reference(x.detach(), empty="zero")
    assert torch.allclose(y.detach(), reference)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_short_way_equals_long_way(pair, dtype):
    """``out=`` takes the extension's own checks; the bits are those of the allocating call."""
    ours, _ = pair
    for shape, dim in (((16,), 0), ((1, 16), -1), ((5, 300), -1), ((3, 7, 9), 1), ((2, 200_000), 1)):
        x = torch.randn(shape).to(dtype)
        out = torch.full_like(x, math.nan)
        assert ours(x, dim, out=out) is out
        assert torch.equal(out, ours(x, dim))


def test_out_may_be_x_itself(pair):
    ours, _ = pair
    for x in (torch.randn(4, 50), torch.randn(50, 4).t(), torch.randn(4, 50, dtype=torch.float64)):
        expected = ours(x.clone())
        assert ours(x, out=x) is x
        assert torch.allclose(x, expected)


def test_out_of_another_layout(pair):
    ours, _ = pair
    x, out = torch.randn(6, 8), torch.empty(8, 6).t()
    ours(x, out=out)
    assert torch.allclose(out, ours(x))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.flatten()[1:41].view(5, 8),
        lambda x: torch.empty(8).expand(5, 8),
        lambda x: torch.empty(5, 9),
        lambda x: torch.empty(5, 8, dtype=torch.float64),
        lambda x: torch.empty(5, 8, requires_grad=True),
        lambda x: np.empty((5, 8), np.float32),
        lambda x: torch.empty(5, 8, device="meta"),
    ],
    ids=["overlap", "expanded", "shape", "dtype", "gradient", "numpy", "device"],
)
def test_wrong_out(pair, make):
    ours, _ = pair
    store = torch.randn(6, 8)
    x = store.flatten()[:40].view(5, 8)
    with pytest.raises((ValueError, TypeError), match="out"):
        ours(x, out=make(store))


def test_out_where_a_gradient_is_needed(pair):
    ours, _ = pair
    x = torch.randn(3, requires_grad=True)
    with pytest.raises(ValueError, match="out cannot be given"):
        ours(x, out=torch.empty(3))
    with torch.no_grad():
        assert ours(x, out=torch.empty(3)).sum() < 1.0001


@pytest.mark.parametrize("dim", [1.0, "0", True, 7, -8, 2**70])
def test_wrong_dim_with_out(pair, dim):
    ours, _ = pair
    with pytest.raises((ValueError, TypeError), match="dim"):
        ours(torch.ones(2, 3), dim, out=torch.ones(2, 3))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 5), (5, 0), (2, 0, 3), (1, 1, 1)])
def test_shapes_without_work(shape):
    x = torch.randn(shape)
    for dim in (0, -1):
        for function, reference in (*MAPS.items(), (logsumexp, torch.logsumexp)):
            ours, theirs = function(x, dim), reference(x, dim)
            assert ours.shape == theirs.shape and torch.allclose(ours, theirs)
    if x.numel() == 1:
        assert softmax(x, -1).item() == 1.0 and log_softmax(x, -1).item() == 0.0


def test_dtype_converts_first():
    x = torch.randn(3, 9).bfloat16().requires_grad_()
    y = softmax(x, dtype=torch.float32)
    assert y.dtype == torch.float32 and torch.allclose(y, torch.softmax(x, -1, dtype=torch.float32))
    y.sum().backward()
    assert x.grad.dtype == torch.bfloat16


def test_under_transforms_the_reference_runs():
    x = torch.randn(3, 5)
    assert torch.allclose(vmap(softmax)(x), torch.softmax(x, -1))
    assert torch.allclose(grad(lambda x: softmax(x)[0, 0])(x), grad(lambda x: torch.softmax(x, -1)[0, 0])(x))
    assert torch.allclose(jacrev(log_softmax)(x), jacrev(lambda x: torch.log_softmax(x, -1))(x), atol=1e-6)
    tangent = jvp(softmax, (x,), (torch.ones_like(x),))[1]
    assert tangent.abs().max() < 1e-6 and jvp(softmax, (x,), (x,))[1].abs().max() > 1e-2
    assert softmax(torch.empty(3, 5, device="meta")).is_meta


def test_forward_mode_with_out_takes_the_long_way():
    from torch.autograd import forward_ad

    with forward_ad.dual_level():
        x = forward_ad.make_dual(torch.randn(5), torch.ones(5))
        y = softmax(x)
        assert forward_ad.unpack_dual(y).tangent is not None


@needs_kernels
def test_explain_says_what_runs(monkeypatch):
    x = torch.randn(3, 5)
    assert softgate.explain(softmax, x).chosen == "native"
    assert "float64" in softgate.explain(softmax, x.double()).refused["native"]
    assert softgate.explain(softmax, x, algorithm="torch").chosen == "reference"
    monkeypatch.setenv("SOFTGATE_KERNELS", "reference")
    assert softgate.explain(softmax, x).chosen == "reference"
    out = torch.empty_like(x)
    assert torch.equal(softmax(x, out=out), torch.softmax(x, -1))
    with native.use_isa("scalar"):
        monkeypatch.delenv("SOFTGATE_KERNELS")
        assert "without AVX2" in softgate.explain(softmax, x).refused["native"]
        assert softgate.explain(softmax, x, algorithm="online").chosen == "native"


def test_module():
    module = Softmax(dim=1, algorithm="online", empty="zero")
    x = torch.randn(2, 3, 4)
    assert torch.allclose(module(x), nn.Softmax(1)(x))
    assert repr(module) == "Softmax(dim=1, algorithm='online', empty='zero')"
    for arguments in ({"dim": 1.0}, {"dim": True}, {"algorithm": "fast"}, {"empty": "zeros"}):
        with pytest.raises((ValueError, TypeError), match=next(iter(arguments))):
            Softmax(**arguments)


def test_pair_of_a_row():
    for shift in (0.0, 1e4, -1e6):
        x = torch.randn(4, 1001) * 10 + shift
        mantissa, exponent = logsumexp_pair(x)
        truth = torch.logsumexp(x.double(), -1)
        got = mantissa.double().log() + exponent.double() * math.log(2)
        assert ((got - truth).abs() <= 3e-7 * truth.abs().clamp_min(1)).all()
        for mine, reference in zip((mantissa, exponent), pair_reference(x), strict=True):
            assert torch.allclose(mine, reference, rtol=1e-6)


def test_pair_of_special_rows():
    inf, nan = math.inf, math.nan
    x = torch.tensor([[-inf, -inf], [nan, 1.0], [-inf, 0.0], [inf, 0.0], [1e30, 0.0], [-1e30, -inf]])
    for mantissa, exponent in (logsumexp_pair(x), pair_reference(x)):
        assert mantissa[0] == 0 and exponent[0] == -inf and mantissa[2] == 1 and exponent[2] == 0
        assert mantissa[[1, 3, 4, 5]].isnan().all()
    empty = logsumexp_pair(torch.empty(3, 0))
    assert (empty[0] == 0).all() and (empty[1] == -inf).all()


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_merging_shards_equals_the_whole_row(shards):
    x = torch.randn(5, 2000) * 40
    parts = [logsumexp_pair(part) for part in x.chunk(shards, -1)]
    whole = logsumexp_pair(x)
    merged = parts[0]
    for part in parts[1:]:
        merged = merge_pairs(merged, part)
    assert torch.equal(merged[1], whole[1])
    assert torch.allclose(merged[0], whole[0], rtol=1e-6)


def test_merge_is_commutative_associative_and_has_a_neutral_element():
    generator = torch.Generator().manual_seed(0)
    a, b, c = (
        (torch.rand(100, generator=generator) + 0.5, torch.randint(-150, 150, (100,), generator=generator).float())
        for _ in range(3)
    )
    assert all(torch.equal(p, q) for p, q in zip(merge_pairs(a, b), merge_pairs(b, a), strict=True))
    left, right = merge_pairs(merge_pairs(a, b), c), merge_pairs(a, merge_pairs(b, c))
    assert torch.equal(left[1], right[1])
    assert ((left[0] - right[0]).abs() <= 2 * torch.finfo(torch.float32).eps * left[0]).all()
    nothing = torch.zeros(100), torch.full((100,), -math.inf)
    assert all(torch.equal(p, q) for p, q in zip(merge_pairs(a, nothing), a, strict=True))
    both = merge_pairs(nothing, nothing)
    assert (both[0] == 0).all() and (both[1] == -math.inf).all()


NUMPY = {sn.softmax: torch.softmax, sn.log_softmax: torch.log_softmax, sn.logsumexp: torch.logsumexp}


@pytest.mark.parametrize("function", NUMPY, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_numpy_equals_torch(function, dtype, axis):
    x = (np.random.default_rng(0).standard_normal((5, 70)) * 3).astype(dtype)
    truth = NUMPY[function](torch.from_numpy(x).double(), axis).numpy()
    eps = np.finfo(dtype).eps
    read_only = x.copy()
    read_only.flags.writeable = False
    swapped = x.astype(x.dtype.newbyteorder(">"))
    views = (x, read_only, swapped, np.asfortranarray(x), x[::-1, ::-1][::-1, ::-1])
    for given in views:
        for algorithm in ("auto", "numpy", "two_pass"):
            y = function(given, axis, algorithm=algorithm)
            assert y.dtype == dtype and np.allclose(y, truth, rtol=8 * eps, atol=8 * eps)


def test_numpy_special_rows():
    inf, nan = np.inf, np.nan
    x = np.array([[-inf, -inf], [nan, 0.0], [inf, 0.0], [-inf, 0.0]], np.float32)
    for algorithm in ("auto", "numpy"):
        y, lse = sn.softmax(x, algorithm=algorithm), sn.logsumexp(x, algorithm=algorithm)
        assert np.isnan(y[:3]).all() and y[3].tolist() == [0.0, 1.0]
        assert lse[0] == -inf and np.isnan(lse[1]) and lse[2] == inf and lse[3] == 0
        assert sn.softmax(x, algorithm=algorithm, empty="zero")[0].tolist() == [0.0, 0.0]
        assert sn.log_softmax(x, algorithm=algorithm, empty="zero")[0].tolist() == [-inf, -inf]


def test_numpy_shapes_and_out():
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    whole = sn.softmax(x, None)
    assert whole.shape == (3, 4) and np.isclose(whole.sum(), 1) and sn.logsumexp(x, None).shape == ()
    assert sn.softmax(np.float32(2.0)).item() == 1.0 and sn.softmax([0.0, 0.0]).tolist() == [0.5, 0.5]
    assert sn.softmax(np.empty((0, 3))).shape == (0, 3) and (sn.logsumexp(np.empty((2, 0))) == -np.inf).all()
    expected = sn.softmax(x)
    assert sn.softmax(x, out=x) is x and np.array_equal(x, expected)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"x": np.ones(3, np.int64)}, "x"),
        ({"x": np.ones(3, np.complex64)}, "x"),
        ({"x": "abc"}, "x"),
        ({"x": None}, "x"),
        ({"axis": 2}, "axis"),
        ({"axis": 1.0}, "axis"),
        ({"axis": True}, "axis"),
        ({"algorithm": "torch"}, "algorithm"),
        ({"algorithm": None}, "algorithm"),
        ({"empty": "zeros"}, "empty"),
        ({"num_threads": 0}, "num_threads"),
        ({"num_threads": 1.5}, "num_threads"),
        ({"out": [1.0]}, "out"),
        ({"out": np.empty((2, 4), np.float32)}, "out"),
        ({"out": np.empty((2, 3))}, "out"),
        ({"out": np.empty((3, 2), np.float32).T}, "out"),
    ],
)
def test_numpy_bad_input(arguments, word):
    call = {"x": np.ones((2, 3), np.float32), **arguments}
    with pytest.raises((ValueError, TypeError), match=word):
        sn.softmax(call.pop("x"), **call)


def test_numpy_overlap_is_refused():
    store = np.ones(13, np.float32)
    with pytest.raises(ValueError, match="out must be x itself"):
        sn.softmax(store[:12].reshape(3, 4), out=store[1:].reshape(3, 4))


def test_numpy_door_does_not_import_torch():
    code = "import sys, softgate.numpy, softgate.native; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_without_the_extension_everything_still_runs():
    """A pure Python installation: torch and numpy compute, and info() says why."""
    code = """
import sys
sys.modules["softgate._native"] = None
import numpy as np, torch
from softgate import native
import softgate.numpy as sn
from softgate.normalizers import softmax, log_softmax, logsumexp, logsumexp_pair
info = native.info()
assert not info["available"] and "_native" in info["reason"] and info["isa"] is None, info
x = torch.randn(3, 50)
assert torch.equal(softmax(x, algorithm="two_pass"), torch.softmax(x, -1))
assert torch.equal(softmax(x, out=torch.empty_like(x)), torch.softmax(x, -1))
assert torch.equal(logsumexp(x), torch.logsumexp(x, -1)) and logsumexp_pair(x)[0].shape == (3,)
assert np.allclose(sn.softmax(x.numpy()), torch.softmax(x, -1).numpy())
"""
    environment = {name: value for name, value in os.environ.items() if name != "SOFTGATE_ISA"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=120).returncode == 0
