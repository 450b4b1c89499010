"""How Gaussian mixtures of experts are fitted: numpy in float64, one blocked pass over the data per evaluation."""

__all__: list[str] = []
