"""Image batches: reproducible, normalised, from the whole test set; and windows of one stretch of text."""

from __future__ import annotations

import pytest
import torch

from softgate.lab.data import MissingDataError
from softgate.lab.tasks.character_lm import CharacterLM
from softgate.lab.tasks.image_patches import ImageClassification, accuracy


@pytest.fixture(scope="module")
def mnist() -> ImageClassification:
    try:
        return ImageClassification("mnist", seed=0)
    except MissingDataError as error:
        pytest.skip(str(error).splitlines()[0])


def test_batches_are_a_function_of_seed_and_stream(mnist) -> None:
    x, y = mnist.batch("train", 3, size=8)
    again = mnist.batch("train", 3, size=8)
    assert x.shape == (8, 1, 28, 28) and torch.equal(x, again[0]) and torch.equal(y, again[1])
    assert not torch.equal(y, mnist.batch("train", 4, size=8)[1]) or not torch.equal(
        x, mnist.batch("train", 4, size=8)[0]
    )


def test_images_are_normalised(mnist) -> None:
    x, _ = mnist.batch("any", size=4000)
    assert abs(float(x.mean())) < 0.02 and abs(float(x.std()) - 1) < 0.02


def test_unit_scaling_divides_by_255(mnist) -> None:
    x, y = ImageClassification("mnist", seed=0, scaling="unit").batch("any", size=100)
    assert float(x.min()) == 0.0 and float(x.max()) == 1.0
    standard, labels = mnist.batch("any", size=100)
    assert torch.equal(y, labels)
    torch.testing.assert_close((standard - standard.min()) / (standard.max() - standard.min()), x)
    with pytest.raises(ValueError, match="scaling"):
        ImageClassification("mnist", seed=0, scaling="none")  # type: ignore[arg-type]


def test_a_part_of_the_test_set_holds_all_classes(mnist) -> None:
    images, labels = mnist.test(1000)
    assert len(images) == 1000 and labels.unique().numel() == 10
    with pytest.raises(ValueError, match="size"):
        mnist.test(10_001)


def test_accuracy_counts_in_chunks() -> None:
    labels = torch.arange(7) % 3
    assert accuracy(torch.nn.Identity(), torch.eye(3)[labels], labels, chunk=3) == 1.0
    assert accuracy(torch.nn.Identity(), torch.eye(3)[(labels + 1) % 3], labels, chunk=3) == 0.0


def test_an_unknown_data_set_is_named() -> None:
    with pytest.raises(ValueError, match="dataset must be one of"):
        ImageClassification("imagenet", seed=0)  # type: ignore[arg-type]


def test_segments_score_the_same_targets_at_every_length() -> None:
    task = CharacterLM("abcdefghij" * 200, seed=0, length=8)
    short, long = task.segments(8, 64), task.segments(32, 64)
    assert torch.equal(short[1].flatten(), long[1].flatten())
    assert torch.equal(long[0][:, 1:], long[1][:, :-1]) and bool((long[0][:, 0] == task.vocabulary - 1).all())
    for length, total in ((7, 64), (1, 64), (8, 10_000)):
        with pytest.raises(ValueError, match="length must be"):
            task.segments(length, total)
