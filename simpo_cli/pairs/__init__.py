"""Preference pairs out of a model's own answers: sample, score, make, and the round that trains on them."""
