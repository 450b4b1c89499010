"""What a figure was measured on: versions, machine, load. Records are published, so it names no person and no path."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import softgate

#: Optional packages whose version changes figures; read from metadata, never imported.
PACKAGES = ("triton", "liger-kernel", "transformers", "accelerate", "timm", "trl", "peft", "scikit-learn", "pillow",
            "ray")  # fmt: skip

#: Instruction sets that numeric libraries dispatch on.
_ISA_FLAGS = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
              "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8", "asimd", "sve", "sve2", "bf16")  # fmt: skip

_VARIABLES = re.compile(
    r"SOFTGATE_\w+|OMP_\w+|MKL_\w+|OPENBLAS_\w+|KMP_\w+|GOMP_CPU_AFFINITY|ATEN_CPU_CAPABILITY|CUDA_VISIBLE_DEVICES|"
    r"CUDA_LAUNCH_BLOCKING|CUBLAS_WORKSPACE_CONFIG|NVIDIA_TF32_OVERRIDE|PYTORCH_\w+|TORCH_\w+|TORCHINDUCTOR_\w+|"
    r"TRITON_\w+|PYTHONHASHSEED|LD_PRELOAD|MALLOC_\w+"
)


def environment() -> dict[str, Any]:
    """Describe this process and machine as JSON-able values.

    Host and user names and absolute paths are left out: the record is meant to be published. A variable whose value
    looks like a path is recorded as ``"set"``.
    """
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "softgate": softgate.__version__,
        **_checkout(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "packages": installed(PACKAGES),
        "os": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        **cpu(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "load_average": _load_average(),
        "memory_gib": _memory_gib(),
        "gpus": gpus(),
        "cuda": torch.version.cuda,
        "variables": _variables(),
    }


def installed(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of those ``packages`` that are installed, from their metadata."""
    versions = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def usable_cores() -> int:
    """Cores this process may run on, which a container or batch system may have limited."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus() -> list[dict[str, Any]]:
    """Name, memory and compute capability of every CUDA device; empty without one."""
    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        memory = round(device.total_memory / 2**30, 1)
        found.append({"name": device.name, "memory_gib": memory, "capability": f"{device.major}.{device.minor}"})
    return found


@functools.cache
def _checkout() -> dict[str, Any]:
    """Commit and dirty flag if softgate runs from its own git checkout, nothing for an installed package."""
    root = Path(softgate.__file__).resolve().parents[2]
    if not (root / ".git").exists() or not (root / "src" / "softgate").is_dir():
        return {}
    commit, status = _git(root, "rev-parse", "HEAD"), _git(root, "status", "--porcelain")
    return {} if commit is None else {"commit": commit, "dirty": None if status is None else bool(status)}


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@functools.cache
def cpu() -> dict[str, Any]:
    """Model, instruction sets, and the one that torch's own kernels use."""
    model, flags = platform.processor(), set[str]()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags.update(value.split())
    isa = [flag for flag in _ISA_FLAGS if flag in flags]
    return {"cpu": model or platform.machine(), "isa": isa, "torch_isa": torch.backends.cpu.get_cpu_capability()}


def _load_average() -> list[float] | None:
    with suppress(OSError, AttributeError):
        return [round(value, 2) for value in os.getloadavg()]
    return None


def _memory_gib() -> float | None:
    with suppress(OSError, ValueError, AttributeError):
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return None


def _variables() -> dict[str, str]:
    relevant = {name: value for name, value in sorted(os.environ.items()) if _VARIABLES.fullmatch(name)}
    return {name: "set" if re.search(r"[/\\~@]", value) else value for name, value in relevant.items()}
