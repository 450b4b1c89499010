from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import sys
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from softgate.lab import doctor
from softgate.lab.doctor import Finding, diagnose, torchvision_needs_cuda


def by_topic(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.topic: finding for finding in findings}


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SOFTGATE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    (tmp_path / "data").mkdir()
    return tmp_path


def test_every_finding_is_complete_and_json() -> None:
    findings = diagnose()
    topics = [finding.topic for finding in findings]
    assert {"install", "torch", "cpu", "native kernels", "compiler", "gpu", "data MNIST", "cache"} <= set(topics)
    for finding in findings:
        assert finding.status in ("ok", "warn", "missing") and finding.message
        assert finding.status != "ok" or not finding.fix
    json.dumps([dataclasses.asdict(finding) for finding in findings])


def test_nothing_is_written(empty_home: Path) -> None:
    diagnose()
    assert not (empty_home / "xdg").exists()


def test_no_check_can_take_the_others_down(monkeypatch: pytest.MonkeyPatch) -> None:
    def explode() -> Any:
        yield Finding("early", "ok", "said before the crash")
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setitem(doctor._CHECKS, "cpu", explode)
    found = by_topic(diagnose())
    assert found["early"].status == "ok"
    assert found["cpu"].status == "warn" and "ZeroDivisionError: unforeseen" in found["cpu"].message
    assert "cache" in found


def test_data_sets_are_found_missing_or_incomplete(empty_home: Path) -> None:
    found = by_topic(diagnose())
    assert found["data MNIST"].status == found["data CIFAR-10"].status == "missing"
    assert str(empty_home / "data") in found["data MNIST"].fix and "--download" in found["data MNIST"].fix
    (empty_home / "data" / "mnist").mkdir()
    (empty_home / "data" / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"")
    (empty_home / "data" / "cifar10").mkdir()
    (empty_home / "data" / "cifar10" / "cifar10-jpeg.zip").write_bytes(b"")
    (empty_home / "data" / "text").mkdir()
    (empty_home / "data" / "text" / "input.txt").write_bytes(b"")
    found = by_topic(diagnose())
    assert found["data MNIST"].status == "warn" and "lacks train-labels" in found["data MNIST"].message
    assert found["data CIFAR-10"].status == "ok" and found["data CIFAR-10"].message.endswith("cifar10-jpeg.zip")
    assert found["data tiny Shakespeare"].message == str(empty_home / "data" / "text")


def test_a_wrong_data_folder_and_the_pickled_cifar_are_said(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty_home / "data" / "cifar10").mkdir()
    (empty_home / "data" / "cifar10" / "cifar-10-python.tar.gz").write_bytes(b"")
    assert "pickle" in by_topic(diagnose())["data"].message
    monkeypatch.setenv("SOFTGATE_DATA", str(empty_home / "nowhere"))
    assert "is not a folder" in by_topic(diagnose())["data folder"].message


def _fake_native(monkeypatch: pytest.MonkeyPatch, info: dict[str, Any]) -> None:
    module = types.ModuleType("softgate.native")
    module.info = lambda: info  # type: ignore[attr-defined]
    module.__spec__ = importlib.util.spec_from_loader("softgate.native", None)
    monkeypatch.setitem(sys.modules, "softgate.native", module)


@pytest.mark.parametrize(
    ("info", "status", "word"),
    [
        ({"available": True, "isa": "avx512", "best_isa": "avx512"}, "ok", "avx512"),
        ({"available": True, "isa": "avx2", "best_isa": "avx512"}, "warn", "held back to avx2"),
        ({"available": False, "reason": "wrong ELF class"}, "missing", "wrong ELF class"),
        ({}, "missing", "was not built"),
    ],
)
def test_native_kernels(monkeypatch: pytest.MonkeyPatch, info: dict[str, Any], status: str, word: str) -> None:
    _fake_native(monkeypatch, info)
    finding = by_topic(diagnose())["native kernels"]
    assert finding.status == status and word in finding.message


def test_no_native_module_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "softgate.native" else real(name, *a)
    )
    finding = by_topic(diagnose())["native kernels"]
    assert finding.status == "missing" and "compiler" in finding.fix


def test_kernels_turned_off_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTGATE_KERNELS", "reference")
    assert "SOFTGATE_KERNELS=reference" in by_topic(diagnose())["kernels"].message


def test_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    assert by_topic(diagnose())["compiler"].message.startswith("g++ can")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert by_topic(diagnose())["compiler"].status == "missing"


def _fake_packages(monkeypatch: pytest.MonkeyPatch, packages: dict[str, tuple[str, list[str]]]) -> None:
    """Pretend that exactly ``packages`` (version, requirements) are installed."""

    def look_up(index: int) -> Any:
        def find(name: str) -> Any:
            if name not in packages:
                raise metadata.PackageNotFoundError(name)
            return packages[name][index]

        return find

    monkeypatch.setattr(metadata, "version", look_up(0))
    monkeypatch.setattr(metadata, "requires", look_up(1))


def test_a_package_for_another_torch_is_a_clash(monkeypatch: pytest.MonkeyPatch) -> None:
    fitting = torch.__version__.split("+")[0]
    needs = {"torchvision": ("0.99.0", ["torch==9.9.0", "numpy"]), "timm": ("1.0", [f"torch=={fitting}"]),
             "trl": ("1.0", ["torch==9.9.0; extra == 'dev'"])}  # fmt: skip
    _fake_packages(monkeypatch, needs)
    monkeypatch.setattr(doctor, "torchvision_needs_cuda", lambda: False)
    found = by_topic(list(doctor._clashes()))
    assert "needs torch==9.9.0" in found["torchvision"].message and set(found) == {"torchvision"}


def test_a_cuda_torchvision_beside_cpu_torch_is_found_without_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)  # another test may have imported the real one
    monkeypatch.setattr(torch.version, "cuda", None)
    (package / "_C.so").write_bytes(b"\x7fELF...libtorch_cpu.so\x00libc10.so\x00")
    assert not torchvision_needs_cuda()
    (package / "_C.so").write_bytes(b"\x7fELF...libc10_cuda.so\x00libtorch_cuda.so\x00")
    assert torchvision_needs_cuda()
    finding = by_topic(list(doctor._clashes()))["torchvision"]
    assert finding.status == "warn" and "uninstall torchvision" in finding.fix
    assert "torchvision" not in sys.modules
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "torchvision" not in by_topic(list(doctor._clashes()))


def test_extras_and_core_requirements(monkeypatch: pytest.MonkeyPatch) -> None:
    requires = ["torch>=2.10", "rich>=13", "transformers>=5; extra == 'hf'", "ray>=2; extra == 'ray'"]
    _fake_packages(
        monkeypatch, {"softgate": ("0.1", requires), "torch": ("2.9", []), "rich": ("15", []), "ray": ("2.1", [])}
    )
    found = by_topic(list(doctor._extras()))
    assert (
        found["install"].status == "broken" and "torch 2.9 is installed, >=2.10 is needed" in found["install"].message
    )
    assert found["extra hf"].status == "missing" and "softgate[hf]" in found["extra hf"].fix
    assert found["extra ray"].status == "ok"
    _fake_packages(monkeypatch, {})
    assert "not installed" in by_topic(list(doctor._extras()))["install"].message


def test_a_driver_without_a_gpu_for_torch_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "gpus", list)
    monkeypatch.setattr(Path, "exists", lambda self: str(self) == "/proc/driver/nvidia/version")
    assert next(doctor._gpu()).status == "warn"
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert next(doctor._gpu()).status == "missing"
    monkeypatch.setattr(doctor, "gpus", lambda: [{"name": "H200", "memory_gib": 139.8, "capability": "9.0"}])
    assert "H200" in next(doctor._gpu()).message


def test_load_and_threads_warn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (99.0, 0.0, 0.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4096)
    found = by_topic(list(doctor._cpu()))
    assert "99.0" in found["load"].message and "OMP_NUM_THREADS" in found["threads"].fix


def test_the_cache_that_cannot_be_written(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_topic(list(doctor._cache()))["cache"].status == "ok"
    (empty_home / "xdg").write_text("a file in the way")
    assert "cannot be written" in by_topic(list(doctor._cache()))["cache"].message
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert "no home folder" in by_topic(list(doctor._cache()))["cache"].message


def test_little_disk_warns(empty_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = types.SimpleNamespace(total=10**12, used=0, free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    assert by_topic(list(doctor._cache()))["disk"].status == "warn"
