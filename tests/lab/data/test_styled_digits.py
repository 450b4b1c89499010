"""Styled digits: what an image, a caption and a batch are."""

from __future__ import annotations

import pytest
import torch

from softgate.lab.data import MissingDataError, StyledDigits
from softgate.lab.data.styled_digits import CLASSES, STYLES, WORDS


@pytest.fixture(scope="module")
def world() -> StyledDigits:
    try:
        return StyledDigits(0)
    except MissingDataError as error:
        pytest.skip(str(error).splitlines()[0])


def test_sixty_classes_and_twenty_seven_words() -> None:
    assert len(CLASSES) == 60 and CLASSES[13] == "green three" and len(set(WORDS)) == 27


def test_styles_are_drawn_on_the_same_digit(world) -> None:
    classes = torch.full((1,), 24)  # a blue four
    clear, blurry, noisy, dark, inverted = (
        world.images("train", classes, torch.tensor([style]), "one")[0] for style in range(len(STYLES))
    )
    assert clear.shape == (3, 14, 14) and clear.min() >= 0 and clear.max() <= 1
    assert clear[2].sum() > 3 * clear[0].sum() > 0
    torch.testing.assert_close(dark, clear * 0.2)
    torch.testing.assert_close(inverted, 1 - clear)
    assert 0.5 < (noisy - clear).std() < 0.7
    centre = torch.nn.functional.avg_pool2d(torch.nn.functional.avg_pool2d(clear, 5, 1, 2), 5, 1, 2)
    torch.testing.assert_close(blurry, centre)


def test_batches_are_a_function_of_seed_and_step(world) -> None:
    images, captions = world.pairs(3, 50)
    again = world.pairs(3, 50)
    assert torch.equal(images, again[0]) and captions == again[1]
    other, words = world.pairs(4, 50)
    assert not torch.equal(images, other) and captions != words
    assert not torch.equal(images, StyledDigits(1).pairs(3, 50)[0])


def test_captions_leave_out_styles_and_colours(world) -> None:
    classes, styles = torch.full((3000,), 13), torch.full((3000,), 3)
    captions = world.captions(classes, styles, "test")
    assert set(captions) == {
        f"{start} {shown}."
        for style in ("dark ", "")
        for start in (f"a {style}photo of a", f"a {style}image of the")
        for shown in ("green three", "three")
    }
    assert abs(sum("dark" in c for c in captions) / 3000 - 0.6) < 0.05
    assert abs(sum("green" in c for c in captions) / 3000 - 0.7) < 0.05


def test_train_and_test_are_other_digits(world) -> None:
    classes, styles = torch.arange(60), torch.zeros(60, dtype=torch.int64)
    assert not torch.equal(world.images("train", classes, styles), world.images("test", classes, styles))
    with pytest.raises(ValueError, match="split"):
        world.images("valid", classes, styles)
