"""A small convolutional network with a support vector machine as its last layer, and its softmax twin."""

from __future__ import annotations

from torch import Tensor, nn

from softgate._checks import check_float_tensor, check_number, check_sizes
from softgate.errors import ArgumentValueError, bad_value
from softgate.losses.svm_head import Rule
from softgate.models._heads import Head, make_head

__all__ = ["CNNSVM"]


class CNNSVM(nn.Module):
    """Two 5 x 5 convolutions with pooling, a dense layer, and a linear machine trained end to end.

    The defaults are the network of the paper: widths 32, 64 and 1024, dropout of one half before the head, weights from
    a normal distribution of standard deviation 0.1 cut at two of them, all biases 0.1, one-vs-rest squared hinge
    averaged over samples *and classes*, plus the mean of the head's squared weights.

    Args:
        num_classes: number of classes.
        widths: channels of the two convolutions and width of the dense layer.
        head: ``"svm"``, or ``"softmax"`` for the twin with cross-entropy.
        C: weight of the hinge loss.
        dropout: probability, in [0, 1).
        image_size: height and width of the images.
        channels: of the images.
        multiclass: ``"one_vs_rest"`` or ``"crammer_singer"``; the latter takes the mean over samples only.

    Shapes: images ``(N, channels, image_size, image_size)`` -> scores ``(N, num_classes)``.

    Example:
        >>> model = CNNSVM(widths=(4, 8, 16))
        >>> scores = model(torch.rand(2, 1, 28, 28))
        >>> model.loss(scores, torch.tensor([3, 7])).shape, model.decide(scores).shape
        (torch.Size([]), torch.Size([2]))

    Paper: arXiv 1712.03541, sec. 2.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        widths: tuple[int, int, int] = (32, 64, 1024),
        head: Head = "svm",
        C: float = 1.0,
        dropout: float = 0.5,
        image_size: int = 28,
        channels: int = 1,
        multiclass: str = "one_vs_rest",
    ) -> None:
        super().__init__()
        check_sizes(image_size=image_size, channels=channels, num_classes=num_classes)
        if len(widths) != 3:
            bad_value("widths", widths, "three sizes: two convolutions and a dense layer")
        check_sizes(**{f"widths[{i}]": width for i, width in enumerate(widths)})
        check_number("dropout", dropout, low=0.0, high=1.0, high_open=True)
        self.image_size, self.channels = image_size, channels
        first, second, dense = widths
        side = (image_size + 3) // 4  # pooled twice, rounded up
        self.features = nn.Sequential(
            nn.Conv2d(channels, first, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(first, second, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
            nn.Flatten(), nn.Linear(side * side * second, dense), nn.ReLU(), nn.Dropout(dropout),
        )  # fmt: skip
        for layer in self.features:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                assert layer.bias is not None
                nn.init.trunc_normal_(layer.weight, std=0.1, a=-0.2, b=0.2)
                nn.init.constant_(layer.bias, 0.1)
        means = {"over_classes": "mean"} if multiclass == "one_vs_rest" else {}
        self.head = make_head(head, dense, num_classes, 0.1, 2.0, C=C, reg="mean", multiclass=multiclass, **means)

    def forward(self, images: Tensor) -> Tensor:
        """Scores ``(N, num_classes)`` of ``images``."""
        check_float_tensor("images", images)
        if images.shape[1:] != (self.channels, self.image_size, self.image_size):
            raise ArgumentValueError(
                f"images must have shape (N, {self.channels}, {self.image_size}, {self.image_size}), "
                f"got {tuple(images.shape)}"
            )
        scores: Tensor = self.head(self.features(images))
        return scores

    def loss(self, scores: Tensor, target: Tensor) -> Tensor:
        """The head's loss of ``scores`` and class indices ``target`` (N,), with the penalty on its weights."""
        return self.head.loss(scores, target)

    def decide(self, scores: Tensor, rule: Rule = "argmax") -> Tensor:
        """Class indices ``(N,)``; see :meth:`softgate.losses.SVMHead.decide` for the rules."""
        return self.head.decide(scores, rule)
