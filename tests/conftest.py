"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

# Before the first import of triton: without a GPU its kernels run in the interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from softgate.integrations import torchvision_cpu

# Before any test imports a model of transformers or timm: both import torchvision where it is installed.
torchvision_cpu.repair()

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def golden() -> Callable[[str], Path]:
    """Folder of the arrays made by the authors' own code; skips where they are absent."""

    def find(slug: str) -> Path:
        root = Path(os.environ.get("SOFTGATE_GOLDEN", ROOT.parent / "shared" / "golden"))
        if not (root / slug).is_dir():
            pytest.skip(f"golden arrays not found at {root / slug}; set SOFTGATE_GOLDEN to their folder")
        return root / slug

    return find


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


#: Tests that one worker takes at a time. One by one, the scheduler of ``--dist loadgroup`` looks through all tests done
#: so far after every test, which for 26,000 of them costs a minute; too many at a time leave a worker idle at the end.
TOGETHER = 20


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Refuse names that differ from process to process, and hand tests to workers in groups of neighbours."""
    names = [item.nodeid for item in items if " at 0x" in item.nodeid or r"\x1f\x8b" in item.nodeid]
    if names:  # several workers could not share these tests out
        raise pytest.UsageError(f"give cases ids without an object's address or compressed bytes: {names[0][:200]}")
    if getattr(config.option, "loadgroup", False):
        _group(items)


def _group(items: list[pytest.Item]) -> None:
    """Neighbours of one file also share fixtures. What has a group of its own keeps it; the largest groups go first."""
    count: dict[Path, int] = {}
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            place = count[item.path] = count.get(item.path, -1) + 1
            item.add_marker(pytest.mark.xdist_group(f"{item.path.stem}-{place // TOGETHER}"))
