"""Network connections as sequences of symbols, one symbol per feature, as a recurrent network reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from softgate.errors import check_choice
from softgate.lab import data, seeds

__all__ = ["FlowRecords"]

BINS = 10
#: Columns with fewer values than there are bins, whose values are the symbols.
_SMALL = {
    "nsl-kdd": ("protocol_type", "land", "logged_in", "root_shell", "su_attempted", "is_host_login", "is_guest_login"),
    "kyoto2013": ("ids_detection", "malware_detection", "ashula_detection", "protocol"),
}


@dataclass(frozen=True)
class FlowRecords:
    """Connections with symbols 0 to 9 for their features, and a label: normal (0) or attack (1).

    Features are cut into deciles of the *training* rows, names by their number in the alphabet; columns with few values
    keep them. A name that only test rows have becomes the symbol 10, which is none of the ten (the authors' one-hot
    coding turns such symbols into zeros). Training batches go through shuffled epochs.

    Attributes:
        dataset: ``"nsl-kdd"`` or ``"kyoto2013"``.
        seed: of the order of the training rows.
        download: the data may be downloaded if it is not on this machine.
        columns: name of the feature at every step.
    """

    dataset: Literal["nsl-kdd", "kyoto2013"]
    seed: int
    download: bool = False
    columns: tuple[str, ...] = field(init=False)
    _symbols: dict[str, Tensor] = field(init=False, repr=False)
    _labels: dict[str, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_choice("dataset", self.dataset, tuple(_SMALL))
        if self.dataset == "nsl-kdd":
            tables = {s: data.nsl_kdd(s, download=self.download, names="numbers") for s in ("train", "test")}
        else:
            tables = {s: data.kyoto2013(s) for s in ("train", "test")}
        columns = tables["train"].columns
        numbers = {split: table.features for split, table in tables.items()}
        small = torch.tensor([name in _SMALL[self.dataset] for name in columns])
        binner = data.DecileBinner(BINS, missing="reserved").fit(numbers["train"])
        symbols = {split: _symbols(binner, small, values) for split, values in numbers.items()}
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "_symbols", symbols)
        object.__setattr__(self, "_labels", {split: table.labels for split, table in tables.items()})

    def __len__(self) -> int:
        return len(self._labels["train"])

    def rows(self, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Symbols (N, T), uint8, and labels (N,) of all rows."""
        check_choice("split", split, tuple(self._labels))
        return self._symbols[split], self._labels[split]

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Training batch number ``step``; an epoch has ``len(self) // size`` of them, the rest is left out."""
        epoch, place = divmod(step, len(self) // size)
        order = torch.randperm(len(self), generator=seeds.generator(self.seed, "flow-records", epoch))
        index = order[place * size : (place + 1) * size]
        return self._symbols["train"][index], self._labels["train"][index]


def _symbols(binner: data.DecileBinner, small: Tensor, values: Tensor) -> Tensor:
    kept = values.nan_to_num(nan=BINS).clamp(0, BINS).to(torch.uint8)
    return torch.where(small, kept, binner.transform(values))
