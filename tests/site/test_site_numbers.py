"""Every number on the page of a paper is held by a record, or stands in the paper's own file."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from page_tree import parse, read

from softgate.lab.paper import load_paper, paper_slugs
from softgate.lab.site.names import all_names, names_for

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.xdist_group("site")

NUMBER = re.compile(r"\d+(?:[.,]\d+)*(?:e[+-]?\d+)?")
MEASURED = sorted(p.stem.removesuffix("-laptop") for p in (ROOT / "docs" / "results").glob("*-laptop.json"))


def record(slug, scale="laptop"):
    return json.loads((ROOT / "docs" / "results" / f"{slug}-{scale}.json").read_text(encoding="utf-8"))


def shown(value, digits=4):
    """How a page writes a figure, said again here, so that a mistake in the pages is none in the test."""
    if value is None:
        return {"NaN", "nan"}
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return {f"{value:.{digits}g}"}
    return {f"{value:.{digits - 1}e}", f"{value:.{digits}g}"}


def held(data, place):
    """What the record holds where a figure on the page says that it comes from."""
    figure, cell = place["data-figure"], place["data-cell"]
    if "data-seed" in place:
        return set().union(
            *(
                shown(found["figures"][figure])
                for found in data["cells"]
                if found["name"] == cell and str(found["seed"]) == place["data-seed"]
            )
        )
    found = [m for c in data["claims"] for m in c["measured"] if (m["figure"], m["cell"]) == (figure, cell)]
    part = place["data-part"]
    return set().union(
        *(shown(m[part], 4 if part == "mean" else 2) for m in found if m[part] is not None or part == "mean")
    )


def wrong_figures(page, slug):
    """Marked figures that the record does not hold."""
    wrong = []
    for part in page.find(data_record=True):
        name = part.attributes["data-record"]
        assert name.startswith(f"{slug}-")
        data = record(slug, name.removeprefix(f"{slug}-"))
        for mark in part.find("span", data_figure=True):
            if mark.text().strip() not in held(data, mark.attributes):
                wrong.append((mark.attributes, mark.text()))
    return wrong


def numbers(value):
    """Every number in a text, or in anything that JSON could hold."""
    return set(NUMBER.findall(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)))


def stray_numbers(page, slug):
    """Numbers that are neither a marked figure nor written in the record or in the paper's file."""
    paper = load_paper(slug)
    data = record(slug) if slug in MEASURED else {}
    about = {field.name: getattr(paper, field.name) for field in dataclasses.fields(paper) if field.name != "measure"}
    found = names_for(paper, all_names())
    sources = [data, about["claims"], {k: v for k, v in about.items() if k not in ("claims", "scales")}]
    sources += [scale.note + scale.hardware for scale in paper.scales.values()]
    allowed = set().union(*(numbers(str(source)) | numbers(source) for source in sources))
    allowed |= numbers(" ".join(name.example + name.summary + name.path for name in found))
    for claim in data.get("claims", ()):  # counts: seeds of a figure, claims of a verdict
        allowed |= {str(len(m["values"])) for m in claim["measured"]}
    verdicts = [claim["verdict"] for claim in data.get("claims", ())]
    allowed |= {str(verdicts.count(verdict)) for verdict in verdicts} | {str(len(verdicts))}
    for cell in data.get("cells", ()):
        allowed |= {f"{cell['seconds']:.0f}", str(cell["seed"])}
    (article,) = page.find("article", class_="md-content__inner")
    text = article.text(lambda e: "data-figure" in e.attributes or e.name in ("script", "style"))
    return numbers(text) - allowed


@pytest.mark.parametrize("slug", MEASURED)
def test_every_measured_figure_is_that_of_the_record(slug, site):
    page = read(site / "papers" / f"{slug}.html")
    marks = page.find("span", data_figure=True)
    data = record(slug)
    assert len(marks) >= sum(len(claim["measured"]) for claim in data["claims"])
    assert wrong_figures(page, slug) == []


@pytest.mark.parametrize("slug", paper_slugs())
def test_no_number_comes_from_anywhere_else(slug, site):
    assert stray_numbers(read(site / "papers" / f"{slug}.html"), slug) == set()


def test_every_measured_number_stands_in_a_mark(site):
    """The column of measured figures holds no number outside of the marks but counts of seeds and names."""
    for slug in MEASURED:
        for cell in read(site / "papers" / f"{slug}.html").find("td"):
            if cell.attributes.get("data-label", "").startswith("Measured"):
                left = cell.text(lambda e: "data-figure" in e.attributes)
                left = re.sub(r"\w+\[[^\]]*\]|\(\d+ seeds?\)|±", " ", left)
                assert not numbers(left), (slug, left)


def test_an_altered_number_is_noticed(site):
    html = (site / "papers" / "gated-attention.html").read_text(encoding="utf-8")
    mean = record("gated-attention")["claims"][0]["measured"][0]["mean"]
    altered = html.replace(f">{mean:.4g}<", f">{mean * 1.01:.4g}<")
    assert altered != html and wrong_figures(parse(altered), "gated-attention")
    verdict = html.replace("5 of 11", "9871 of 11")
    assert verdict != html and stray_numbers(parse(verdict), "gated-attention") == {"9871"}
    sentence = html.replace('<h2 id="what-it-claims">', '<p>A gain of 17.3 points.</p><h2 id="what-it-claims">')
    assert sentence != html and stray_numbers(parse(sentence), "gated-attention") == {"17.3"}


def test_verdicts_on_the_pages_are_those_of_the_records(site):
    for slug in MEASURED:
        (table,) = read(site / "papers" / f"{slug}.html").find("div", class_="stack")
        found = [c.find("span", class_="verdict")[0].text() for c in table.find("td", data_label="Verdict")]
        assert [text.split(" ", 1)[1] for text in found] == [claim["verdict"] for claim in record(slug)["claims"]]


def test_the_front_page_counts_the_verdicts_of_the_records(site):
    (state,) = read(site / "index.html").find("div", class_="state")
    verdicts = [claim["verdict"] for slug in MEASURED for claim in record(slug)["claims"]]
    for mark in state.find("span", class_="verdict"):
        _, count, verdict = mark.text().split(" ", 2)
        assert int(count) == verdicts.count(verdict)
    assert str(len(verdicts)) in state.text() and verdicts.count("not reproduced") > 0
    assert "not reproduced" in state.text()
