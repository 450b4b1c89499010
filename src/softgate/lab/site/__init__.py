"""The static site of ``softgate report``: papers with what was measured of them, the guide and the reference."""

from softgate.lab.site.build import Built as Built
from softgate.lab.site.build import build_site as build_site
