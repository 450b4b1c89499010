"""What works on this machine and what does not, with the command that mends it: the findings of ``softgate doctor``."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from softgate.integrations.torchvision_cpu import torchvision_needs_cuda
from softgate.lab.data.store import ENVIRONMENT_VARIABLE, Source, cache_folder, data_folders, find_file
from softgate.lab.environment import cpu, gpus, usable_cores

if TYPE_CHECKING:
    from packaging.requirements import Requirement

Status = Literal["ok", "warn", "missing", "broken"]

#: Packages that pin or need a torch, and that break models of other packages when they get the wrong one.
_USES_TORCH = ("torchvision", "torchaudio", "triton", "transformers", "accelerate", "peft", "trl", "timm", "lightning")
_EXTRAS = {
    "hf": "swap methods into transformers models",
    "data": "scikit-learn's data sets and the JPEG copies of CIFAR-10",
    "ray": "run grids on a cluster",
}
_LITTLE_DISK_GB = 2.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        topic: what it is about, one or two words.
        status: ``"ok"``; ``"warn"``, works but something is wrong or slow; ``"missing"``, optional and absent;
            ``"broken"``, softgate cannot be relied on before it is mended.
        message: what was found.
        fix: what to do about it; empty if nothing needs doing.
    """

    topic: str
    status: Status
    message: str
    fix: str = ""


def diagnose() -> list[Finding]:
    """Look at everything softgate can use. Nothing is installed, downloaded, written or sent, and nothing raises."""
    findings: list[Finding] = []
    for topic, check in _CHECKS.items():
        try:
            findings.extend(check())
        except Exception as error:  # a machine that nobody foresaw must still get the other findings
            findings.append(Finding(topic, "warn", f"could not be checked ({type(error).__name__}: {error})"))
    return findings


def _cpu() -> Iterator[Finding]:
    processor, cores = cpu(), usable_cores()
    widest = next((isa for isa in ("avx512f", "avx2", "sve", "asimd") if isa in processor["isa"]), "")
    described = f"{processor['cpu']}, {cores} usable cores, {widest.upper() or 'no wide vector instructions'}"
    yield Finding("cpu", "ok" if widest else "warn", f"{described}; torch uses {processor['torch_isa']}")
    if torch.get_num_threads() > cores:
        message = f"torch runs {torch.get_num_threads()} threads on {cores} cores, which is slower than {cores}"
        yield Finding("threads", "warn", message, f"set OMP_NUM_THREADS={cores}")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > cores:
        message = f"the load average is {load:.1f} on {cores} cores: timings will be too long"
        yield Finding("load", "warn", message, "let other programs finish before measuring time")


def _kernels() -> Iterator[Finding]:
    wanted = os.environ.get("SOFTGATE_KERNELS", "").strip()
    if wanted and wanted != "auto":
        yield Finding("kernels", "warn", f"SOFTGATE_KERNELS={wanted} restricts which kernels run", "unset it")
    rebuild = "install a C++ compiler, then: pip install --force-reinstall --no-deps softgate"
    if importlib.util.find_spec("softgate.native") is None:
        yield Finding("native kernels", "missing", "this softgate has none; the torch references run", rebuild)
        return
    info = importlib.import_module("softgate.native").info()
    if info.get("available"):
        isa, best = info.get("isa", "portable"), info.get("best_isa")
        if best and isa != best:
            message = f"built and loaded, held back to {isa} where this machine has {best}"
            yield Finding("native kernels", "warn", message, "unset SOFTGATE_ISA")
        else:
            yield Finding("native kernels", "ok", f"built and loaded, {isa}")
    else:
        reason = info.get("reason") or "the extension was not built"
        yield Finding("native kernels", "missing", f"not loaded ({reason}); the torch references run", rebuild)


def _compiler() -> Iterator[Finding]:
    names = [os.environ.get("CXX", "").split(" ")[0], "c++", "g++", "clang++"]
    found = next((name for name in names if name and shutil.which(name)), None)
    if found:
        yield Finding("compiler", "ok", f"{Path(found).name} can build native kernels and serve torch.compile")
    else:
        message = "no C++ compiler: native kernels cannot be built, torch.compile does not work on the CPU"
        yield Finding("compiler", "missing", message, "install g++ or clang++")


def _versions() -> Iterator[Finding]:
    yield Finding(
        "torch", "ok", f"{torch.__version__}, {'CUDA ' + torch.version.cuda if torch.version.cuda else 'CPU'}"
    )
    for package in ("triton", "transformers"):
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            yield Finding(
                package, "missing", "not installed", "pip install 'softgate[hf]'" if package != "triton" else ""
            )
            continue
        interpreted = package == "triton" and not torch.cuda.is_available()
        note = "; without a GPU its kernels run in the interpreter only (TRITON_INTERPRET=1)" if interpreted else ""
        yield Finding(package, "ok", version + note)


def _clashes() -> Iterator[Finding]:
    """Packages whose metadata exclude the installed torch, and the torchvision build that breaks CPU torch."""
    installed = torch.__version__.split("+")[0]
    for package in _USES_TORCH:
        try:
            version, requirements = metadata.version(package), _requirements(package)
        except metadata.PackageNotFoundError:
            continue
        for requirement in requirements:
            if requirement.name == "torch" and not requirement.specifier.contains(installed, prereleases=True):
                message = f"{package} {version} needs torch{requirement.specifier}, installed is {torch.__version__}"
                yield Finding(package, "warn", message, f"install the {package} that belongs to this torch")
    if torch.version.cuda is None and torchvision_needs_cuda():
        message = (
            "the installed torchvision is built for CUDA and this torch is not: `import torchvision` fails, and with "
            "it transformers models, timm, peft and trl"
        )
        fix = "pip uninstall torchvision, or call softgate.integrations.torchvision_cpu.repair() before the import"
        yield Finding("torchvision", "warn", message, fix)


def _gpu() -> Iterator[Finding]:
    devices = gpus()
    for device in devices:
        described = f"{device['name']}, {device['memory_gib']} GiB, compute capability {device['capability']}"
        yield Finding("gpu", "ok", described)
    if not devices and Path("/proc/driver/nvidia/version").exists():
        message = "an NVIDIA driver is loaded but torch sees no GPU"
        fix = (
            "install a CUDA build of torch"
            if torch.version.cuda is None
            else "check CUDA_VISIBLE_DEVICES and nvidia-smi"
        )
        yield Finding("gpu", "warn", message, fix)
    elif not devices:
        yield Finding("gpu", "missing", "none; everything runs on the CPU, `--scale paper` needs GPUs")


def _requirements(package: str, extra: str = "") -> list[Requirement]:
    """What ``package`` requires, or what its ``extra`` requires in addition."""
    from packaging.requirements import Requirement

    declared = [Requirement(text) for text in metadata.requires(package) or ()]
    plain = [r for r in declared if r.marker is None or r.marker.evaluate({"extra": ""})]
    if not extra:
        return plain
    return [r for r in declared if r.marker is not None and r not in plain and r.marker.evaluate({"extra": extra})]


def _unmet(requirements: list[Requirement]) -> str:
    """What is wrong with ``requirements``, empty if all are met."""
    wrong = []
    for requirement in requirements:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is installed, {requirement.specifier} is needed")
    return "; ".join(wrong)


def _extras() -> Iterator[Finding]:
    try:
        core = _requirements("softgate")
    except metadata.PackageNotFoundError:
        message = "softgate is on the path but not installed: its requirements and the command are not checked"
        yield Finding("install", "warn", message, "in the checkout: pip install -e .")
        return
    wrong = _unmet(core)
    if wrong:
        yield Finding("install", "broken", wrong, "pip install --upgrade softgate, or `make reproduce` in a checkout")
    else:
        yield Finding("install", "ok", f"softgate {metadata.version('softgate')} and its {len(core)} requirements")
    for extra, purpose in _EXTRAS.items():
        absent = _unmet(_requirements("softgate", extra))
        if absent:
            yield Finding(f"extra {extra}", "missing", f"{absent} (to {purpose})", f"pip install 'softgate[{extra}]'")
        else:
            yield Finding(f"extra {extra}", "ok", purpose)


def _data() -> Iterator[Finding]:
    from softgate.lab.data.cifar import CIFAR10, find
    from softgate.lab.data.images import FASHION_MNIST, MNIST
    from softgate.lab.data.tables import NSL_KDD
    from softgate.lab.data.text import TINY_SHAKESPEARE

    configured = os.environ.get(ENVIRONMENT_VARIABLE)
    if configured and not Path(configured).expanduser().is_dir():
        message = f"{ENVIRONMENT_VARIABLE}={configured} is not a folder"
        yield Finding("data folder", "warn", message, f"correct or unset {ENVIRONMENT_VARIABLE}")
    for source in (MNIST, FASHION_MNIST, NSL_KDD, TINY_SHAKESPEARE):
        copies = [find_file(source, resource) for resource in source.resources]
        places = sorted({str(copy.parent) for copy in copies if copy is not None})
        lacking = [r.name for r, copy in zip(source.resources, copies, strict=True) if copy is None]
        if places and lacking:
            yield Finding(
                f"data {source.name}", "warn", f"{', '.join(places)} lacks {', '.join(lacking)}", _fetch_hint()
            )
        else:
            yield _data_finding(source, places[0] if places else None)
    yield _data_finding(CIFAR10, str(find("train") or "") or None)


def _data_finding(source: Source, place: str | None) -> Finding:
    topic = f"data {source.name}"
    return Finding(topic, "ok", place) if place else Finding(topic, "missing", "not on this machine", _fetch_hint())


def _fetch_hint() -> str:
    return "add --download to the command that needs it, or put the files into " + " or ".join(map(str, data_folders()))


def _cache() -> Iterator[Finding]:
    cache = cache_folder()
    if cache is None:
        yield Finding("cache", "warn", "this user has no home folder; decoded data are not kept", "set XDG_CACHE_HOME")
        return
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        message = f"{cache} cannot be written; downloads fail and decoded data are not kept"
        yield Finding("cache", "warn", message, "make it writable or set XDG_CACHE_HOME")
    else:
        yield Finding("cache", "ok", f"{cache} is writable")
    for place, folder in {"cache": existing, "current folder": Path.cwd()}.items():
        free = shutil.disk_usage(folder).free / 1e9
        if free < _LITTLE_DISK_GB:
            message = f"{free:.1f} GB free for the {place}: data sets and checkpoints may not fit"
            yield Finding("disk", "warn", message, "free some space")
        else:
            yield Finding("disk", "ok", f"{free:.0f} GB free for the {place}")


_CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "install": _extras,
    "torch": _versions,
    "clashes": _clashes,
    "cpu": _cpu,
    "kernels": _kernels,
    "compiler": _compiler,
    "gpu": _gpu,
    "data": _data,
    "cache": _cache,
}
