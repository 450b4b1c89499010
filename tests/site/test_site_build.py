"""What goes into the site and what is refused: hostile records, folders that are not ours, missing packages."""

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
from page_tree import parse

from softgate import cli
from softgate.errors import ArgumentValueError, MissingExtraError
from softgate.lab.site import build
from softgate.lab.site.catalogue import catalogue
from softgate.lab.site.docstrings import markdown
from softgate.lab.site.feed import atom_feed
from softgate.lab.site.front import front_markdown
from softgate.lab.site.guide import guide_pages
from softgate.lab.site.names import Name
from softgate.lab.site.paper_page import paper_markdown
from softgate.lab.site.policy import restrict
from softgate.lab.site.records import find_records

#: The directive with its continuation lines.
MATH = re.compile(r"^( *\.\. math:: *.*\n)((?: {4,}\S.*\n)*)", re.MULTILINE)
ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "</p><script>alert(1)</script>\n\n# x <img src=x onerror=y> [a](javascript:b) `c` \x01"


@pytest.fixture
def results(tmp_path):
    """A folder with one published record and its pictures, to be spoilt."""
    folder = tmp_path / "docs" / "results"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "results" / "gated-attention-laptop.json", folder)
    shutil.copytree(ROOT / "docs" / "gallery" / "gated-attention", tmp_path / "docs" / "gallery" / "gated-attention")
    return folder


def spoil(results, change):
    path = results / "gated-attention-laptop.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_both_layouts_of_records_are_read(results, tmp_path):
    run = tmp_path / "runs" / "gated-attention" / "laptop"
    run.mkdir(parents=True)
    shutil.copy(results / "gated-attention-laptop.json", run / "results.json")
    shutil.copy(results.parent / "gallery" / "gated-attention" / "share.svg", run)
    (published,), _ = find_records(results)
    (local,), _ = find_records(tmp_path / "runs")
    assert published.data == local.data and (local.slug, local.scale) == ("gated-attention", "laptop")
    assert len(published.pictures) > 1 and [p.name for p in local.pictures] == ["share.svg"]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("paper"),
        lambda d: d["claims"][0].pop("relation"),
        lambda d: d["claims"][0].update(verdict="splendid"),
        lambda d: d["claims"][0].update(statement=3),
        lambda d: d.update(scale="../.."),
        lambda d: d["environment"].update(date="yesterday"),
        lambda d: d.update(claims=None),
    ],
    ids=["no-paper", "no-relation", "verdict", "number-for-text", "scale", "date", "no-claims"],
)
def test_a_record_that_is_none_is_left_out_and_named(results, change):
    spoil(results, change)
    found, left_out = find_records(results)
    assert found == [] and left_out[0][0].name == "gated-attention-laptop.json"


def test_hostile_text_of_a_record_stays_text(results):
    def change(data):
        for claim in data["claims"]:
            claim.update(statement=HOSTILE, note=HOSTILE, relation=HOSTILE, reason=HOSTILE, paper_figure=HOSTILE)
            for item in claim["measured"]:
                item.update(figure=HOSTILE, cell=HOSTILE)
        data.update(command=HOSTILE, notes=[HOSTILE])
        data["environment"].update(cpu=HOSTILE, commit='"><script>')
        for cell in data["cells"]:
            cell.update(name=HOSTILE, error=HOSTILE, figures={HOSTILE: 1.0})

    spoil(results, change)
    found, _ = find_records(results)
    entries = catalogue(found)
    (entry,) = [e for e in entries if e.slug == "gated-attention"]
    text = paper_markdown(entry, []) + front_markdown(entries, [])
    tree = parse(text)
    assert "alert(1)" in text and not tree.find("script") and not tree.find(onerror=True)
    assert all("javascript" not in (e.attributes["href"] or "") for e in tree.find(href=True))
    hostile = [line for line in text.splitlines() if "alert(1)" in line]
    assert hostile and all(line.lstrip().startswith("<") for line in hostile), "Markdown would read it"


def test_the_feed_holds_any_text_and_names_a_result_for_good(results):
    found, _ = find_records(results)
    first, again = (atom_feed(found, {"gated-attention": title}) for title in (HOSTILE, "another title"))
    atom = "{http://www.w3.org/2005/Atom}"
    names = [ElementTree.fromstring(text).findtext(f"{atom}entry/{atom}id") for text in (first, again)]
    assert names[0] == names[1] and b"<script" not in first
    ElementTree.fromstring(atom_feed([], {}))


def test_a_folder_that_is_not_a_site_is_not_replaced(tmp_path, results):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(ArgumentValueError, match="out must be"):
        build.build_site(tmp_path / "mine", results)
    with pytest.raises(ArgumentValueError, match="results must be"):
        build.build_site(tmp_path / "new", tmp_path / "nowhere")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work" and not (tmp_path / "new").exists()


def test_an_earlier_site_is_replaced_as_a_whole_and_stays_if_the_generator_fails(tmp_path, results, monkeypatch):
    def fake(work, settings):
        (work / "site").mkdir()
        (work / "site" / "index.html").write_text('<meta charset="utf-8">new')

    monkeypatch.setattr(build, "_run_generator", fake)
    out = tmp_path / "site"
    for _ in range(2):
        built = build.build_site(out, results)
        assert built.front.read_text().endswith("new") and built.records == 1
        assert not (out / "old.html").exists()
        (out / "old.html").write_text("old")

    def broken(work, settings):
        raise build.StateError("mkdocs failed")

    monkeypatch.setattr(build, "_run_generator", broken)
    with pytest.raises(build.StateError):
        build.build_site(out, results)
    monkeypatch.setattr(build, "_run_generator", lambda work, settings: None)
    monkeypatch.setattr(build, "_finish", lambda site, records, titles: None)
    with pytest.raises(FileNotFoundError):  # nothing to put in place
        build.build_site(out, results)
    assert (out / "old.html").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"docs", "site"}, "nothing temporary is left"


def test_a_missing_extra_is_named_and_the_exit_code_is_that_of_the_environment(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'softgate\[docs\]'"):
        build.build_site(tmp_path / "site")
    monkeypatch.setattr("sys.argv", ["softgate", "report", "--out", str(tmp_path / "site")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 3 and "softgate[docs]" in capsys.readouterr().err


def test_the_policy_allows_the_scripts_of_the_page_by_hash_only():
    page = restrict('<meta charset="utf-8"><script>one()</script><script src="a.js"></script><script>two()</script>')
    policy = parse(page).find("meta")[1].attributes["content"]
    scripts = next(part for part in policy.split(";") if "script-src" in part)
    assert scripts.count("sha256-") == 2 and "unsafe" not in scripts


def test_links_of_the_guide_lead_to_pages_of_the_site(tmp_path):
    (tmp_path / "zebra.md").write_text("[p](gallery/z-loss/index.html) [all](gallery) [g](choosing.md)")
    (tmp_path / "choosing.md").write_text("# Choosing")
    pages = guide_pages(tmp_path)
    assert list(pages) == ["guide/choosing.md", "guide/zebra.md"]
    assert pages["guide/zebra.md"] == "[p](../papers/z-loss.md) [all](../index.md) [g](choosing.md)"


def test_docstrings_become_markdown():
    text = markdown(
        "See :func:`softgate.a.f` and :class:`~torch.Tensor`, p<x>::\n\n    code\n\n"
        ".. math:: a = b\n          + c\n\n>>> f(<x>)",
        known=("softgate.a.f",),
    )
    assert "[`softgate.a.f`][softgate.a.f]" in text and "`torch.Tensor`" in text
    assert "p&lt;x>:\n" in text and ">>> f(<x>)" in text
    (picture,) = parse(text).find("img")
    assert picture.attributes["alt"] == "a = b + c" and picture.attributes["src"].startswith("data:image/svg+xml;")


def test_every_formula_of_the_docstrings_is_drawn():
    found = [text for path in (ROOT / "src" / "softgate").rglob("*.py") for text in MATH.findall(path.read_text())]
    assert len(found) >= 30
    assert not [text for text in found if "latex" in markdown("".join(text))]
    assert "```latex" in markdown(r".. math:: \nosuchcommand x"), "what cannot be drawn is shown as it is written"


def test_an_example_becomes_a_program_with_its_imports_first():
    name = Name(
        "softgate.losses", "f", "F.\n\nExample:\n    >>> import torch\n    >>> f(torch.zeros(1))  # so\n    0.0\n"
    )
    assert name.example == "import torch\nfrom softgate.losses import f\n\nprint(f(torch.zeros(1)))  # so\n# 0.0\n"
    assert Name("softgate.losses", "f", "no example").example == ""
