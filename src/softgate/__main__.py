"""``python -m softgate``."""

from softgate.cli import main

main()
