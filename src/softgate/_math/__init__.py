"""Mathematics that several rooms share, each piece in one place."""
