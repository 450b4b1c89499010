"""Trained MaxMin networks that the authors of arXiv 2401.14033 published with their code: weights for MNIST."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from softgate.errors import MissingExtraError, check_choice
from softgate.lab.data.store import Resource, Source, damaged, obtain

__all__ = ["MAXMIN_NETWORKS", "maxmin_network"]

_BASE = "https://raw.githubusercontent.com/ppauli/QCs_MaxMin/b9175e22940cc1cbbbe03e82388b0d92c4cb4ff7/networks_weights/"
#: Name -> (file, size in bytes, SHA-256). "2fc-16" has two linear layers and 16 hidden units.
_FILES = {
    "2fc-16": ("weights_l2_2fc_16", 59_096, "b28e91218c07887ba80360b990b5935d31700edf9dbfd306e282c4de7e6ca136"),
    "2fc-32": ("weights_l2_2fc_32", 118_024, "a11d56934d9692ca6da8528d69465b3f1126b6b6027d50841a4bc311fc9c0c71"),
    "2fc-64": ("weights_l2_2fc_64", 235_139, "06a09cd944bfdb081cf3b0718c8917a449982ab90d9247f4191adc89c2af0a4d"),
    "2fc-128": ("weights_l2_2fc_128", 468_778, "0b87d2ef2c2ef1837e83432b4029677bf4763b3823e1ef5bba25185cfc55e0b6"),
    "5fc-32": ("weights_l2_5fc_32", 132_285, "3444b4a0a8d6935850f81fdcb35034c4070db788633aa86f8e5e1c1bbc5a6ca5"),
    "5fc-64": ("weights_l2_5fc_64", 291_174, "c733fea845d2230ac2fddee985431b9a5f7ff30b51b4e755414f166333a7efe7"),
    "8fc-32": ("weights_l2_8fc_32", 146_494, "2cff5ba2a2cfa6706d330e3d6a6a39eb870870c6236025c6c74f4c7cfcb9b029"),
    "8fc-64": ("weights_l2_8fc_64", 347_765, "fc2bf3865d2fbbbc781d9ee60a4925791e6fa07c9dbc14a709cef7e95d3471b4"),
    "8fc-128": ("weights_l2_8fc_128", 917_873, "a8546e923fb3b3f0333b5ea8618d181ffe8525a82d21391839c684a6df4f97a4"),
    "8fc-256": ("weights_l2_8fc_256", 2_728_083, "d157ef3f277c16dc1eb78fac8a83cb76be2b8ebf6ea3ec5f1341add33a285512"),
    "18fc-32": ("weights_l2_18fc_32", 208_810, "1a58efd77d583f93b3876eec5ae6f0616ec07a84d9d9bcd49988aac852cbd84d"),
    "18fc-64": ("weights_l2_18fc_64", 578_420, "8598a3c17c4f5b7ae787ba073dce4b7b186f91309141024c683979470ca5eab9"),
    "18fc-128": ("weights_l2_18fc_128", 1_801_199, "ae14492bf4fb857301147838a5c20946b94c06b204448b4775af811f56e8459d"),
    "residual-5-32": ("resweights_5_32", 134_231, "1ba43ead1542bb66bd7cee26dfc027fa380b6ebb2422210b732005a278ad9957"),
    "residual-8-32": ("resweights_8_32", 144_754, "2062435ece6f71974868ed138c004694b581d5d8d8888429d6b0b449bff2906c"),
}
MAXMIN_NETWORKS = tuple(_FILES)


def _resource(name: str) -> Resource:
    file, size, sha256 = _FILES[name]
    return Resource(f"{file}.mat", f"{_BASE}{file}.mat", sha256, size)


_SOURCE = Source(
    name="the authors' MaxMin networks",
    folders=("qcs-maxmin",),
    resources=tuple(map(_resource, _FILES)),
    origin="ppauli/QCs_MaxMin, Pauli et al.; no licence is stated, so they are not redistributed here",
)


def maxmin_network(name: str, *, download: bool = False) -> list[Tensor]:
    """Weights (out, in) in float64 of a network without biases, from 784 pixels to 10 classes.

    Args:
        name: one of :data:`MAXMIN_NETWORKS`. ``"2fc-16"``: MaxMin between two linear layers with 16 hidden units;
            ``"residual-5-32"``: a linear layer, three blocks x + MaxMin(W x) of width 32, a linear layer.
        download: fetch the file (0.06 to 2.7 MB) if it is not on this machine.

    Raises:
        MissingDataError: not on this machine, with the folders searched and how to get it.
        DamagedDataError: the file is there and is not such a network.
        MissingExtraError: scipy, which reads the format, is not installed.
    """
    check_choice("name", name, MAXMIN_NETWORKS)
    path = obtain(_SOURCE, _resource(name), download=download)
    *_, layers, width = name.replace("fc", "").split("-")
    widths = [784, *[int(width)] * (int(layers) - 1), 10]
    weights = _matrices(path)
    if [tuple(weight.shape) for weight in weights] != list(zip(widths[1:], widths, strict=False)):
        damaged(path, f"holds matrices of shapes {[tuple(weight.shape) for weight in weights]}")
    if not all(bool(weight.isfinite().all()) for weight in weights):
        damaged(path, "holds numbers that are not finite")
    return weights


def _matrices(path: Path) -> list[Tensor]:
    try:
        from scipy.io import loadmat
    except ImportError:
        raise MissingExtraError("scipy", "data", "reading weights in .mat files") from None
    try:
        return [torch.from_numpy(array.astype("float64")) for array in loadmat(path)["W"].ravel()]
    except Exception as error:  # scipy raises whatever the bytes led it to
        damaged(path, f"is no readable file of weights ({error})")
