from __future__ import annotations

import getpass
import json
import os
import platform
import re
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

import softgate
from softgate.lab import environment as module
from softgate.lab.environment import environment, installed


def test_it_says_what_a_figure_depends_on() -> None:
    record = environment()
    assert record["softgate"] == softgate.__version__
    assert record["torch"] == torch.__version__ and record["numpy"] == np.__version__
    assert record["python"] == platform.python_version()
    assert record["threads"] == torch.get_num_threads()
    assert record["usable_cores"] == len(os.sched_getaffinity(0)) <= record["cores"]
    assert record["memory_gib"] > 0.1 and len(record["load_average"]) == 3
    date = datetime.strptime(record["date"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert abs(datetime.now(UTC) - date) < timedelta(minutes=1)


def test_it_is_json_and_names_no_person_and_no_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTGATE_DATA", "/home/someone/data")
    monkeypatch.setenv("TORCH_HOME", "~/models")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    record = environment()
    text = json.dumps(record, allow_nan=False)
    assert (
        record["variables"] | {"SOFTGATE_DATA": "set", "TORCH_HOME": "set", "OMP_NUM_THREADS": "3"}
        == record["variables"]
    )
    assert "hush" not in text and "someone" not in text
    values = re.findall(r'"([^"]*)"', text)
    assert not [value for value in values if value.startswith(("/", "~", "\\"))]
    assert socket.gethostname() not in values and getpass.getuser() not in values


def test_the_commit_is_that_of_the_checkout() -> None:
    root = Path(softgate.__file__).parents[2]
    if not (root / ".git").exists():
        assert "commit" not in environment()
        pytest.skip("softgate is installed, not a checkout")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    module._checkout.cache_clear()
    record = environment()
    assert record["commit"] == head.stdout.strip() and isinstance(record["dirty"], bool)


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    module._checkout.cache_clear()
    try:
        assert "commit" not in environment()
    finally:
        module._checkout.cache_clear()


def test_a_repository_around_an_installed_package_is_not_its_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setattr(softgate, "__file__", str(tmp_path / "lib" / "softgate" / "__init__.py"))
    module._checkout.cache_clear()
    try:
        assert module._checkout() == {}
    finally:
        module._checkout.cache_clear()


def test_versions_come_from_metadata_without_an_import() -> None:
    code = (
        "import sys; from softgate.lab.environment import environment; environment(); "
        "print([m for m in ('transformers', 'ray', 'triton', 'sklearn', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert installed(("numpy", "no-such-package")) == {"numpy": np.__version__}


def test_an_unknown_machine_is_described_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> str:
        raise OSError("no /proc here")

    read_text = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, *a, **o: refuse() if str(self).startswith("/proc") else read_text(self, *a, **o)
    )
    monkeypatch.setattr(os, "getloadavg", refuse)
    monkeypatch.setattr(os, "sysconf", refuse)
    monkeypatch.delattr(os, "sched_getaffinity")
    module.cpu.cache_clear()
    try:
        record = environment()
    finally:
        module.cpu.cache_clear()
    assert record["load_average"] is None and record["memory_gib"] is None and record["isa"] == []
    assert record["cpu"] and record["usable_cores"] == os.cpu_count()
