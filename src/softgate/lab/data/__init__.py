"""Data sets for reproductions and tests, as plain tensors and text.

A data set is looked for in ``$SOFTGATE_DATA``, then in the user's cache, and is downloaded only where the caller says
``download=True``. Files come from strangers: every reader checks sizes, counts and ranges before it believes them.
"""

from __future__ import annotations

from softgate.lab.data.binning import DecileBinner as DecileBinner
from softgate.lab.data.crowd import Crowd as Crowd
from softgate.lab.data.crowd import density_map as density_map
from softgate.lab.data.crowd import synthetic_crowd as synthetic_crowd
from softgate.lab.data.crowd_folders import CrowdFolder as CrowdFolder
from softgate.lab.data.crowded_digits import DetectionScenes as DetectionScenes
from softgate.lab.data.crowded_digits import crowded_digits as crowded_digits
from softgate.lab.data.images import ImageSet as ImageSet
from softgate.lab.data.images import cifar10 as cifar10
from softgate.lab.data.images import fashion_mnist as fashion_mnist
from softgate.lab.data.images import mnist as mnist
from softgate.lab.data.kyoto import kyoto2013 as kyoto2013
from softgate.lab.data.photographs import PhotographPairs as PhotographPairs
from softgate.lab.data.photographs import sample_photograph as sample_photograph
from softgate.lab.data.store import DamagedDataError as DamagedDataError
from softgate.lab.data.store import MissingDataError as MissingDataError
from softgate.lab.data.styled_digits import StyledDigits as StyledDigits
from softgate.lab.data.tables import TableSet as TableSet
from softgate.lab.data.tables import bundled as bundled
from softgate.lab.data.tables import nsl_kdd as nsl_kdd
from softgate.lab.data.text import Corpus as Corpus
from softgate.lab.data.text import load_corpus as load_corpus
