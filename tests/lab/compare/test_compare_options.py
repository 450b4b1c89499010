"""Reading variants and learning rates, and choosing a rate."""

import math

import pytest

from softgate.errors import ArgumentValueError
from softgate.lab.compare.tuning import choose_rate, parse_grid
from softgate.lab.compare.variants import parse_variants


def test_variants_carry_their_options_in_the_right_types():
    first, second = parse_variants("softmax, clipped:gamma=-0.03:window=4:scale=none:kind=soft_max")
    assert (first.name, first.options) == ("softmax", {})
    assert second.options == {"gamma": -0.03, "window": 4, "scale": None, "kind": "soft_max"}
    assert second.label == "clipped:gamma=-0.03:window=4:scale=none:kind=soft_max"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "at least two"),
        ("softmax", "at least two"),
        ("softmax,,", "at least two"),
        ("softmax,softmax", "twice"),
        ("softmax:a=1,softmax:a=1.0", "twice"),
        ("softmax,gated granularity", "name:option=value"),
        ("softmax,gated:granularity", "name:option=value"),
        ("softmax,../../etc", "name:option=value"),
        ("softmax,<script>", "name:option=value"),
    ],
)
def test_bad_variants_say_what_to_type(text, word):
    with pytest.raises(ArgumentValueError, match=word):
        parse_variants(text)


def test_a_grid_is_sorted_and_without_repetitions():
    assert parse_grid("3e-3, 1e-3,0.003") == (1e-3, 3e-3)


@pytest.mark.parametrize("text", ["", "0", "-1e-3,1e-3", "nan", "inf", "1e-3;1e-2", "fast"])
def test_bad_grids_say_what_to_type(text):
    with pytest.raises(ArgumentValueError, match="--lr-grid must be positive numbers"):
        parse_grid(text)


def test_the_best_rate_wins_and_the_edge_is_told():
    assert choose_rate({0.1: 3.0, 0.2: 1.0, 0.3: 2.0}, "lower").edge == ""
    assert choose_rate({0.1: 3.0, 0.2: 1.0, 0.3: 2.0}, "lower").lr == 0.2
    assert choose_rate({0.1: 3.0, 0.2: 1.0, 0.3: 2.0}, "higher").edge == "lowest"
    highest = choose_rate({0.1: 1.0, 0.2: math.nan, 0.3: 2.0}, "higher")
    assert (highest.lr, highest.edge) == (0.3, "highest")


def test_ties_go_to_the_middle_of_the_grid():
    assert choose_rate({0.1: 1.0, 0.2: 1.0, 0.3: 1.0}, "higher").lr == 0.2
    tied = choose_rate({0.1: 1.0, 0.2: 1.0, 0.3: 0.5}, "higher")
    assert (tied.lr, tied.edge) == (0.2, "")
    assert choose_rate({0.1: 1.0, 0.3: 1.0}, "higher").edge == ""


def test_a_variant_that_diverges_everywhere_or_has_no_choice_has_no_edge():
    assert choose_rate({0.1: math.nan, 0.2: math.nan}, "lower").edge == ""
    assert choose_rate({0.1: 1.0}, "lower").edge == ""
