"""The conformance suite: what every softgate op keeps, checked on any op, including one of your own."""

from softgate.testing.checks import check_op as check_op
from softgate.testing.checks import generate_checks as generate_checks
from softgate.testing.report import Check as Check
from softgate.testing.report import ConformanceError as ConformanceError
from softgate.testing.report import Failure as Failure
from softgate.testing.report import Report as Report

__all__ = ["Check", "ConformanceError", "Failure", "Report", "check_op", "generate_checks"]
