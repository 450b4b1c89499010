from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from softgate.errors import ArgumentTypeError, ArgumentValueError
from softgate.lab.data import text
from softgate.lab.data.store import DamagedDataError, MissingDataError
from softgate.lab.data.text import corpus_from_file, load_corpus


def test_auto_is_tiny_shakespeare_where_it_lies(real_data: Path) -> None:
    corpus = load_corpus()
    assert corpus.name == "tinyshakespeare" and len(corpus) == 1_115_394
    assert corpus.text.startswith("First Citizen:\nBefore we proceed")
    assert (
        corpus.sha256 == hashlib.sha256(corpus.text.encode()).hexdigest() == text.TINY_SHAKESPEARE.resources[0].sha256
    )


def test_auto_is_the_standard_library_elsewhere(data_home: Path) -> None:
    corpus = load_corpus()
    assert corpus.name == "stdlib" and len(corpus) == text.STDLIB_CHARACTERS
    assert "import " in corpus.text and "Python 3." in corpus.source


def test_the_standard_library_is_the_same_every_time_and_a_prefix_of_itself(data_home: Path) -> None:
    long, short = load_corpus("stdlib", characters=50_000), load_corpus("stdlib", characters=1_000)
    assert load_corpus("stdlib", characters=50_000) == long
    assert long.text.startswith(short.text) and len(short) == 1_000
    assert short.sha256 != long.sha256


def test_the_standard_library_excludes_what_machines_add(
    data_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"b.py": "B", "a.py": "A", "sub/c.py": "C", "site-packages/x.py": "X", "test/t.py": "T",
             "_sysconfigdata_linux.py": "S", "notes.txt": "N", "sub/latin.py": "é"}  # fmt: skip
    for name, content in files.items():
        (tmp_path / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / name).write_text(content, encoding="latin-1")
    monkeypatch.setattr(text.sysconfig, "get_path", lambda name: str(tmp_path / "lib"))
    assert load_corpus("stdlib").text == "ABC"
    monkeypatch.setattr(text.sysconfig, "get_path", lambda name: str(tmp_path / "nothing"))
    with pytest.raises(MissingDataError, match="no source files"):
        load_corpus("stdlib")


def test_the_first_characters_are_hashed_as_returned(real_data: Path) -> None:
    corpus = load_corpus("tinyshakespeare", characters=100)
    assert len(corpus.text) == 100 and corpus.sha256 == hashlib.sha256(corpus.text.encode()).hexdigest()


def test_absence_is_one_clear_sentence(data_home: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingDataError) as caught:
        load_corpus("tinyshakespeare")
    message = str(caught.value)
    assert str(data_home / "text") in message and str(tmp_path / "xdg") in message
    assert "download=True" in message and "--download" in message and "1.12 MB" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes"),
        (b"To be or not to be", "18 bytes"),
        (b"x" * 1_115_394, "SHA-256"),
        (b"x" * 1_115_395, "1,115,395 bytes"),
    ],
)
@pytest.mark.parametrize("name", ["auto", "tinyshakespeare"])
def test_a_wrong_file_is_never_used_silently(data_home: Path, content: bytes, words: str, name: str) -> None:
    (data_home / "text").mkdir()
    (data_home / "text" / "tinyshakespeare.txt").write_bytes(content)
    with pytest.raises(DamagedDataError, match=words) as caught:
        load_corpus(name)
    assert str(data_home / "text" / "tinyshakespeare.txt") in str(caught.value)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ArgumentValueError, match="'klingon'"):
        load_corpus("klingon")
    with pytest.raises(ArgumentTypeError, match="name"):
        load_corpus(3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentValueError, match="characters"):
        load_corpus("stdlib", characters=0)


def test_a_users_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Grüße", encoding="utf-8")
    corpus = corpus_from_file(path)
    assert corpus.text == "Grüße" and corpus.name == "mine.txt" and str(tmp_path) not in corpus.source
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DamagedDataError, match="not UTF-8"):
        corpus_from_file(path)
    path.write_bytes(b" \n")
    with pytest.raises(DamagedDataError, match="empty"):
        corpus_from_file(path)
    with pytest.raises(MissingDataError, match="No such file"):
        corpus_from_file(tmp_path / "absent.txt")
    with pytest.raises(MissingDataError, match="directory"):
        corpus_from_file(tmp_path)
