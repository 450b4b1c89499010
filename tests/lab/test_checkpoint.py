"""Checkpoints: exact round trips, no pickle, no damaged data, clear errors when the disk fails."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from softgate.lab import checkpoint
from softgate.lab.checkpoint import (
    CheckpointError,
    Checkpoints,
    DamagedCheckpointWarning,
    from_bytes,
    pack,
    to_bytes,
    unpack,
)
from softgate.lab.optimizers import adamw, load_optimizer
from softgate.optim import OrthoGrad

FILES = ("model.safetensors", "trainer.safetensors", "state.json", "SHA256SUMS")


def same(a: Any, b: Any) -> bool:
    """Equality of nested values, bit for bit and type for type."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        raw = [t.contiguous().reshape(-1).view(torch.uint8) if t.numel() else t for t in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_TENSORS = st.sampled_from(
    [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool]
).flatmap(lambda dtype: st.lists(st.integers(0, 3), max_size=3).map(lambda shape: torch.ones(shape).to(dtype)))
_VALUES = st.recursive(
    _SCALARS | _TENSORS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.tuples(st.integers()), inner, max_size=3)
        | st.dictionaries(st.sampled_from(["$tensor", "$float", "$items", "a", "a.b"]), inner, max_size=2)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(_VALUES)
def test_any_structure_comes_back_as_it_was(value: Any) -> None:
    tensors: dict[str, Tensor] = {}
    assert same(unpack(pack(value, tensors, "x"), tensors), value)
    assert same(from_bytes(to_bytes(value)), value)


def test_generator_states_come_back(tmp_path: Path) -> None:
    state = {"python": random.getstate(), "numpy": np.random.get_state(legacy=False), "torch": torch.get_rng_state()}
    Checkpoints(tmp_path).save({"rng": state})
    loaded = Checkpoints(tmp_path).load()
    assert loaded is not None and same(loaded["rng"], state)


def test_views_and_tied_weights_keep_their_own_values(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    model = {"tied.a": base, "tied.b": base, "row": base[1], "turned": base.T, "wide": torch.ones(1).expand(3)}
    Checkpoints(tmp_path).save({"model": model})
    loaded = Checkpoints(tmp_path).load()
    assert loaded is not None and same(loaded["model"], model)
    assert set(load_file(tmp_path / "000001" / FILES[0])) == {"tied.a", "row", "turned", "wide"}


def test_temporary_arrays_are_not_taken_for_each_other(tmp_path: Path) -> None:
    values = [np.full(1000, number, dtype=np.uint32) for number in range(20)]
    Checkpoints(tmp_path).save({"values": values})
    loaded = Checkpoints(tmp_path).load()
    assert loaded is not None and same(loaded["values"], values)


@pytest.mark.parametrize(
    "bad",
    [object(), {1, 2}, torch.ones(2, device="meta"), lambda: 0, 1j],
    ids=["object", "set", "meta", "function", "complex"],
)
def test_what_cannot_be_saved_is_named(tmp_path: Path, bad: Any) -> None:
    store = Checkpoints(tmp_path)
    store.save({"step": 1})
    with pytest.raises(CheckpointError, match=r"cannot save optimizer\.groups\.0"):
        store.save({"optimizer": {"groups": [bad]}})
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]


_OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adamw-fused": lambda ps: adamw(list(ps), lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1),
    "adamw-foreach": lambda ps: torch.optim.AdamW(ps, foreach=True, amsgrad=True),
    "adamw-tensor-lr": lambda ps: torch.optim.AdamW(ps, lr=torch.tensor(0.01), foreach=False),
    "sgd": lambda ps: torch.optim.SGD(ps, lr=0.01),
    "momentum": lambda ps: torch.optim.SGD(ps, lr=0.01, momentum=0.9, nesterov=True),
    "rmsprop": lambda ps: torch.optim.RMSprop(ps, lr=0.01, centered=True, momentum=0.5),
    "adagrad": lambda ps: torch.optim.Adagrad(ps),
    "adadelta": lambda ps: torch.optim.Adadelta(ps),
    "adamax": lambda ps: torch.optim.Adamax(ps),
    "nadam": lambda ps: torch.optim.NAdam(ps),
    "radam": lambda ps: torch.optim.RAdam(ps),
    "asgd": lambda ps: torch.optim.ASGD(ps),
    "rprop": lambda ps: torch.optim.Rprop(ps),
    "adafactor": lambda ps: torch.optim.Adafactor(ps),
    "orthograd": lambda ps: OrthoGrad(ps, torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "groups": lambda ps: torch.optim.AdamW([{"params": [p], "lr": 0.01 * (i + 1)} for i, p in enumerate(ps)]),
}


@pytest.mark.parametrize("name", _OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_optimizers_continue_bit_identically(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(5, 3).to(dtype)
        return model, _OPTIMIZERS[name](model.parameters())

    def advance(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            model(torch.full((2, 5), 1.0 + step, dtype=dtype)).square().mean().backward()
            optimizer.step()

    model, optimizer = start()
    advance(model, optimizer, range(3))
    Checkpoints(tmp_path).save({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    advance(model, optimizer, range(3, 6))

    other, continued = start()
    state = Checkpoints(tmp_path).load()
    assert state is not None
    other.load_state_dict(state["model"])
    load_optimizer(continued, state["optimizer"])
    advance(other, continued, range(3, 6))
    assert same(dict(other.state_dict()), dict(model.state_dict()))
    assert same(continued.state_dict()["state"], optimizer.state_dict()["state"])


def test_float32_state_of_bfloat16_weights_is_not_rounded() -> None:
    def start() -> tuple[nn.Parameter, torch.optim.Optimizer]:
        weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        return weight, torch.optim.SGD([weight], lr=0.1, momentum=0.9)

    weight, optimizer = start()
    optimizer.state[weight]["momentum_buffer"] = torch.tensor([1.0001, 2.0003, 3.0007])
    other, continued = start()
    load_optimizer(continued, optimizer.state_dict())
    assert same(continued.state[other]["momentum_buffer"], optimizer.state[weight]["momentum_buffer"])


def two_generations(folder: Path) -> Checkpoints:
    store = Checkpoints(folder)
    for step in (1, 2):
        store.save({"step": step, "model": {"w": torch.full((8,), float(step))}, "history": torch.arange(4.0)})
    return store


def test_two_generations_are_kept(tmp_path: Path) -> None:
    store = two_generations(tmp_path)
    store.save({"step": 3})
    assert [path.name for path in store.generations()] == ["000002", "000003"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000002", "000003"]
    state = Checkpoints(tmp_path).load()
    assert state is not None and state["step"] == 3


def test_the_sums_are_what_sha256sum_checks(tmp_path: Path) -> None:
    two_generations(tmp_path)
    subprocess.run(
        ["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=tmp_path / "000002", check=True, capture_output=True
    )


def damage(path: Path, rng: random.Random) -> None:
    """Flip a byte, cut the file, lengthen it, swap two bytes or remove it; always changes the file."""
    raw = bytearray(path.read_bytes())
    kind = rng.choice(["flip", "flip", "flip", "cut", "grow", "zero", "remove"])
    if kind == "flip":
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del raw[rng.randrange(len(raw)) :]
    elif kind == "grow":
        raw += rng.randbytes(rng.randint(1, 9))
    elif kind == "zero":  # a block that never reached the disk
        start = rng.randrange(len(raw))
        before = bytes(raw)
        raw[start:] = bytes(len(raw) - start)
        if raw == before:
            raw[0] ^= 1
    if kind == "remove":
        path.unlink()
    else:
        path.write_bytes(raw)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_generation_is_named_and_the_one_before_is_used(tmp_path: Path, name: str) -> None:
    two_generations(tmp_path / "whole")
    rng = random.Random(name)
    for trial in range(200):
        folder = tmp_path / str(trial)
        shutil.copytree(tmp_path / "whole", folder)
        damage(folder / "000002" / name, rng)
        with pytest.warns(DamagedCheckpointWarning) as caught:
            state = Checkpoints(folder).load()
        message = str(caught[0].message)
        assert str(folder / "000002") in message and name in message
        assert state is not None and state["step"] == 1 and same(state["model"]["w"], torch.ones(8))
        shutil.rmtree(folder)


def test_nothing_is_loaded_when_both_generations_are_damaged(tmp_path: Path) -> None:
    two_generations(tmp_path / "whole")
    rng = random.Random(0)
    for trial in range(200):
        folder, names = tmp_path / str(trial), [rng.choice(FILES) for _ in range(2)]
        shutil.copytree(tmp_path / "whole", folder)
        for generation, name in zip(("000001", "000002"), names, strict=True):
            damage(folder / generation / name, rng)
        with pytest.raises(CheckpointError, match="no usable checkpoint") as caught:
            Checkpoints(folder).load()
        assert all(name in str(caught.value) for name in (*names, "000001", "000002"))
        shutil.rmtree(folder)


def test_a_damaged_generation_does_not_count_as_one_of_the_two_kept(tmp_path: Path) -> None:
    two_generations(tmp_path)
    (tmp_path / "000002" / "state.json").unlink()
    store = Checkpoints(tmp_path)
    with pytest.warns(DamagedCheckpointWarning):
        store.load()
    store.save({"step": 2})
    assert [path.name for path in store.generations()] == ["000001", "000003"]


def test_a_checkpoint_of_a_later_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_VERSION", 2)
    Checkpoints(tmp_path).save({"step": 1})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"state\.json has format 2, this softgate reads 1"):
        Checkpoints(tmp_path).load()


def test_a_half_written_generation_is_ignored_and_replaced(tmp_path: Path) -> None:
    two_generations(tmp_path)
    shutil.copytree(tmp_path / "000002", tmp_path / ".writing")
    store = Checkpoints(tmp_path)
    state = store.load()
    assert state is not None and state["step"] == 2
    store.save({"step": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000002", "000003"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["fsync", "rename", "mkdir"])
def test_a_failing_disk_is_named_and_leaves_the_last_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    store = two_generations(tmp_path)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(
        CheckpointError, match=f"cannot write checkpoint .*000003.*{os.strerror(code)}.*000002 is intact"
    ):
        store.save({"step": 3})
    monkeypatch.undo()
    state = Checkpoints(tmp_path).load()
    assert state is not None and state["step"] == 2
    store.save({"step": 3})  # and once there is room again, it goes on
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000002", "000003"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*file"):
        Checkpoints(tmp_path / "file" / "fit").save({"step": 1})


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A real file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    store = two_generations(small_disk)
    for size in (1 << 16, 1 << 20):  # 256 KiB and 4 MiB: no room within a file, and none for its first block
        with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*000003.*000002 is intact"):
            store.save({"step": 3, "model": {"w": torch.zeros(size)}})
        state = Checkpoints(small_disk).load()
        assert state is not None and state["step"] == 2
    store.save({"step": 3})


def test_a_read_only_disk(small_disk: Path) -> None:
    store = two_generations(small_disk)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*Read-only file system"):
        store.save({"step": 3})
    with pytest.raises(CheckpointError, match="cannot remove the old checkpoints"):
        store.clear()


def test_no_file_is_a_pickle(tmp_path: Path) -> None:
    two_generations(tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert not zipfile.is_zipfile(path) and not path.read_bytes().startswith(b"\x80")
