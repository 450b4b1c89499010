from __future__ import annotations

import gzip
import io
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import cifar_batch, idx, jpeg, jpeg_zip, tar_gz

from softgate.errors import ArgumentValueError, MissingExtraError
from softgate.lab.data import cifar, images
from softgate.lab.data.archives import CheckedZip, check_name, read_bounded, tar_members
from softgate.lab.data.images import cifar10, fashion_mnist, mnist
from softgate.lab.data.store import DamagedDataError, MissingDataError

# The real files


def test_mnist_is_mnist(real_data: Path) -> None:
    train, test = mnist("train"), mnist("test")
    assert train.images.shape == (60_000, 28, 28) and test.images.shape == (10_000, 28, 28)
    assert train.images.dtype == torch.uint8 and train.labels.dtype == torch.int64
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert train.images.double().mean().item() == pytest.approx(33.3184, abs=1e-3)  # 0.1307 of 255
    assert train.note == "" and "CC BY-SA" in train.source and len(train) == 60_000


def test_cifar10_from_jpeg_says_so_and_is_kept_decoded(
    real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cifar10("test")
    assert first.images.shape == (10_000, 3, 32, 32) and first.images.dtype == torch.uint8
    assert first.labels.bincount().tolist() == [1000] * 10 and first.classes[9] == "truck"
    assert "pixels differ slightly" in first.note
    means = first.images.double().mean(dim=(0, 2, 3)) / 255  # of the original arrays: 0.4942, 0.4851, 0.4504
    assert means.tolist() == pytest.approx([0.4942, 0.4851, 0.4504], abs=2e-3)
    monkeypatch.setattr(cifar, "decode_jpeg_zip", lambda *arguments: pytest.fail("decoded again"))
    again = cifar10("test")
    assert torch.equal(again.images, first.images) and torch.equal(again.labels, first.labels)


# idx


@pytest.fixture
def small_mnist(data_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(images, "_COUNTS", {"train": 20, "test": 5})
    folder = data_home / "mnist"
    folder.mkdir()
    for prefix, count in (("train", 20), ("t10k", 5)):
        pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28))
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels)))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(count) % 10)))
    return folder


@pytest.mark.parametrize("layout", ["gzip", "plain", "dots", "torchvision", "plain bytes called .gz"])
def test_every_usual_layout_of_mnist_is_found(small_mnist: Path, data_home: Path, layout: str) -> None:
    wanted = mnist("train")
    for path in list(small_mnist.iterdir()):
        raw = gzip.decompress(path.read_bytes())
        name = path.name.removesuffix(".gz")
        places = {
            "plain": small_mnist / name,
            "dots": small_mnist / name.replace("-idx", ".idx"),
            "torchvision": data_home / "MNIST" / "raw" / name,
            "plain bytes called .gz": path,
        }
        if layout in places:
            path.unlink()
            places[layout].parent.mkdir(parents=True, exist_ok=True)
            places[layout].write_bytes(raw)
    found = mnist("train")
    assert torch.equal(found.images, wanted.images) and found.labels.tolist() == [*range(10), *range(10)]


def test_the_environment_goes_before_the_cache(
    small_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_cache = tmp_path / "xdg" / "softgate" / "data" / "mnist"
    in_cache.parent.mkdir(parents=True)
    small_mnist.rename(in_cache)
    assert len(mnist("train")) == 20
    small_mnist.mkdir()
    (small_mnist / "train-images-idx3-ubyte.gz").write_bytes(b"broken")
    with pytest.raises(DamagedDataError, match="data-home"):
        mnist("train")
    monkeypatch.delenv("SOFTGATE_DATA")
    assert len(mnist("train")) == 20


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "truncated: 0 bytes"),
        (b"\x00\x00\x08\x01\x00\x00", "truncated"),
        (idx(np.zeros(19)), r"holds 1 axes \(19,\), expected \(20,\)"),
        (idx(np.zeros(21)), "holds more than"),
        (idx(np.zeros((20, 1))), "holds more than|2 axes"),
        (idx(np.zeros(20))[:-1], "truncated: 19 values of 20"),
        (b"\x00\x00\x0d" + idx(np.zeros(20))[3:], "not an idx file of bytes"),
        (b"<html>404 not found</html>"[:28], "not an idx file"),
        (gzip.compress(idx(np.zeros(20)))[:-1], "damaged or truncated"),
        (gzip.compress(idx(np.zeros(20)))[:-8] + bytes(8), "CRC"),
        (gzip.compress(idx(np.zeros(20))) + b"junk", "damaged or truncated"),
        (idx(np.full(20, 10)), "label 10 where 0 to 9"),
        (gzip.compress(bytes(50_000_000)), "holds more than the 28 bytes"),
    ],
    ids=range(13),  # gzip writes the time into the bytes, which may not name the case
)
def test_a_wrong_label_file_is_named_with_what_is_wrong(small_mnist: Path, content: bytes, words: str) -> None:
    path = small_mnist / "train-labels-idx1-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(DamagedDataError, match=words) as caught:
        mnist("train")
    assert str(path) in str(caught.value)
    assert len(mnist("test")) == 5


def test_a_missing_set_says_where_and_how(data_home: Path) -> None:
    with pytest.raises(MissingDataError) as caught:
        fashion_mnist("test")
    message = str(caught.value)
    assert "Fashion-MNIST" in message and str(data_home / "fashion-mnist") in message and "--download" in message
    assert "t10k-images-idx3-ubyte.gz" in message and "30.9 MB" in message


def test_fashion_mnist_reads_the_same_format(small_mnist: Path) -> None:
    small_mnist.rename(small_mnist.with_name("fashion-mnist"))
    assert fashion_mnist("train").classes[9] == "Ankle boot"


@pytest.mark.parametrize("load", [mnist, fashion_mnist, cifar10])
def test_an_unknown_split_is_refused(load: object) -> None:
    with pytest.raises(ArgumentValueError, match="split must be one of 'train', 'test', got 'validation'"):
        load("validation")  # type: ignore[operator]


# CIFAR-10


@pytest.fixture
def small_cifar(data_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cifar, "_PER_BATCH", 20)
    monkeypatch.setattr(cifar, "_PER_CLASS", {"train": 2, "test": 2})
    folder = data_home / "cifar10"
    folder.mkdir()
    return folder


def _batches() -> dict[str, bytes]:
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
    return {f"cifar-10-batches-bin/{name}": cifar_batch(20, seed) for seed, name in enumerate(names)}


@pytest.mark.parametrize("layout", ["folder", "files", "tar"])
def test_the_binary_version_is_read(small_cifar: Path, layout: str) -> None:
    for name, raw in _batches().items():
        path = small_cifar / (name if layout == "folder" else Path(name).name)
        path.parent.mkdir(exist_ok=True)
        if layout != "tar":
            path.write_bytes(raw)
    if layout == "tar":
        tar_gz(small_cifar / "cifar-10-binary.tar.gz", {"cifar-10-batches-bin/readme.html": b"hello", **_batches()})
    train, test = cifar10("train"), cifar10("test")
    assert train.images.shape == (100, 3, 32, 32) and test.images.shape == (20, 3, 32, 32)
    second = np.frombuffer(cifar_batch(20, seed=1), np.uint8).reshape(20, 3073)
    assert train.images[23].flatten().tolist() == second[3, 1:].tolist()
    assert train.labels[20:40].tolist() == second[:, 0].tolist() and train.note == ""


def test_the_python_version_is_refused_because_it_is_a_pickle(small_cifar: Path) -> None:
    (small_cifar / "cifar-10-python.tar.gz").write_bytes(b"anything")
    with pytest.raises(DamagedDataError, match="pickle") as caught:
        cifar10("train")
    assert "cifar-10-binary.tar.gz" in str(caught.value)


def test_a_wrong_batch_is_named(small_cifar: Path) -> None:
    for name, raw in _batches().items():
        (small_cifar / Path(name).name).write_bytes(raw)
    (small_cifar / "data_batch_3.bin").write_bytes(cifar_batch(20)[:-1])
    with pytest.raises(DamagedDataError, match=r"data_batch_3\.bin: 61,459 bytes where 20 images take 61,460"):
        cifar10("train")
    (small_cifar / "data_batch_3.bin").write_bytes(b"\x0a" + cifar_batch(20)[1:])
    with pytest.raises(DamagedDataError, match=r"data_batch_3\.bin: label 10"):
        cifar10("train")


def _link(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"cifar-10-batches-bin/readme.html": b""}, r"lacks test_batch\.bin"),
        ({"../evil": b"", **_batches()}, "unsafe name"),
        ({"/etc/evil": b"", **_batches()}, "unsafe name"),
        ({"link": _link(tarfile.SYMTYPE)}, "not a regular file"),
        ({"link": _link(tarfile.LNKTYPE)}, "not a regular file"),
        ({"pipe": _link(tarfile.FIFOTYPE)}, "not a regular file"),
        ({"bomb": bytes(3_000_000)}, "unpacks to more than"),
    ],
)
def test_a_hostile_tar_is_refused(small_cifar: Path, members: dict[str, bytes | tarfile.TarInfo], words: str) -> None:
    tar_gz(small_cifar / "cifar-10-binary.tar.gz", members)
    with pytest.raises(DamagedDataError, match=words):
        cifar10("test")


def test_jpeg_copies_are_decoded_in_class_order(small_cifar: Path) -> None:
    jpeg_zip(small_cifar / "cifar10-jpeg.zip", 2, {"LICENSE.txt": b"ask the author"})
    found = cifar10("train")
    assert found.images.shape == (20, 3, 32, 32) and found.labels.tolist() == [i // 2 for i in range(20)]
    with cifar._pillow().open(io.BytesIO(jpeg(301))) as image:
        assert torch.equal(found.images[7], torch.from_numpy(np.array(image)).permute(2, 0, 1))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train/cat/0002.jpg", jpeg(1), "other than 2 images of every class .*cat 3"),
        ("../evil.jpg", b"", "unsafe name"),
        ("/evil.jpg", b"", "unsafe name"),
        ("a\\..\\evil.jpg", b"", "unsafe name"),
        ("C:evil.jpg", b"", "unsafe name"),
        ("x" * 300, b"", "unsafe name"),
        ("bomb.bin", bytes(60_000), "claims to unpack to 60,000"),
        ("large.bin", np.random.default_rng(0).bytes(70_000), "claims to unpack to 70,000"),
    ],
)
def test_a_hostile_zip_is_refused(small_cifar: Path, name: str, content: bytes, words: str) -> None:
    jpeg_zip(small_cifar / "cifar10-jpeg.zip", 2, {name: content})
    with pytest.raises(DamagedDataError, match=words):
        cifar10("train")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (jpeg(0, (33, 32)), r"RGB image of \(33, 32\)"),
        (jpeg(0, mode="L"), "L image"),
        (jpeg(0)[:200], "damaged or truncated"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "damaged or truncated"),
        (jpeg(0).replace(b"\x08\x00\x20\x00\x20", b"\x08\xff\xdc\xff\xdc", 1), "enormous image"),
    ],
)
def test_a_wrong_picture_is_named(small_cifar: Path, content: bytes, words: str) -> None:
    path = jpeg_zip(small_cifar / "whole.zip", 2)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(small_cifar / "cifar10-jpeg.zip", "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name == "train/deer/0001.jpg" else old.read(name))
    with pytest.raises(DamagedDataError, match=words) as caught:
        cifar10("train")
    assert "train/deer/0001.jpg" in str(caught.value)
    assert len(cifar10("test")) == 20


def test_a_zip_that_lies_about_its_sizes_is_refused(small_cifar: Path) -> None:
    path = small_cifar / "lies.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(1_000_000))
    path.write_bytes(path.read_bytes().replace((1_000_000).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    archive = CheckedZip(path, members=9, member_bytes=1000)
    with pytest.raises(DamagedDataError):
        archive.read("a")
    archive.close()


def test_too_many_members_are_refused(small_cifar: Path) -> None:
    path = jpeg_zip(small_cifar / "many.zip", 2)
    with pytest.raises(DamagedDataError, match="holds 40 members where at most 39"):
        CheckedZip(path, members=39, member_bytes=1 << 16)


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "unwritable", "other"])
def test_a_damaged_cache_costs_time_only(small_cifar: Path, tmp_path: Path, damage: str) -> None:
    jpeg_zip(small_cifar / "cifar10-jpeg.zip", 2)
    wanted = cifar10("train")
    (kept,) = (tmp_path / "xdg" / "softgate" / "decoded").iterdir()
    raw = bytearray(kept.read_bytes())
    if damage == "flip":
        raw[len(raw) // 2] ^= 1
    kept.write_bytes({"truncate": raw[:-1], "empty": b"", "other": jpeg(0)}.get(damage, bytes(raw)))
    if damage == "unwritable":
        kept.unlink()
        kept.parent.rmdir()
        kept.parent.write_text("in the way")
    assert torch.equal(cifar10("train").images, wanted.images)


def test_the_cache_belongs_to_one_zip(small_cifar: Path) -> None:
    path = jpeg_zip(small_cifar / "cifar10-jpeg.zip", 2)
    first = cifar10("train")
    with zipfile.ZipFile(path) as old:
        content = {name: old.read(name) for name in old.namelist()}
    content["train/cat/0000.jpg"] = jpeg(999)
    with zipfile.ZipFile(path, "w") as new:
        for name, raw in content.items():
            new.writestr(name, raw)
    assert not torch.equal(cifar10("train").images, first.images)


def test_without_pillow_the_extra_is_named(small_cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg_zip(small_cifar / "cifar10-jpeg.zip", 2)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"softgate\[data\]"):
        cifar10("train")


# Archives


def test_safe_names_pass(tmp_path: Path) -> None:
    for name in ("a", "a/b.c", "./a", "a..b", "train/cat/0001.jpg", "ümlaut"):
        check_name(tmp_path, name)


@pytest.mark.parametrize(
    "name", ["", "/a", "..", "a/../b", "../a", "a/..", "c:/a", "a\\b", "a\x00b", "a\nb", "a" * 256]
)
def test_unsafe_names_do_not(tmp_path: Path, name: str) -> None:
    with pytest.raises(DamagedDataError, match="unsafe name"):
        check_name(tmp_path, name)


def test_a_folder_in_place_of_a_file_is_an_error_and_no_crash(tmp_path: Path) -> None:
    with pytest.raises(DamagedDataError, match="directory"):
        read_bounded(tmp_path, 10)
    with pytest.raises(DamagedDataError, match="directory"):
        list(tar_members(tmp_path, limit=10))
