"""Prompts alone have the tokens that they have in front of a response."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from simpo_cli.data.encode import encode_pairs, encode_prompt
from simpo_cli.data.pair import Message, PreferencePair, RecordError
from tests.data.encode_cases import APPEND_ONLY, ROOMY, Case

TALK = (Message("user", "How do I invite a teammate?"), Message("assistant", "Open People."), Message("user", "And?"))


@pytest.mark.parametrize("name", APPEND_ONLY)
@pytest.mark.parametrize("prompt", ["How do I invite a teammate?", TALK, "say </s> or <|im_end|> now"])
def test_a_prompt_alone_is_the_prompt_of_a_pair(
    case: Callable[[str], Case], name: str, prompt: str | tuple[Message, ...]
) -> None:
    one = case(name)
    answers = (
        ("<think>\na\n</think>\n\nyes", "<think>\nb\n</think>\n\nno") if name.endswith("thinking") else ("yes", "no")
    )
    for tokenizer in (one.ours, one.plain):
        encoded = encode_pairs([PreferencePair(prompt, *answers, where="here")], tokenizer, ROOMY)
        if encoded.bad:
            with pytest.raises(RecordError):
                encode_prompt(prompt, tokenizer, ROOMY)
        else:
            assert encode_prompt(prompt, tokenizer, ROOMY) == encoded.pairs[0].prompt.tolist()


def test_a_template_that_opens_the_answer_is_no_obstacle(case: Callable[[str], Case]) -> None:
    one = case("deepseek_r1")
    assert one.ours.decode(encode_prompt("How?", one.ours, ROOMY)).endswith("<think>\n")


def test_what_cannot_be_asked_is_refused(case: Callable[[str], Case]) -> None:
    chatml = case("chatml")
    with pytest.raises(RecordError, match="already holds the chat template's markers"):
        encode_prompt("<|im_start|>user\nHow?<|im_end|>", chatml.ours, ROOMY)
    with pytest.raises(RecordError, match="refuses the prompt"):
        encode_prompt((Message("user", "a"), Message("user", "b")), case("mistral").ours, ROOMY)
    rendered = replace(ROOMY, rendered=True)
    assert (
        chatml.ours.decode(encode_prompt("<|im_start|>user\nHow?", chatml.ours, rendered)) == "<|im_start|>user\nHow?"
    )
