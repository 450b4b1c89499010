"""Large results lie in memory that the system was asked to give in large pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from softgate._math import pages
from softgate._math.pages import LARGE, in_large_pages
from softgate.attention import norm_aware_linear_attention, softmax_free_attention

SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")
needs_large_pages = pytest.mark.skipif(
    not SWITCH.is_file() or "[never]" in SWITCH.read_text(), reason="the system has no large pages to give"
)


def flags(address: int) -> str:
    """The flags of the mapping that holds ``address``, from the system's table of the process."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line
    return ""


@needs_large_pages
def test_the_middle_of_a_large_tensor_is_advised() -> None:
    x = in_large_pages(torch.empty(LARGE // 4 + 3))
    assert "hg" in flags(x.data_ptr() + x.nbytes // 2).split()
    assert bool((x.fill_(2.0) == 2.0).all())


def test_whole_pages_inside_the_tensor_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(pages, "_advise", lambda: lambda address, size: asked.append((address, size)))
    in_large_pages(torch.empty(2**14 - 1), at_least=2**16)
    assert not asked
    x = torch.empty(2**15)[7:]
    assert in_large_pages(x, at_least=2**16) is x
    ((address, size),) = asked
    page = pages.mmap.PAGESIZE
    assert address % page == 0 and size % page == 0
    assert x.data_ptr() <= address < x.data_ptr() + page
    assert x.data_ptr() + x.nbytes - page < address + size <= x.data_ptr() + x.nbytes


def test_nothing_is_asked_where_the_system_has_no_such_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_advise", lambda: None)
    assert in_large_pages(torch.ones(5000), at_least=1).sum() == 5000


@needs_large_pages
@pytest.mark.parametrize("name", ["norm-aware", "softmax-free"])
def test_linear_attention_returns_such_memory(name: str) -> None:
    x = torch.ones(1, 1, LARGE // 64, 16).requires_grad_()
    if name == "norm-aware":
        y = norm_aware_linear_attention(x, x, x, backend="chunked")
    else:
        y = softmax_free_attention(x, x, torch.eye(2, 16)[None, None], backend="tiled")
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert "hg" in flags(y.data_ptr() + y.nbytes // 2).split()
    assert gradient.shape == x.shape
