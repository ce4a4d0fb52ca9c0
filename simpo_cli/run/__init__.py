"""What knows a run folder: its files, checkpoints, identity and receipt, and what a run says of itself; no torch."""
