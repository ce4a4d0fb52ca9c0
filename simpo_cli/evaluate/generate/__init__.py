"""Answers of a base model and of the model trained from it to the same prompts, and what their texts say.

`prompts` chooses the prompts, `decode` generates, `folder` keeps the answers as they come, so that a
second call resumes, and writes what AlpacaEval and Arena-Hard read, `measures` counts, and `blind` makes a file in
which people judge without knowing which model wrote what. `run` is all of it, from names to the folder.
"""
