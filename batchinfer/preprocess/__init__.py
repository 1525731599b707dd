"""From columns that were read to tensors that a model takes: one file per step."""
