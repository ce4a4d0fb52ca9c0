from collections.abc import Iterator

import pytest

from tests.faults.children import Children
from tests.train.runs import write_prefs


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Children]:
    """A place with a model whose head is tied, one whose head is not, and a recipe of 20 steps."""
    from tests.tiny import save_tiny_model

    place = tmp_path_factory.mktemp("ranks")
    save_tiny_model(place / "tied", tie_word_embeddings=True)
    save_tiny_model(place / "untied")
    write_prefs(place / "prefs.jsonl", pairs=40, prompts=30)
    (place / "run.yaml").write_text(
        "name: ranks\nmodel: {path: untied}\n"
        "data: {train: prefs.jsonl, holdout: 10, max_length: 64, max_prompt_length: 40}\n"
        "train: {pairs_per_step: 7, learning_rate: 1e-3, precision: fp32, num_epochs: 4, tokens_per_microbatch: 150}\n"
        "eval: {every: 10}\nhealth: {num_answers: 0}\n",
        encoding="utf-8",
    )
    with Children(place) as started:
        yield started
