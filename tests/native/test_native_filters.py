"""The kernel for single filters: every instruction set, geometry and number of threads gives the convolution."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from softgate import native
from softgate.dynamic import _native_filters
from softgate.dynamic._gathered import Compact, fold

pytestmark = pytest.mark.skipif(not native.available(), reason=native.unavailable_reason() or "kernels are there")

GEOMETRIES = (
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 0, "stride": 2},
    {"kernel_size": (5, 2), "padding": (2, 3), "stride": (1, 3), "dilation": (2, 1)},
    {"kernel_size": (2, 4), "padding": "same", "dilation": (1, 2)},
    {"kernel_size": 1, "padding": "valid"},
)


def _expected(conv: nn.Conv2d, state: Compact, index: Tensor) -> Tensor:
    double = nn.Conv2d(conv.in_channels, conv.out_channels, **conv.options).double()
    double.load_state_dict(conv.state_dict())
    return double(state.spread().double())[:, index]


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("isa", native.info()["isas"])
@pytest.mark.parametrize("options", GEOMETRIES, ids=range(len(GEOMETRIES)))
def test_it_is_the_convolution(isa, options) -> None:
    for height, width, filters in ((9, 13, 11), (5, 8, 3), (6, 34, 7)):
        conv = nn.Conv2d(6, filters, **options)
        conv.options = options
        state = Compact(torch.randn(1, 4, height, width), torch.tensor([0, 2, 3, 5]), 6)
        index = torch.arange(0, filters, 2)
        with native.use_isa(isa), torch.no_grad():
            found = _native_filters.run(conv, fold(conv, None, None), state, index)
            expected = _expected(conv, state, index)
        assert found.x.shape == expected.shape and torch.equal(found.which, index)
        torch.testing.assert_close(found.x.double(), expected, rtol=1e-5, atol=1e-5)


def test_threads_change_no_bit() -> None:
    before = torch.get_num_threads()
    for side, filters in ((3, 300), (40, 64)):
        conv = nn.Conv2d(64, filters, 3, padding=1)
        folded, x = fold(conv, None, None), torch.randn(1, 64, side, side)
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            try:
                found.append(_native_filters.run(conv, folded, x, torch.arange(filters)).x)
            finally:
                torch.set_num_threads(before)
        assert torch.equal(*found)
        torch.testing.assert_close(found[0], F.conv2d(x, conv.weight, conv.bias, padding=1), rtol=1e-4, atol=1e-4)


def test_what_it_refuses(monkeypatch) -> None:
    conv, x = nn.Conv2d(4, 4, 3), torch.zeros(1, 4, 5, 5)
    assert _native_filters.refuses(conv, x) is None
    assert "depthwise" in str(_native_filters.refuses(nn.Conv2d(4, 4, 3, groups=4), x))
    assert "float32" in str(_native_filters.refuses(conv, x.double()))
    assert "float32" in str(_native_filters.refuses(conv, x.to("meta")))
    monkeypatch.setenv("SOFTGATE_KERNELS", "reference")
    assert "SOFTGATE_KERNELS" in str(_native_filters.refuses(conv, x))
