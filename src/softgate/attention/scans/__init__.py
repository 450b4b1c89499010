"""Causal token mixers that are scans: diagonal recurrences, state space models and gated recurrent networks."""

from __future__ import annotations

from softgate.attention.scans.checks import ScanOutput
from softgate.attention.scans.diagonal import diagonal_scan
from softgate.attention.scans.gated import qlstm_scan, rglru_scan
from softgate.attention.scans.selective import selective_scan, ssd_scan

__all__ = ["ScanOutput", "diagonal_scan", "qlstm_scan", "rglru_scan", "selective_scan", "ssd_scan"]
