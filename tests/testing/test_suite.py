"""The parts of the suite: reports, selection, budgets, draws, poisoned memory, the numerics page."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import honest_ops as honest
import numpy as np
import pytest
import torch
from torch import Tensor

from softgate.errors import ArgumentValueError, MissingExtraError
from softgate.registry import method
from softgate.testing import ConformanceError, check_op, generate_checks, numerics
from softgate.testing.bad_calls import bad_calls
from softgate.testing.budgets import band, check_within_budget, close, ulp_error
from softgate.testing.hygiene import poisoned_memory
from softgate.testing.inputs import ATTENTION, LOSSES, ROWS
from softgate.testing.laws import LAWS
from softgate.testing.report import describe
from softgate.testing.strategies import DRAWS, default_examples, try_on_examples
from softgate.testing.subject import Subject

OPS = (honest.softmax, honest.logsumexp, honest.softsign, honest.cross_entropy, honest.attention)


def test_one_error_lists_every_failure_with_inputs_that_reproduce_it() -> None:
    def halved(x: Tensor, dim: int = -1) -> Tensor:
        return x.softmax(dim) / 2

    with pytest.raises(AssertionError) as caught:
        check_op(
            honest.with_function(honest.softmax, halved), only=["law[sums_to_one]", "reference[float32-one_entry]"]
        )
    message = str(caught.value)
    assert message.startswith("normalizers.softmax: 0 of 2 checks passed")
    assert "default/law[sums_to_one]: rows do not sum to one\n    x = torch.tensor([[0.0]]" in message
    assert "default/reference[float32-one_entry]" in message
    assert "inputs: (torch.tensor([" in message


def test_an_exception_of_the_op_is_a_failure_that_names_its_place() -> None:
    def broken(x: Tensor, dim: int = -1) -> Tensor:
        raise RuntimeError("boom")

    with pytest.raises(ConformanceError, match=r"RuntimeError: boom\n    raised at .*test_suite.py"):
        check_op(honest.with_function(honest.softmax, broken), only="reference[float32-primes]")


def test_only_selects_by_name_group_title_and_wildcard() -> None:
    def names(only: Any) -> set[str]:
        return {check.title for check in generate_checks(honest.softmax, only=only)}

    assert names("gradcheck") == {"default/gradcheck"}
    assert names("default/jvp") == {"default/jvp"}
    assert len(names("reference")) == 4 * len(ROWS)
    assert names("law[sums*") == {"default/law[sums_to_one]"}
    assert names(["gradcheck", "jvp"]) == {"default/gradcheck", "default/jvp"}
    assert names("nothing") == set()


def test_quick_is_a_part_of_the_whole() -> None:
    whole = {check.title for check in generate_checks(honest.softmax)}
    quick = {check.title for check in generate_checks(honest.softmax, quick=True)}
    assert quick < whole


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
def test_every_family_gets_sixty_checks_with_unique_titles(op: Any) -> None:
    titles = [check.title for check in generate_checks(op)]
    assert len(titles) >= 60
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.__name__)
def test_there_are_enough_bad_calls(op: Any) -> None:
    count = len(bad_calls(Subject(op.__softgate__, "default")))
    assert count >= (20 if op is honest.softsign else 25)


def test_an_unknown_law_is_a_failure_that_lists_the_known_ones() -> None:
    record = replace(honest.softmax.__softgate__, laws=("adds_up",))
    with pytest.raises(ConformanceError, match=r"got 'adds_up'") as caught:
        check_op(record, only="law[adds_up]")
    assert "sums_to_one" in str(caught.value)


def test_an_exemption_replaces_a_policy_that_does_not_hold() -> None:
    def unscaled(
        query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False, scale: float | None = None
    ) -> Tensor:
        factor = 1.0 if scale is None else scale  # not 1/sqrt(width)
        return honest.attention_reference(query, key, value, is_causal=is_causal, scale=factor)

    record = honest.with_function(honest.attention, unscaled, exempt={"scale_argument": "its default scale is 1"})
    report = check_op(record, only="*scale_argument*", examples=20)
    assert report.passed == ["default/exempt[scale_argument]"]


def test_an_exemption_that_is_not_needed_or_not_known_is_a_failure() -> None:
    record = replace(honest.attention.__softgate__, exempt={"scale_argument": "no reason", "adds_up": "no such law"})
    with pytest.raises(ConformanceError, match="which holds: ``scale=s`` multiplies the scores"):
        check_op(record, only="exempt[scale_argument]", examples=20)
    with pytest.raises(ConformanceError, match="got 'adds_up'"):
        check_op(record, only="law[adds_up]")


def test_what_a_record_does_not_take_is_not_asked_for_but_must_be_refused() -> None:
    def of_keys(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        if attn_mask is not None and attn_mask.shape[-2] != 1:
            raise ArgumentValueError("attn_mask must be the same for all queries")
        return honest.attention_reference(query, key, value, attn_mask)

    record = honest.with_function(honest.attention, of_keys, masks="keys")
    names = {check.name for check in generate_checks(record)}
    assert "reference[float32-key_mask]" in names and "law[masked_keys_equal_absent_keys]" in names
    assert not names & {"law[causal_equals_mask]", "law[bool_mask_equals_float_mask]", "law[all_masked_rows_zero]"}
    assert check_op(record, only=["reference[float64-bool_mask]", "law[masked_keys_equal_absent_keys]"], examples=20)
    with pytest.raises(ConformanceError, match="beyond its limits"):  # masks that differ between heads, float masks
        check_op(record, only="bad_input[attn_mask]")


def test_attention_is_drawn_with_the_smallest_width_of_its_record() -> None:
    widths: dict[int, set[int]] = {}
    for smallest in (1, 3):
        record = replace(honest.attention.__softgate__, smallest_width=smallest)
        seen = widths[smallest] = set()
        draws = DRAWS["attention"](Subject(record, "default"))
        try_on_examples(draws, lambda draw, seen=seen: seen.add(draw.query.shape[-1]), 40)
    assert widths == {1: {1, 2, 4, 7}, 3: {3, 4, 7}}


def test_a_custom_op_without_samples_is_a_failure() -> None:
    @method(site="optim", family="custom", source="nowhere", register=False)
    def mystery(x: Tensor) -> Tensor:
        """Nobody knows."""
        return x

    with pytest.raises(ConformanceError, match="needs samples"):
        check_op(mystery)


def test_every_law_states_itself_and_has_draws() -> None:
    assert len(LAWS) >= 35
    for law in LAWS.values():
        assert law.statement.endswith(".")
        assert law.draws in DRAWS


@pytest.mark.parametrize("draws", DRAWS)
def test_draws_are_the_same_in_every_run(draws: str) -> None:
    op = honest.attention if draws == "attention" else honest.cross_entropy if "loss" in draws else honest.softmax

    def collect() -> list[str]:
        seen: list[str] = []
        strategy = DRAWS[draws](Subject(op.__softgate__, "default"))
        try_on_examples(strategy, lambda draw: seen.append(repr(vars(draw))), 20)
        return seen

    first = collect()
    assert len(first) == 20
    assert first == collect()


def test_rows_are_drawn_with_everything_floating_point_has() -> None:
    seen: list[Tensor] = []
    strategy = DRAWS["any_rows"](Subject(honest.softmax.__softgate__, "default"))
    try_on_examples(strategy, lambda draw: seen.append(draw.x.flatten()), 200)
    values = torch.cat(seen)
    assert values.isnan().any()
    assert values.isposinf().any()
    assert values.isneginf().any()
    assert (values.abs() == torch.finfo(torch.float32).max).any()
    assert ((values != 0) & (values.abs() < torch.finfo(torch.float32).tiny)).any()
    assert ((values == 0) & values.signbit()).any()
    assert (values.abs() == 1e4).any()


@pytest.mark.parametrize("text", ["many", "0", "-3", "1.5"])
def test_a_bad_number_of_examples_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTGATE_TEST_EXAMPLES", text)
    with pytest.raises(ArgumentValueError, match="SOFTGATE_TEST_EXAMPLES"):
        default_examples()


def test_examples_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTGATE_TEST_EXAMPLES", "20000")
    assert default_examples() == (20_000, 20_000)
    monkeypatch.delenv("SOFTGATE_TEST_EXAMPLES")
    assert default_examples() == (100, 25)
    assert default_examples(quick=True) == (25, 25)


def test_without_hypothesis_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    check = generate_checks(honest.softmax, only="law[sums_to_one]")[0]
    with pytest.raises(MissingExtraError, match=r"pip install 'softgate\[dev\]'"):
        check.run()


def test_ulp_error_counts_neighbours() -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([1.0, 1.5, 1e-3, 1e30], dtype=dtype)
        up = torch.nextafter(x, torch.tensor(float("inf"), dtype=dtype))
        assert ulp_error(up, x.double()).tolist() == [1.0] * 4
    assert ulp_error(torch.tensor([1.0]), torch.tensor([1.0 + 2**-24], dtype=torch.float64)).item() == 0.5


def test_the_budget_passes_rounding_and_refuses_more() -> None:
    truth = torch.linspace(0.1, 1.0, 50, dtype=torch.float64)
    rounded = truth.float()
    arguments: Any = {"terms": 16, "scale": "relative"}
    check_within_budget(rounded, rounded, truth, **arguments)
    allowed = band(torch.float32, 16) + 2 * torch.finfo(torch.float32).eps
    with pytest.raises(ConformanceError, match="is off by"):
        check_within_budget((truth * (1 + 1.5 * allowed)).float(), rounded, truth, **arguments)
    for spoilt in (float("nan"), float("inf")):
        actual = rounded.clone()
        actual[3] = spoilt
        with pytest.raises(ConformanceError, match="at other places"):
            check_within_budget(actual, rounded, truth, **arguments)
    with pytest.raises(ConformanceError, match="dtype"):
        check_within_budget(truth, rounded, truth, **arguments)
    with pytest.raises(ConformanceError, match="shape"):
        check_within_budget(rounded[:3], rounded, truth, **arguments)


def test_close_takes_nan_and_infinities_at_the_same_places_only() -> None:
    special = torch.tensor([float("nan"), float("inf"), float("-inf"), 1.0])
    assert close(special, special.clone(), terms=1)
    for place in range(3):
        other = special.clone()
        other[place] = 1.0
        assert not close(special, other, terms=1)
    assert not close(torch.tensor([float("inf")]), torch.tensor([float("-inf")]), terms=1)


def test_poisoned_memory_poisons_and_restores() -> None:
    before = (torch.are_deterministic_algorithms_enabled(), np.empty, np.empty_like)
    with poisoned_memory():
        assert torch.empty(1000).isnan().all()
        assert torch.empty_like(torch.ones(1000)).isnan().all()
        assert np.isnan(np.empty(1000)).all()
        assert (np.empty_like(np.ones(9, dtype=np.int32)) == 2**31 - 1).all()
    assert before == (torch.are_deterministic_algorithms_enabled(), np.empty, np.empty_like)


def test_described_tensors_can_be_typed_back() -> None:
    value = (torch.tensor([[1.0, -2.5]]), {"dim": 0})
    assert describe(value) == "(torch.tensor([[1.0, -2.5]], dtype=torch.float32), {'dim': 0},)"


@pytest.mark.parametrize("families", [ROWS, LOSSES, ATTENTION], ids=["rows", "losses", "attention"])
def test_there_are_twelve_families_of_inputs_and_all_dtypes_see_the_same_numbers(families: Any) -> None:
    op = {id(ROWS): honest.softmax, id(LOSSES): honest.cross_entropy}.get(id(families), honest.attention)
    subject = Subject(op.__softgate__, "default")
    assert len(families) >= 12
    for name, maker in families.items():
        wide = list(maker(subject, torch.float64, subject.generator(name)))
        narrow = list(maker(subject, torch.float32, subject.generator(name)))
        assert len(wide) == len(narrow) >= 1
        for a, b in zip(wide, narrow, strict=True):
            assert torch.equal(a.args[0].float(), b.args[0])


def test_the_numerics_page_shows_its_records() -> None:
    page = Path(numerics.softgate.__file__).resolve().parents[2] / "docs" / "numerics.md"
    if not page.is_file():
        pytest.skip("not a checkout")
    assert numerics.main(["--check"]) == 0, "run: python -m softgate.testing.numerics --render"


def test_a_changed_figure_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    row = {"op": "normalizers.f", "size": 16, "dtype": "float32", "runs": "reference", "ulp": 1.25, "ulp_torch": None}
    environment = {"machine": "x86_64", "threads": 1, "torch": "2", "softgate": "0", "date": "today"}
    record = {"environment": environment, "rows": [row, {**row, "size": 1024, "ulp_torch": 2.5}]}
    numerics.write_json(tmp_path / "results" / "numerics.json", record)
    page = tmp_path / "numerics.md"
    page.write_text(f"before\n{numerics.BEGIN}\n{numerics.END}\nafter\n", encoding="utf-8")
    assert numerics.main(["--docs", str(tmp_path), "--check"]) == 1
    assert numerics.main(["--docs", str(tmp_path), "--render"]) == 0
    assert numerics.main(["--docs", str(tmp_path), "--check"]) == 0
    text = page.read_text(encoding="utf-8")
    assert "| `normalizers.f` | float32 | reference | – | 1.25 / 2.50 | – | – |  |" in text
    page.write_text(text.replace("1.25", "1.24"), encoding="utf-8")
    assert numerics.main(["--docs", str(tmp_path), "--check"]) == 1
