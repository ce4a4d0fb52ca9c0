"""What vLLM is asked for, checked by a stand-in with its documented interface."""

import inspect
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

from simpo_cli.evaluate.generate.decode import Decoding, vllm_answers_of
from simpo_cli.evaluate.generate.folder import Answer
from tests.evaluate.generate.questions import random_questions

DECODING = Decoding(max_new_tokens=9, temperature=0.6, seed=5, end_ids=(2, 7), to_text=str)


class LLM:
    """Takes the arguments that vLLM documents and answers every prompt with its last token, 8 and an end token."""

    made: ClassVar[list["LLM"]] = []

    def __init__(
        self,
        model: str,
        *,
        seed: int = 0,
        max_model_len: int | None = None,
        trust_remote_code: bool = False,
        generation_config: str = "auto",
    ) -> None:
        self.settings = dict(zip(inspect.signature(LLM).parameters, (model, seed, max_model_len), strict=False))
        self.trust_remote_code = trust_remote_code
        assert generation_config == "vllm"
        self.calls: list[Any] = []
        LLM.made.append(self)

    def generate(self, prompts: Any, sampling_params: Any = None, *, use_tqdm: bool = True) -> list[Any]:
        assert len(prompts) == len(sampling_params)
        assert not use_tqdm
        self.calls.append((prompts, sampling_params))
        ids = [[prompt["prompt_token_ids"][-1], 8, *([7] if i else [])] for i, prompt in enumerate(prompts)]
        return [
            SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(one), finish_reason="stop" if i else "length")])
            for i, one in enumerate(ids)
        ]


class SamplingParams:
    def __init__(
        self,
        *,
        temperature: float = 1.0,
        max_tokens: int | None = 16,
        stop_token_ids: list[int] | None = None,
        seed: int | None = None,
        detokenize: bool = True,
    ) -> None:
        self.temperature, self.max_tokens, self.seed = temperature, max_tokens, seed
        self.stop_token_ids, self.detokenize = stop_token_ids, detokenize


@pytest.fixture
def cleanups(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stand-in in place; how often the card's memory was given back."""
    seen: list[str] = []
    names = ("vllm", "vllm.distributed", "vllm.distributed.parallel_state")
    vllm, _, state = (ModuleType(name) for name in names)
    vllm.LLM, vllm.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    state.cleanup_dist_env_and_memory = lambda: seen.append("given back")  # type: ignore[attr-defined]
    for name, module in zip(names, (vllm, ModuleType("d"), state), strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    LLM.made.clear()
    return seen


def test_prompts_go_in_as_tokens_and_answers_come_back_without_their_end(cleanups: list[str]) -> None:
    questions = random_questions(3, seed=1)
    source: Any = SimpleNamespace(folder="some/model", code={})
    answers = dict(vllm_answers_of(source, {"greedy": questions, "sampled": questions[:1]}, DECODING))
    (engine,) = LLM.made
    longest = max(len(question.ids) for question in questions)
    assert engine.settings == {"model": "some/model", "seed": 5, "max_model_len": longest + 9}
    assert engine.trust_remote_code is False
    (prompts, greedy), (_, sampled) = engine.calls
    assert prompts == [{"prompt_token_ids": list(question.ids)} for question in questions]
    assert {(one.temperature, one.max_tokens, one.detokenize) for one in greedy} == {(0.0, 9, False)}
    assert {tuple(one.stop_token_ids) for one in [*greedy, *sampled]} == {(2, 7)}
    assert sampled[0].temperature == 0.6
    assert sampled[0].seed == greedy[0].seed, "a prompt's seed does not depend on what else is asked"
    assert len({one.seed for one in greedy}) == 3
    assert answers["greedy"] == [
        Answer(question.key, f"({question.ids[-1]}, 8)", (question.ids[-1], 8), i > 0)
        for i, question in enumerate(questions)
    ]
    assert cleanups == ["given back"]


@pytest.mark.usefixtures("cleanups")
def test_code_of_a_model_is_run_where_the_command_line_has_asked_for_it() -> None:
    source: Any = SimpleNamespace(folder="some/model", code={"modeling_own.py": "aa"})
    list(vllm_answers_of(source, {"greedy": random_questions(1, seed=1)}, DECODING))
    assert LLM.made[0].trust_remote_code is True


def test_memory_is_given_back_when_the_call_is_broken_off(cleanups: list[str]) -> None:
    source: Any = SimpleNamespace(folder="some/model", code={})
    answers = vllm_answers_of(source, {"greedy": random_questions(3, seed=1)}, DECODING)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert cleanups == ["given back"]
