"""What every reproduction shares: data, training, seeds, checkpoints, records, plots, fan-out over processes."""
