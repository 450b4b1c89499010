"""Pages survive hostile text and broken records."""

import json
import random

from hypothesis import given
from hypothesis import strategies as st

from softgate.lab.page import write_index
from softgate.lab.page.html import Markup, document, escape, link, tag

RECORD = {
    "paper": {"title": "T"},
    "scale": "smoke",
    "claims": [{"verdict": "reproduced"}],
    "seconds": 60.0,
    "environment": {"date": "2026-01-02T03:04:05Z"},
}


@given(st.text())
def test_no_text_becomes_markup(text):
    page = document(text, tag("p", text, title=text), link(text, text))
    body = page.split("<body>")[1]
    allowed = {"<main>", "</main>", "<p ", "</p>", "</body>", "</html>", "<a ", "</a>"}
    for piece in body.split("<")[1:]:
        assert any(("<" + piece).startswith(tag_start) for tag_start in allowed), piece


def test_only_https_and_relative_addresses_become_links():
    for bad in ("javascript:alert(1)", "http://x", "data:text/html,x", "JAVASCRIPT:x"):
        assert "<a" not in link(bad, "x")
    for good in ("https://example.org/a?b=1&c=2", "paper/laptop/index.html"):
        assert link(good, "x").startswith("<a href=")


def test_markup_passes_and_text_does_not():
    assert escape(Markup("<b>")) == "<b>" and escape("<b>") == "&lt;b&gt;"


def test_the_index_of_an_empty_folder_says_what_to_do(tmp_path):
    page, unreadable = write_index(tmp_path)
    assert "softgate reproduce" in page.read_text() and not unreadable


def test_broken_records_are_left_out_and_named(tmp_path):
    generator = random.Random(0)
    text = json.dumps(RECORD)
    good = tmp_path / "paper" / "smoke"
    good.mkdir(parents=True)
    (good / "results.json").write_text(text)
    mutants = [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"[" * 10_000]
    for _ in range(200):
        raw = bytearray(text.encode())
        raw[generator.randrange(len(raw))] = generator.randrange(256)
        mutants.append(bytes(raw[: generator.randrange(len(raw))]))
    for index, mutant in enumerate(mutants):
        folder = tmp_path / f"broken{index}" / "smoke"
        folder.mkdir(parents=True)
        (folder / "results.json").write_bytes(mutant)
    page, unreadable = write_index(tmp_path)
    assert len(unreadable) == len(mutants)
    assert page.read_text().count("index.html") == 1
