from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty ``$SOFTGATE_DATA``; the cache is empty too."""
    home = tmp_path / "data-home"
    home.mkdir()
    monkeypatch.setenv("SOFTGATE_DATA", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return home


@pytest.fixture
def real_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The real data sets, with an empty cache; skips where they are absent."""
    beside = Path(__file__).resolve().parents[4] / "shared" / "data"
    root = Path(os.environ.get("SOFTGATE_DATA") or beside)
    if not (root / "mnist").is_dir():
        pytest.skip(f"data sets not found at {root}; set SOFTGATE_DATA to their folder")
    monkeypatch.setenv("SOFTGATE_DATA", str(root))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return root
