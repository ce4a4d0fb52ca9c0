"""Sampling: the same answers in whatever order, broken off anywhere, by however many processes; what is refused."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from simpo_cli.distributed.place import Place
from simpo_cli.errors import UserError
from simpo_cli.evaluate.generate.decode import answer_batch
from simpo_cli.pairs import sample as sampling
from simpo_cli.pairs.sample import Sampling, sample
from simpo_cli.pairs.samples import SampleFolder
from tests.tiny import save_tiny_model

OPTIONS = Sampling(answers_per_prompt=3, temperature=1.0, max_new_tokens=6)


def ignore(_: str) -> None:
    """Says nothing."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    rng = random.Random(2)
    rows = [{"prompt": " ".join(["word"] * rng.randint(1, 9)) + f" {number}", "n": number} for number in range(11)]
    return _write(tmp_path / "prompts.jsonl", rows)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_MOST_ROWS", 4)


def _write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def _answers(folder: Path) -> dict[tuple[str, int], tuple[int, ...]]:
    return {(one.question.text, number): one.answer.ids for number, one in SampleFolder.open(folder).answers()}


def test_an_answer_depends_on_its_prompt_number_and_seed_alone(tmp_path: Path, model: str, prompts: str) -> None:
    sample(prompts, model, OPTIONS, tmp_path / "all", ignore)
    found = _answers(tmp_path / "all")
    assert len(found) == 33
    rows = [json.loads(line) for line in Path(prompts).read_text("utf-8").splitlines()]
    _write(Path(prompts), rows[::-1][:5])
    sample(prompts, model, OPTIONS, tmp_path / "some", ignore)
    some = _answers(tmp_path / "some")
    assert len(some) == 15
    assert {key: found[key] for key in some} == some
    other = Sampling(answers_per_prompt=3, temperature=1.0, max_new_tokens=6, seed=2)
    sample(prompts, model, other, tmp_path / "other", ignore)
    assert _answers(tmp_path / "other") != some
    assert len({ids for (text, _), ids in found.items() if text == rows[0]["prompt"]}) > 1, "answers to a prompt differ"


def test_what_the_file_says_of_a_prompt_stays_with_it(tmp_path: Path, model: str, prompts: str) -> None:
    folder = sample(prompts, model, OPTIONS, tmp_path / "all", ignore)
    assert [one.record for one in folder.questions] == [{"n": number} for number in range(11)]
    manifest = json.loads((tmp_path / "all" / "manifest.json").read_text("utf-8"))
    assert manifest["decoding"] == {
        "answers_per_prompt": 3,
        "max_new_tokens": 6,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": None,
        "repetition_penalty": 1.0,
        "seed": 1,
    }
    assert manifest["prompts"]["count"] == 11
    assert set(manifest["model"]["sha256"]) == {"model.safetensors"}


@pytest.mark.parametrize("most", [0, 1, 4])
def test_broken_off_it_comes_out_the_same_to_the_byte(
    tmp_path: Path, model: str, prompts: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample(prompts, model, OPTIONS, tmp_path / "unbroken", ignore)
    asked = []

    def interrupted(*args: Any) -> Any:
        if len(asked) == most:
            raise KeyboardInterrupt
        asked.append(args)
        return answer_batch(*args)

    monkeypatch.setattr(sampling, "answer_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sample(prompts, model, OPTIONS, tmp_path / "broken", ignore)
    assert not (tmp_path / "broken" / "answers.jsonl").exists()
    monkeypatch.setattr(sampling, "_MOST_ROWS", 7)  # a machine with other memory: batches stay as they were begun
    monkeypatch.setattr(sampling, "answer_batch", lambda *args: (asked.append(args), answer_batch(*args))[1])
    sample(prompts, model, OPTIONS, tmp_path / "broken", ignore)
    for name in ("answers.jsonl", "prompts.jsonl", "manifest.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()
    assert len(asked) == 9  # 33 answers in fours, none made twice
    assert sorted(one.name for one in (tmp_path / "broken").iterdir() if one.name[0] == ".") == [".lock"]


def test_several_processes_share_the_batches(tmp_path: Path, model: str, prompts: str) -> None:
    sample(prompts, model, OPTIONS, tmp_path / "alone", ignore)
    sampling.SampleFolder.make(  # the first process makes the folder; here the others come before it
        tmp_path / "shared", json.loads((tmp_path / "alone" / "manifest.json").read_text("utf-8")),
        SampleFolder.open(tmp_path / "alone").questions,
    )  # fmt: skip
    for rank in (2, 1, 0):
        sample(prompts, model, OPTIONS, tmp_path / "shared", ignore, Place(rank, 3, rank, 3))
        logs = sorted(one.name for one in (tmp_path / "shared").glob(".answers.*.log"))
        assert logs == ([] if rank == 0 else [f".answers.{number}.log" for number in range(rank, 3)])
    assert (tmp_path / "shared" / "answers.jsonl").read_bytes() == (tmp_path / "alone" / "answers.jsonl").read_bytes()


def test_greedy_answers_are_those_of_the_model(tmp_path: Path, model: str, prompts: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = sample(
        prompts, model, Sampling(answers_per_prompt=1, temperature=0, max_new_tokens=4), tmp_path / "g", ignore
    )
    causal = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for _, (question, answer) in folder.answers():
        ids = list(question.ids)
        for token in answer.ids:
            logits = causal(torch.tensor([ids])).logits[0, -1]
            assert logits[token] >= logits.max() - 1e-4
            ids.append(token)


def test_an_answer_begins_with_what_the_template_opens(tmp_path: Path, prompts: str) -> None:
    """As templates of models that reason do: an answer of a pair begins with it, or the template refuses the pair."""
    folder = save_tiny_model(tmp_path / "reasons")
    template = folder / "chat_template.jinja"
    opened = template.read_text("utf-8").replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    assert opened != template.read_text("utf-8")
    template.write_text(opened, encoding="utf-8")
    made = sample(prompts, str(folder), OPTIONS, tmp_path / "a", ignore)
    texts = [one.answer.text for _, one in made.answers() if one.answer.text]
    assert texts
    assert all(text.startswith("<think>\n") for text in texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answers_per_prompt": 0}, "-n is 0, must be at least 1"),
        ({"temperature": -1.0}, "--temperature is -1, must be 0 to 10"),
        ({"temperature": 0.0}, "gives the same answer 5 times"),
        ({"num_prompts": 0}, "--num-prompts is 0"),
        ({"max_new_tokens": 10**6}, "no room for answers"),
        ({"engine": "vllm"}, "vLLM is not installed"),
    ],
)
def test_values_that_make_no_sense_are_refused(
    tmp_path: Path, model: str, prompts: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sample(prompts, model, Sampling(**options), tmp_path / "a", ignore)
    assert not (tmp_path / "a").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path, model: str, prompts: str) -> None:
    sample(prompts, model, OPTIONS, tmp_path / "a", ignore)
    with pytest.raises(
        UserError, match=r"decoding.answers_per_prompt is 5, was 3, decoding.temperature is 0.5, was 1.0"
    ):
        sample(prompts, model, Sampling(temperature=0.5, max_new_tokens=6), tmp_path / "a", ignore)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(UserError, match="exists and holds no answers"):
        sample(prompts, model, OPTIONS, tmp_path / "mine", ignore)
    assert [one.name for one in (tmp_path / "mine").iterdir()] == ["letter.txt"]
