"""A run folder: what is in it and what vouches for it. Nothing here imports torch."""
