"""Synthetic tasks whose structure is known, so that what a model must do at each position is known too."""
