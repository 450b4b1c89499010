"""The likely mistakes of a new user: the exit code, and one line that says what was wrong and what to type next."""

from __future__ import annotations

import errno
import importlib
import json
import os
import shutil
import stat
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor, nn

import softgate
from softgate import attention, cli, losses, normalizers, policy, routing
from softgate.errors import MissingExtraError, SoftgateError, StateError
from softgate.lab import bench, doctor, files, reproduce
from softgate.lab import paper as papers
from softgate.lab.cell import CellRun
from softgate.lab.checkpoint import CheckpointError, Checkpoints
from softgate.lab.data import text as text_data
from softgate.lab.data.store import MissingDataError
from softgate.lab.grid import CellResult
from softgate.lab.page import write_index
from softgate.lab.paper import Cell, Claim, Figures, Paper, Scale
from softgate.lab.site.records import find_records
from softgate.lab.task import run_task

ROOT = Path(__file__).resolve().parents[2]


class Ended:
    """How a command ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def says(self, code: int, *words: str) -> None:
        """Check the exit code, that one line holds every word, and that there is no traceback."""
        shown = self.out + self.err
        assert self.code == code, shown
        assert "Traceback" not in shown
        lines = [" ".join(line.split()) for line in shown.splitlines()]
        assert any(all(word in line for word in words) for line in lines), shown


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs ``softgate`` in this process, on a terminal wide enough for any message."""
    monkeypatch.setenv("COLUMNS", "2000")

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["softgate", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        printed = capsys.readouterr()
        code = stop.value.code
        return Ended(code if isinstance(code, int) else 0, printed.out, printed.err)

    return run


USAGE: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "misspelt command": (["reproduced"], ("reproduced", "Did you mean", "reproduce")),
    "misspelt paper": (["show", "gated-atention"], ("paper", "gated-atention", "did you mean 'gated-attention'?")),
    "unknown paper": (["reproduce", "my-idea"], ("paper", "'my-idea'", "`softgate papers`")),
    "unknown scale": (
        ["reproduce", "stablemax", "--scale", "smok"],
        ("scale must be one of smoke, laptop, paper", "'smok'", "did you mean 'smoke'?"),
    ),
    "no paper": (["reproduce"], ("Missing argument", "PAPER")),
    "misspelt option": (["reproduce", "stablemax", "--seed", "3"], ("--seed", "--seeds")),
    "no seeds": (["reproduce", "stablemax", "--seeds", "0"], ("--seeds", "1")),
    "no workers": (["reproduce", "stablemax", "--workers", "0"], ("--workers", "1")),
    "unknown device": (["reproduce", "stablemax", "--device", "gpu"], ("--device", "'gpu'", "cuda")),
    "misspelt benchmark": (["bench", "rooting"], ("SITE must be one of", "'rooting'", "did you mean 'routing'?")),
    "no model": (["diagnose"], ("Missing argument", "model")),
    "too short rows": (["diagnose", "x", "--length", "4"], ("--length", "8")),
    "no such folder": (["diagnose", "./models/llama"], ("./models/llama", "does not exist", "config.json")),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_exits_with_2(case: str, command: Callable[..., Ended]) -> None:
    arguments, words = USAGE[case]
    command(*arguments).says(2, *words)


def _file(folder: Path) -> Path:
    (folder / "notes.txt").write_text("x")
    return folder / "notes.txt"


def _without_config(folder: Path) -> Path:
    return folder


def _cut_config(folder: Path) -> Path:
    (folder / "config.json").write_text("{")
    return folder


def _foreign_config(folder: Path) -> Path:
    (folder / "config.json").write_text('{"my_model": 1}')
    return folder


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (_file, 2, ("notes.txt is a file", "give the folder", "config.json")),
        (_without_config, 2, ("no config.json", "give the folder that save_pretrained wrote")),
        (_cut_config, 3, ("config.json is damaged", "save or download it again")),
        (_foreign_config, 2, ("model_type", "softgate.diagnostics.report")),
    ],
    ids=["file", "empty folder", "cut config", "foreign config"],
)
def test_what_is_no_model(
    make: Callable[[Path], Path], code: int, words: tuple[str, ...], tmp_path: Path, command: Callable[..., Ended]
) -> None:
    command("diagnose", make(tmp_path)).says(code, *words)


GPT = {"model_type": "gpt2", "n_layer": 1, "n_embd": 8, "n_head": 1, "vocab_size": 16, "architectures": ["GPT2Model"]}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_damaged_and_pickled_weights(name: str, tmp_path: Path, command: Callable[..., Ended]) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(GPT))
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    command("diagnose", tmp_path).says(3, str(tmp_path), "cannot be loaded", "save_pretrained (safetensors)")


def _refuse(*args: Any, **kwargs: Any) -> NoReturn:
    raise ConnectionError("[Errno -2] Name or service not known")


def test_a_hub_that_does_not_answer_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended]
) -> None:
    pytest.importorskip("transformers")
    constants: Any = importlib.import_module("huggingface_hub.constants")
    hub: Any = importlib.import_module("softgate.integrations.hub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    asked = []
    monkeypatch.setattr(hub, "_ask", lambda name: (asked.append(name), _refuse()))
    command("diagnose", "softgate-tests/none").says(
        3, "softgate-tests/none", "did not answer", "not in the cache", "local folder", "HF_HUB_OFFLINE=1"
    )
    assert asked == ["softgate-tests/none"] and constants.HF_HUB_OFFLINE is False
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    command("diagnose", "softgate-tests/none").says(3, "HF_HUB_OFFLINE=1 is set", "unset it", "local folder")
    assert len(asked) == 1 and constants.HF_HUB_OFFLINE is True


def test_a_name_of_timm_without_timm(monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended]) -> None:
    pytest.importorskip("transformers")
    constants: Any = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setitem(sys.modules, "timm", None)  # type: ignore[arg-type]
    command("diagnose", "vit_tiny_patch16_224").says(3, "vit_tiny_patch16_224", "pip install 'softgate[vision]'")


def test_a_model_that_the_hub_does_not_show(monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended]) -> None:
    pytest.importorskip("transformers")
    constants: Any = importlib.import_module("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    command("diagnose", "not a name!").says(3, "the hub shows no such model", "hf auth login", "local folder")


@pytest.mark.parametrize("arguments", [["reproduce", "stablemax", "--scale", "smoke"], ["diagnose", "."]])
def test_cuda_without_a_gpu(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: Callable[..., Ended]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    command(*arguments, "--device", "cuda").says(3, "device 'cuda'", "use 'cpu'", "`softgate doctor`")


def test_benchmarks_of_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended]
) -> None:
    monkeypatch.setattr(bench, "FOLDER", tmp_path / "benchmarks")
    for arguments in ([], ["losses"], ["--summary"]):
        command("bench", *arguments).says(3, "not part of the installed package", "clone", "pip install -e .")


def test_torch_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended]) -> None:
    monkeypatch.delitem(sys.modules, "softgate.lab.doctor")
    monkeypatch.setitem(sys.modules, "torch", None)  # type: ignore[arg-type]
    command("doctor").says(3, "torch is not installed", "pip install 'torch>=2.10'")


def test_a_package_that_a_benchmark_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended]
) -> None:
    (tmp_path / "trees.py").write_text("from sklearn import tree\n")
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    monkeypatch.setitem(sys.modules, "sklearn", None)  # type: ignore[arg-type]
    command("bench", "trees").says(3, "scikit-learn is not installed", "pip install --upgrade scikit-learn")


def test_too_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended]) -> None:
    (tmp_path / "large.py").write_text('raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory")\n')
    (tmp_path / "defect.py").write_text('raise RuntimeError("a defect")\n')
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    command("bench", "large").says(3, "not enough memory", "--batch")
    with pytest.raises(RuntimeError, match="a defect"):  # a defect keeps its traceback
        monkeypatch.setattr(sys, "argv", ["softgate", "bench", "defect"])
        cli.main()


@pytest.mark.parametrize(("status", "code"), [("broken", 3), ("missing", 0), ("warn", 0)])
def test_doctor_exits_by_the_state_of_the_machine(
    status: Any, code: int, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Ended]
) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda: [doctor.Finding("install", status, "rich is old", "pip install")])
    command("doctor").says(code, "install: rich is old")


# Runs: folders, disks, interruptions. The cells run in this process.


def measure(run: CellRun) -> Figures:
    """A cell that fails as its configuration says."""
    failure = run.config.get("failure")
    if failure is not None:
        raise failure
    return {"x": 1.0}


def _paper(failure: BaseException | None) -> Paper:
    cells = (Cell("fine"), Cell("other", {} if failure is None else {"failure": failure}))
    claim = Claim("c", "One is one.", "1", "Table 1", 'x["fine"] == 1')
    scales = {"smoke": Scale(cells), "paper": Scale(cells, hardware="64 GPUs")}
    return Paper("made-up", "Made up", "0000.00000", "2026-01", "For tests.", (claim,), scales, measure)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a paper called made-up among softgate's, whose second cell raises what it is given."""

    def make(failure: BaseException | None = None) -> None:
        module = types.ModuleType("softgate.papers.made_up")
        module.PAPER = _paper(failure)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(papers, "paper_slugs", lambda: ["made-up"])
        monkeypatch.setattr("softgate.lab.task._identity", lambda task, cell: {})  # exceptions are no JSON
        monkeypatch.setattr(reproduce, "_config", lambda plan, name: {})
        monkeypatch.setattr(reproduce, "run_grid", lambda tasks, **options: [run_task(task) for task in tasks])

    return make


RUN = ["reproduce", "made-up", "--scale", "smoke", "--out"]


def test_out_that_is_a_file(tmp_path: Path, made_up: Callable[..., None], command: Callable[..., Ended]) -> None:
    made_up()
    target = _file(tmp_path)
    command(*RUN, target).says(3, f"{target}/made-up/smoke", "not a directory", "(--out)")
    command("report", "--out", target).says(2, str(target), "out must be a new folder, an empty one or an earlier site")
    assert target.read_text() == "x"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, ("read-only file system", "a folder that you may write to (--out)")),
        (errno.EACCES, ("permission denied", "a folder that you may write to (--out)")),
        (errno.ENOSPC, ("no space left on device", "free space there", "(--out)")),
    ],
    ids=["read-only", "forbidden", "full"],
)
def test_folders_that_cannot_be_written(
    number: int,
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    made_up: Callable[..., None],
    command: Callable[..., Ended],
) -> None:
    made_up()
    command(*RUN, tmp_path).says(0, "page:")
    results = tmp_path / "made-up" / "smoke" / "results.json"
    before, kept = results.read_bytes(), sorted(os.listdir(results.parent))

    def fail(*args: Any, **kwargs: Any) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match=r"results\.json"):
        files.write_json(results, {"half": "written"})
    assert results.read_bytes() == before and sorted(os.listdir(results.parent)) == kept
    command(*RUN, tmp_path).says(3, f"{tmp_path}/made-up/smoke", *words, f"--out {tmp_path} --resume")
    assert results.read_bytes() == before


FAILURES: dict[str, tuple[BaseException, int, str]] = {
    "data": (MissingDataError("MNIST was not found"), 3, "MNIST was not found"),
    "extra": (MissingExtraError("scipy", "data", "this cell"), 3, "pip install 'softgate[data]'"),
    "disk": (OSError(errno.ENOSPC, "No space left on device"), 3, "free space there"),
    "defect": (ValueError("a defect"), 1, "a defect"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_cells_that_fail(
    case: str, tmp_path: Path, made_up: Callable[..., None], command: Callable[..., Ended]
) -> None:
    failure, code, word = FAILURES[case]
    made_up(failure)
    ended = command(*RUN, tmp_path / "my runs", "--workers", "1")
    ended.says(code, "other seed 0 failed", word)
    again = f"softgate reproduce made-up --scale smoke --out '{tmp_path}/my runs' --workers 1 --resume"
    assert (again in [line.strip() for line in ended.out.splitlines()]) == (code == 3)


def test_an_interrupted_run_says_how_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_up: Callable[..., None], command: Callable[..., Ended]
) -> None:
    made_up()
    monkeypatch.setenv("COLUMNS", "40")  # the command is not wrapped, whatever the terminal
    stopped = lambda tasks, **options: [CellResult(task, "interrupted") for task in tasks]  # noqa: E731
    monkeypatch.setattr(reproduce, "run_grid", stopped)
    ended = command(*RUN, tmp_path, "--seeds", "2", "--download")
    ended.says(130, f"softgate reproduce made-up --scale smoke --seeds 2 --out {tmp_path} --download --resume")
    assert not (tmp_path / "made-up" / "smoke" / "results.json").exists()


def test_a_scale_for_other_hardware_warns_before_it_starts(
    tmp_path: Path, made_up: Callable[..., None], command: Callable[..., Ended]
) -> None:
    made_up()
    ended = command("reproduce", "made-up", "--scale", "paper", "--out", tmp_path)
    assert "made for 64 GPUs" in ended.err and "--scale laptop" in ended.err


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 9}'], ids=["cut", "foreign", "other version"])
def test_records_that_cannot_be_read_are_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "stablemax" / "laptop").mkdir(parents=True)
    (tmp_path / "stablemax" / "laptop" / "results.json").write_text(content)
    for _, unreadable in (write_index(tmp_path), find_records(tmp_path)):
        ((path, reason),) = unreadable
        assert path.name == "results.json" and "not a record" in reason


def test_checkpoints_that_are_all_damaged(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    (checkpoints.save({"step": 1}) / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"state\.json.*damaged.*to start afresh, delete"):
        Checkpoints(tmp_path).load()


def test_data_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTGATE_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(MissingDataError) as found:
        text_data.load_corpus("tinyshakespeare")
    for word in (text_data.TINY_SHAKESPEARE.resources[0].url, "--download", f"into {tmp_path}/text", "1.12 MB"):
        assert word in str(found.value)


def test_an_old_python(tmp_path: Path) -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is not installed")
    python = tmp_path / "python3"
    python.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.1\nexit 1\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    arguments = [make, "-f", ROOT / "Makefile", f"PYTHON={python}", f"VENV={tmp_path}/venv", "reproduce"]
    for name in ("constraints.txt", "pyproject.toml", "CMakeLists.txt"):
        (tmp_path / name).touch()
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "needs Python 3.11 or newer" in done.stderr and "make PYTHON=" in done.stderr
    assert "3.9.1" in done.stderr and not (tmp_path / "venv").exists()


# Python: shapes, masks, dtypes, names.

X, LABELS = torch.zeros(8, 10), torch.arange(8)
Q = torch.zeros(2, 4, 16, 8)


def _attend(query: Any = Q, key: Tensor = Q, **options: Any) -> Tensor:
    return attention.softplus_attention(query, key, key, **options)


def _swap(**arguments: Any) -> nn.Module:
    return softgate.swap(nn.MultiheadAttention(8, 2, batch_first=True), **arguments)


CALLS: dict[str, tuple[Callable[[], Any], type[Exception], tuple[str, ...]]] = {
    "heads after length": (
        lambda: _attend(Q.transpose(1, 2), Q), ValueError, ("query 16", "enable_gqa=True", "query.transpose(1, 2)"),
    ),
    "padding mask": (
        lambda: _attend(attn_mask=torch.ones(2, 16, dtype=torch.bool)), ValueError,
        ("attn_mask", "(2, 16)", "mask[:, None, None, :]"),
    ),
    "mask of ints": (
        lambda: _attend(attn_mask=torch.ones(16, 16).long()), TypeError, ("attn_mask must be bool", "float", "int64"),
    ),
    "mask of another size": (
        lambda: _attend(attn_mask=torch.ones(16, 8).bool()), ValueError, ("attn_mask", "(2, 4, 16, 16)", "(16, 8)"),
    ),
    "an array": (lambda: _attend(Q.numpy()), TypeError, ("query must be a torch.Tensor", "ndarray")),
    "two dtypes": (lambda: _attend(Q.half()), TypeError, ("query, key and value", "float16", "float32")),
    "two devices": (lambda: _attend(Q.to("meta")), ValueError, ("one device", "query on meta", "key on cpu")),
    "dropout over 1": (lambda: _attend(dropout_p=1.5), ValueError, ("dropout_p", "[0.0, 1.0)", "1.5")),
    "too many experts": (lambda: routing.topk_softmax(X, k=11), ValueError, ("k must be", "[1, 10]", "11")),
    "negative temperature": (
        lambda: policy.sample_soft_token(X, temperature=-1.0), ValueError, ("temperature", "(0.0, inf)", "-1.0"),
    ),
    "labels too large": (
        lambda: losses.z_loss(X, LABELS + 5), ValueError, ("target must be in [0, 10)", "ignore_index", "got 10"),
    ),
    "labels of floats": (lambda: losses.z_loss(X, LABELS.float()), ValueError, ("target", "target.long()")),
    "one-hot labels": (
        lambda: losses.z_loss(X, X.long()), ValueError, ("target", "target.float()", "target.argmax(1)"),
    ),
    "classes last": (
        lambda: losses.z_loss(X[None], LABELS[None]), ValueError, ("input.flatten(0, -2)", "target.flatten()"),
    ),
    "logits of ints": (lambda: losses.z_loss(X.long(), LABELS), TypeError, ("input must have", "float32", "int64")),
    "unknown algorithm": (
        lambda: normalizers.softmax(X, algorithm="two-pass"), ValueError, ("algorithm", "did you mean 'two_pass'?"),
    ),
    "misspelt function": (
        lambda: attention.sigmod_attention, AttributeError, ("sigmod_attention", "did you mean 'sigmoid_attention'?"),
    ),
    "misspelt room": (lambda: softgate.atention, AttributeError, ("did you mean 'attention'?",)),
    "methods of no room": (lambda: softgate.methods("atention"), ValueError, ("site", "did you mean 'attention'?")),
    "explain another's": (
        lambda: softgate.explain(torch.softmax, X), TypeError, ("op must be a softgate method", "softgate.methods()"),
    ),
    "unknown attention": (
        lambda: _swap(attention="sigmod"), ValueError, ("attention must be one of", "did you mean 'sigmoid'?"),
    ),
    "unknown option": (
        lambda: _swap(attention="softplus", attention_options={"reweight": 3}), TypeError,
        ("attention_options", "softplus_attention", "did you mean 'reweight_power'?"),
    ),
    "an option of the mask": (
        lambda: _swap(attention="softplus", attention_options={"is_causal": True}), TypeError, ("attention_options",),
    ),
    "nothing to swap": (lambda: softgate.swap(nn.Linear(2, 2), attention="sigmoid"), StateError, ("Supported are",)),
    "a name for a model": (
        lambda: softgate.swap("gpt2", attention="sigmoid"), TypeError, ("nn.Module", "from_pretrained('gpt2')"),
    ),
    "unswap of nothing": (lambda: softgate.unswap(nn.Linear(2, 2)), StateError, ("nothing is swapped",)),
    "a hub id": (
        lambda: softgate.from_pretrained("gpt2"), ValueError, ("folder", "'gpt2'", "softgate.swap"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_calls(case: str) -> None:
    call, kind, words = CALLS[case]
    with pytest.raises(kind) as found:
        call()
    assert isinstance(found.value, SoftgateError | AttributeError)
    message = str(found.value)
    assert "\n" not in message and all(word in message for word in words), message


EXTRAS: dict[str, tuple[str, Callable[[], Any]]] = {
    "transformers": ("hf", lambda: importlib.import_module("softgate.integrations.clip_loading").load_clip("x")),
    "timm": ("vision", lambda: importlib.import_module("softgate.integrations.timm_soft").register_soft_models()),
    "sklearn": ("data", lambda: importlib.import_module("softgate.lab.data.tables").bundled("iris")),
    "ray": ("ray", lambda: importlib.import_module("softgate.lab.ray_grid").RayBackEnd(cpus=1)),
    "trl": ("rl", lambda: importlib.import_module("softgate.integrations.trl")),
}


@pytest.mark.parametrize("package", EXTRAS)
def test_extras_that_are_not_installed(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    extra, use = EXTRAS[package]
    for name in [name for name in sys.modules if name == f"softgate.integrations.{package}"]:
        monkeypatch.delitem(sys.modules, name)
    for name in {package, *(name for name in sys.modules if name.startswith(f"{package}."))}:
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    with pytest.raises(MissingExtraError, match=rf"needs .*pip install 'softgate\[{extra}\]'"):
        use()
