"""A folder with a tiny model, pairs and a recipe: what the children train on."""

import json
import random
from pathlib import Path

from tests.tiny import save_tiny_model

WORDS = ["open", "settings", "choose", "people", "press", "invite", "enter", "address", "save", "close"]


def make_place(folder: Path) -> Path:
    """Fill a folder and return it; `run.yaml` is the recipe: nine steps, a checkpoint after each, four evaluations.

    Every prompt is cut, so none is asked as a question: answers take long and are not what the faults are about.
    """
    draw = random.Random(1)
    save_tiny_model(folder / "tiny")
    pairs = []
    for i in range(44):
        text = " ".join(draw.choice(WORDS) for _ in range(draw.randint(2, 9)))
        pairs.append(
            {"prompt": f"How do I do thing {i}?", "chosen": f"Please {text}.", "rejected": f"No {text[::-1]}!"}
        )
    (folder / "prefs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    (folder / "run.yaml").write_text(
        "name: run\nmodel: {path: tiny}\n"
        "data: {train: prefs.jsonl, holdout: 8, max_length: 64, max_prompt_length: 12}\n"
        "train: {pairs_per_step: 4, learning_rate: 1e-3, precision: fp32}\n"
        "eval: {every: 3}\ncheckpoint: {every: 1, keep: 2, best: true}\n",
        encoding="utf-8",
    )
    return folder
