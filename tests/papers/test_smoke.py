"""Every paper's smoke reproduction, end to end as a user runs it, and what every paper file must say."""

import json

import pytest

from softgate.lab.paper import SCALES, load_paper, paper_slugs
from softgate.lab.relation import figures_in
from softgate.lab.reproduce import reproduce
from softgate.registry import methods


@pytest.mark.smoke
@pytest.mark.timeout(900)
@pytest.mark.xdist_group("reproduce")  # one after the other: they use all cores and some measure time
@pytest.mark.parametrize("slug", paper_slugs())
def test_smoke_reproduction(slug, tmp_path):
    outcome = reproduce(slug, scale="smoke", out=tmp_path)
    failed = {f"{c['name']}-s{c['seed']}": c["error"] for c in outcome.results["cells"] if c["status"] != "done"}
    assert not failed
    verdicts = {j.id: j.verdict for j in outcome.judgements}
    # Smoke must show the sign of an effect; its size is the business of the larger scales. A time is never a test.
    timed = {claim.id for claim in outcome.paper.claims if claim.timing}
    assert not {claim for claim, verdict in verdicts.items() if verdict == "not reproduced"} - timed, verdicts
    assert "reproduced" in verdicts.values()
    assert json.loads((outcome.folder / "results.json").read_text())["paper"]["slug"] == slug
    assert "<svg" in (outcome.folder / "index.html").read_text()


@pytest.mark.parametrize("slug", paper_slugs())
def test_the_record_is_complete(slug):
    paper = load_paper(slug)
    assert tuple(paper.scales) == SCALES
    assert paper.claims and paper.plots and paper.methods and paper.summary.count(".") >= 2
    known = {record.qualified_name for record in methods()}
    assert {name for name in paper.methods if name in known}, "no recorded method is named"
    assert len({claim.id for claim in paper.claims}) == len(paper.claims)


@pytest.mark.parametrize("slug", paper_slugs())
def test_relations_mention_only_cells_that_the_scale_runs(slug):
    paper = load_paper(slug)
    for claim in paper.claims:
        for name in claim.scales:
            cells = {cell.name for cell in paper.scales[name].cells}
            relations = [claim.per_scale.get(name, claim.relation)] + ([claim.direction] if claim.direction else [])
            mentioned = {cell for relation in relations for _, cell in figures_in(relation)}
            assert mentioned <= cells, f"{claim.id} at {name}: {mentioned - cells}"


@pytest.mark.parametrize("slug", paper_slugs())
def test_methods_of_the_paper_know_their_paper(slug):
    recorded = {record.qualified_name for record in methods() if record.paper == slug}
    assert recorded and recorded <= set(load_paper(slug).methods)
