"""Answers of a base model and of the model trained from it to the same prompts, and what their texts say.

`prompts` chooses what is asked, `decode` and `vllm_engine` let a model answer, `folder` keeps the answers as they come,
so that a second call goes on where the first stopped, `measures` counts, `formats` writes what AlpacaEval and
Arena-Hard read, and `blind` makes a file in which people judge without knowing which model wrote what.
"""
