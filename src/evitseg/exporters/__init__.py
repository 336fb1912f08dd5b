"""Convert checkpoints to the formats of other runtimes, and verify every export."""
