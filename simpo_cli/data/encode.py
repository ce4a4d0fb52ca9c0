"""Pairs to tokens: which tokens are the prompt, which are scored, and what is cut.

The prompt is the conversation as the template writes it, with its generation prompt. The response is what the full
rendering holds behind that, up to and including the first end-of-turn token. Prompt and whole are tokenized as they
are when a model is used; where the whole does not begin with the prompt's own tokens, because a token would straddle
the boundary, prompt and response are tokenized apart, as they are when the model generates, and the pair is counted.

Templates that do more than append are met by these rules:
- One that ignores `add_generation_prompt`: the header that it writes in front of an answer belongs to the prompt.
- One that changes the answer, as those do that drop its reasoning: the answer stands behind the prompt as it is in the
  record, followed by what the template writes behind an answer. Such pairs are counted.
- One whose generation prompt already opens the answer (`<think>`), which the rendering of a whole conversation does
  not: the same, for answers that begin with this opening; others are refused.
- One that leaves the last answer without an end, which the next turn's header is (GLM-4): that token is put there.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from simpo_cli.data.messages import as_transcript
from simpo_cli.data.pair import EncodedPair, Message, PreferencePair
from simpo_cli.data.raw import MAX_KEPT_TEXT, BadRecord, RecordError
from simpo_cli.data.tokenizer import EncodingError, TemplateError, TextTokenizer, TurnMarks, Way, batches
from simpo_cli.errors import UserError
from simpo_cli.recipe.schema import DataRecipe

LONGEST_WORD = 1_000_000
"""Characters without white space, or of white space, that a text may hold in a row. A longer run is no text, and
tokenizers take long for it, or all memory."""

_BATCH = 512  # pairs tokenized together: enough to keep the library's threads busy, little to hold
_BATCH_CHARACTERS = 4_000_000
_STAND_IN = "qZ7kqx"  # a made-up answer
_SKIP = "Set data.on_bad_record: skip to leave such records out and count them."


@dataclass
class EncodedPairs:
    """What became of the pairs.

    Attributes:
        pairs: those that can be trained on or scored, in their order.
        dropped: pairs without signal, by reason.
        bad: pairs that the template or the rules refuse, each with the reason.
        counts: pairs with a property worth telling: `prompt cut`, `chosen cut`, `rejected cut`, `tokenized apart`,
            `no end token`, `special token kept as text`, `answer not as the template writes it`, and `tools unknown to
            the template`: it has no place for their definitions, in training as later in use.
    """

    pairs: list[EncodedPair] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    bad: list[BadRecord] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Texts:
    """A pair as rendered text.

    Attributes:
        prompt: what is not scored.
        responses: what stands behind it, chosen and rejected.
        way: how special tokens in it are read.
        as_written: whether the template was not asked how it would write the answers.
        tools_left_out: whether the pair has definitions of tools that the template does not read.
    """

    prompt: str
    responses: tuple[str, str]
    way: Way
    as_written: bool = False
    tools_left_out: bool = False


@dataclass(frozen=True, slots=True)
class _Ids:
    """A tokenized pair: prompt and responses, and whether they had to be tokenized apart."""

    prompt: list[int]
    responses: tuple[list[int], list[int]]
    apart: bool


def encode_pairs(pairs: Sequence[PreferencePair], tokenizer: TextTokenizer, data: DataRecipe) -> EncodedPairs:
    """Render, tokenize, split, cut.

    Args:
        pairs: the pairs as text.
        tokenizer: the model's tokenizer with the template that the recipe chose.
        data: lengths, template variables and what to do with trouble.

    Returns:
        What became of the pairs. Where the recipe stops at bad records, no pair is looked at behind the batch with the
        first ones: the caller is about to stop.

    Raises:
        UserError: a pair without signal, or over the limits, where the recipe asks to stop; or template variables that
            the template does not have.
    """
    tokenizer.require_known(data.chat_template_kwargs)
    marks = tokenizer.turn_marks(data.chat_template_kwargs) if tokenizer.has_template else TurnMarks()
    ends = tokenizer.end_ids | ({marks.end_id} if marks.end_id is not None else set())
    rules = _Rules(data=data, tokenizer=tokenizer, marks=marks, ends=ends)
    result = EncodedPairs()
    for batch in batches(pairs, _BATCH, weigh=_num_characters, weight=_BATCH_CHARACTERS):
        rendered: list[tuple[PreferencePair, _Texts]] = []
        for pair in batch:
            try:
                rendered.append((pair, _render(pair, rules)))
            except RecordError as error:
                result.bad.append(_bad(pair, error))
        tokenized = _tokenize([texts for _, texts in rendered], tokenizer)
        for (pair, texts), ids in zip(rendered, tokenized, strict=True):
            if isinstance(ids, RecordError):
                result.bad.append(_bad(pair, ids))
            else:
                _settle(pair, texts, ids, rules, result)
        if result.bad and data.on_bad_record == "error":
            break
    return result


@dataclass(frozen=True, slots=True)
class _Rules:
    """What holds for every pair of a call; `ends` are the tokens that end an answer."""

    data: DataRecipe
    tokenizer: TextTokenizer
    marks: TurnMarks
    ends: frozenset[int]

    @property
    def plain(self) -> bool:
        """Whether texts are used as they are."""
        return not self.tokenizer.has_template or self.data.rendered


def _bad(pair: PreferencePair, error: RecordError) -> BadRecord:
    """The refusal with the pair as text, for the file of rejected records."""
    prompt = pair.prompt if isinstance(pair.prompt, str) else [[turn.role, turn.content] for turn in pair.prompt]
    shown = json.dumps({"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected}, ensure_ascii=False)
    return BadRecord(pair.where, error.problem, error.fix, shown[:MAX_KEPT_TEXT])


# Rendering

_RUNS = re.compile(r"\S+|\s+")


def _contents(pair: PreferencePair) -> list[str]:
    return [pair.prompt] if isinstance(pair.prompt, str) else [turn.content for turn in pair.prompt]


def _num_characters(pair: PreferencePair) -> int:
    return sum(map(len, _contents(pair))) + len(pair.chosen) + len(pair.rejected)


def _render(pair: PreferencePair, rules: _Rules) -> _Texts:
    contents = _contents(pair)
    for name, text in (*(("prompt", text) for text in contents), ("chosen", pair.chosen), ("rejected", pair.rejected)):
        if len(text) > LONGEST_WORD and any(run.end() - run.start() > LONGEST_WORD for run in _RUNS.finditer(text)):
            raise RecordError(f"{name}: a word, or a gap, of more than {LONGEST_WORD:,} characters", _SKIP)
    return _render_plain(pair, rules) if rules.plain else _render_chat(pair, contents, rules)


def _render_plain(pair: PreferencePair, rules: _Rules) -> _Texts:
    """Prompt and response as they are; a conversation becomes a Human/Assistant transcript, in the form of HH-RLHF."""
    prompt, responses = pair.prompt, (pair.chosen, pair.rejected)
    if not isinstance(prompt, str) and rules.data.rendered:
        if len(prompt) != 1:
            raise RecordError(
                "the prompt is a conversation, and data.rendered: true says that the texts are rendered already",
                "Leave data.rendered out, or, for plain Human/Assistant transcripts, set data.chat_template: none.",
            )
        prompt = prompt[0].content
    if not isinstance(prompt, str):
        # The space behind "Assistant:" is the answer's, where tokenizers have it: " Yes" is one token
        prompt, responses = "\n\n" + as_transcript(prompt), (f" {pair.chosen}", f" {pair.rejected}")
    # data.rendered promises that special tokens in the text are meant; in plain text they are only text
    literal = not rules.data.rendered and any(map(rules.tokenizer.has_special_literal, (prompt, *responses)))
    return _Texts(prompt, responses, "literal" if literal else "parsed")


def _render_chat(pair: PreferencePair, contents: Sequence[str], rules: _Rules) -> _Texts:
    tokenizer = rules.tokenizer
    _refuse_rendered([*contents, pair.chosen, pair.rejected], rules)
    tools = None if pair.tools is None else json.loads(pair.tools)
    tools = [tools] if isinstance(tools, dict) else tools
    untold = tools is not None and not tokenizer.knows_tools
    found = _any_string(tools, tokenizer.has_special_literal)
    masked = found or any(map(tokenizer.has_special_literal, (*contents, pair.chosen, pair.rejected)))

    def keep(text: str) -> str:
        return tokenizer.mask_literals(text) if masked else text

    try:
        talk = _Talk(
            rules,
            tuple(Message(role, keep(text)) for role, text in zip(_roles(pair.prompt), contents, strict=True)),
            _each_string(tools, keep) if masked else tools,
        )
        answers = keep(pair.chosen), keep(pair.rejected)
        prompt = talk.prompt()
        (chosen, chosen_as_written), (rejected, rejected_as_written) = (
            talk.response(prompt, answer) for answer in answers
        )
        talk.require_turns_kept(prompt)
    except TemplateError as error:
        raise RecordError(
            f"the chat template refuses the conversation: {error}",
            "Mend the order of the turns, or set data.on_bad_record: skip to leave such records out.",
        ) from error
    except EncodingError as error:
        raise RecordError(f"the text {error}", _SKIP) from error
    way: Way = "masked" if masked else "parsed"
    return _Texts(prompt, (chosen, rejected), way, chosen_as_written or rejected_as_written, untold)


def _roles(prompt: tuple[Message, ...] | str) -> list[str]:
    return ["user"] if isinstance(prompt, str) else [turn.role for turn in prompt]


@dataclass(frozen=True, slots=True)
class _Talk:
    """A conversation before the template, ready for its answer; its texts are masked where they must be."""

    rules: _Rules
    turns: tuple[Message, ...]
    tools: Any

    def prompt(self) -> str:
        """The conversation with the header of the answer."""
        return self._render(self.turns, generation_prompt=True) + self.rules.marks.opening

    def response(self, prompt: str, answer: str) -> tuple[str, bool]:
        """What stands behind the prompt, and whether the template was not asked how it would write it.

        Raises:
            RecordError: no rule says how the answer continues the prompt.
        """
        whole = self._render((*self.turns, Message("assistant", answer)))
        if whole.startswith(prompt) and _holds(whole[len(prompt) :], answer):
            return whole[len(prompt) :], False
        before, found, behind = self._render((*self.turns, Message("assistant", _STAND_IN))).rpartition(_STAND_IN)
        if found and whole.startswith(prompt):
            space = before[len(prompt) :]
            return (space if not space.strip() else "") + answer + behind, True
        opening = prompt[len(before) :] if prompt.startswith(before) else ""
        word = opening.strip()
        if found and word:
            if answer.startswith(word):
                return answer[len(word) :].removeprefix(opening[len(opening.rstrip()) :]) + behind, True
            raise RecordError(
                f"the generation prompt ends with {opening!r}, and this answer does not begin with it",
                "Give answers with their reasoning, or a template without it with data.chat_template or "
                "data.chat_template_kwargs.",
            )
        raise RecordError(
            "the chat template renders the conversation differently once the response is there",
            "Give a template that only appends with data.chat_template, or set data.chat_template_kwargs.",
        )

    def require_turns_kept(self, prompt: str) -> None:
        """A template that knows no tool or system role may drop the turn without a word; nobody would see it.

        Raises:
            RecordError: names the role.
        """
        for i, turn in enumerate(self.turns):
            text = turn.content.strip()
            if turn.role == "assistant" or text in prompt or json.dumps(text, ensure_ascii=False)[1:-1] in prompt:
                continue  # what is taken out of earlier answers is the template's choice: their reasoning
            # not there word for word: left out, or only changed?
            changed = (*self.turns[:i], Message(turn.role, _STAND_IN), *self.turns[i + 1 :])
            if _STAND_IN not in self._render(changed, generation_prompt=True):
                raise RecordError(
                    f"the chat template leaves the {turn.role} turn out",
                    "Use a model whose template knows the role, or drop the turn from the data.",
                )

    def _render(self, turns: Sequence[Message], *, generation_prompt: bool = False) -> str:
        return self.rules.tokenizer.render(
            turns,
            generation_prompt=generation_prompt,
            tools=self.tools,
            template_kwargs=self.rules.data.chat_template_kwargs,
        )


def _holds(rendered: str, answer: str) -> bool:
    """Whether an answer is there, white space aside."""
    return answer.strip() in rendered or "".join(answer.split()) in "".join(rendered.split())


def _refuse_rendered(contents: Sequence[str], rules: _Rules) -> None:
    """Text that already holds the template's turn headers was rendered before; rendering it again scores markers.

    Headers of mere words, such as `ASSISTANT:`, also occur in texts about something else; these are refused where a
    text ends with the assistant's, as only a rendered prompt does.

    Raises:
        RecordError: names the header.
    """
    user, answer = rules.marks.user_header, rules.marks.answer_header
    for header in filter(None, (user, answer)):
        if any(sign in header for sign in "<>[]{}|"):
            holds = any(header in text for text in contents)
        else:
            holds = header == answer and any(user in text and text.rstrip().endswith(answer) for text in contents)
        if holds:
            raise RecordError(
                f"the text already holds the chat template's markers ({header!r})",
                "Set data.rendered: true to use such text as it is, or give plain messages.",
            )


def _any_string(value: Any, holds: Callable[[str], bool]) -> bool:
    match value:
        case str():
            return holds(value)
        case list():
            return any(_any_string(item, holds) for item in value)
        case dict():
            return any(_any_string(item, holds) for pair in value.items() for item in pair)
        case _:
            return False


def _each_string(value: Any, change: Callable[[str], str]) -> Any:
    match value:
        case str():
            return change(value)
        case list():
            return [_each_string(item, change) for item in value]
        case dict():
            return {change(key): _each_string(item, change) for key, item in value.items()}
        case _:
            return value


# Tokenizing


def _tokenize(texts: Sequence[_Texts], tokenizer: TextTokenizer) -> list[_Ids | RecordError]:
    """Ids of each pair, or why it has none, in a few calls of the library for all of them."""
    found: dict[int, _Ids | RecordError] = {}
    for way in get_args(Way):
        places = [i for i, one in enumerate(texts) if one.way == way]
        if not places:
            continue
        found.update(zip(places, _tokenize_way([texts[i] for i in places], way, tokenizer), strict=True))
    return [found[i] for i in range(len(texts))]


def _tokenize_way(texts: Sequence[_Texts], way: Way, tokenizer: TextTokenizer) -> list[_Ids | RecordError]:
    try:
        return list(_tokenize_all(texts, way, tokenizer))
    except EncodingError as error:  # one of the texts; which one, the library does not say
        if len(texts) > 1:
            half = len(texts) // 2
            return [one for part in (texts[:half], texts[half:]) for one in _tokenize_way(part, way, tokenizer)]
        return [RecordError(f"the text {error}", _SKIP)]


def _tokenize_all(texts: Sequence[_Texts], way: Way, tokenizer: TextTokenizer) -> list[_Ids]:
    starts = [tokenizer.last_break(one.prompt) if way == "parsed" else 0 for one in texts]
    flat = [
        text
        for one, start in zip(texts, starts, strict=True)
        for text in (one.prompt, *(one.prompt[start:] + response for response in one.responses))
    ]
    encoded = tokenizer.encode_batch(flat, way)
    prompts = encoded[::3]
    wholes = [whole for i, whole in enumerate(encoded) if i % 3]
    responses = [_behind(prompts[i // 2], whole, starts[i // 2] > 0) for i, whole in enumerate(wholes)]
    straddling = [i for i, response in enumerate(responses) if response is None]
    again = tokenizer.encode_behind([texts[i // 2].responses[i % 2] for i in straddling], way)
    apart = dict(zip(straddling, again, strict=True))
    settled = [apart[i] if response is None else response for i, response in enumerate(responses)]
    return [
        _Ids(prompt, (settled[2 * i], settled[2 * i + 1]), 2 * i in apart or 2 * i + 1 in apart)
        for i, prompt in enumerate(prompts)
    ]


def _behind(prompt: list[int], whole: list[int], from_break: bool) -> list[int] | None:
    """What a tokenized text holds behind the prompt's tokens, or None where it does not begin with them.

    With `from_break` the text begins with the prompt's last special token, else with the prompt's beginning.
    """
    if from_break:
        prompt = prompt[len(prompt) - 1 - prompt[::-1].index(whole[0]) :]
    return whole[len(prompt) :] if whole[: len(prompt)] == prompt else None


# Settling


def _settle(pair: PreferencePair, texts: _Texts, ids: _Ids, rules: _Rules, result: EncodedPairs) -> None:
    """End, cut and judge one tokenized pair; it goes into `result` as a pair or as a count."""
    tokenizer, data = rules.tokenizer, rules.data
    prompt, prefix = ids.prompt, tokenizer.plain_prefix
    if rules.plain and prompt[: len(prefix)] != prefix:  # a rendered text may hold it already
        prompt = [*prefix, *prompt]
    while tokenizer.bos_id is not None and prompt[:2] == [tokenizer.bos_id] * 2:
        prompt = prompt[1:]
    if not prompt:
        result.bad.append(_bad(pair, RecordError("the prompt has no tokens", _SKIP)))
        return
    chosen, rejected = (_ended(response, rules) for response in ids.responses)
    num_prompt = len(prompt)
    prompt = _cut_prompt(prompt, data.max_prompt_length, tokenizer.bos_id)
    room = data.max_length - len(prompt)
    if data.overlong != "truncate" and (len(prompt) < num_prompt or max(len(chosen.ids), len(rejected.ids)) > room):
        if data.overlong == "error":
            raise UserError(
                f"the pair has {num_prompt} prompt tokens and {len(chosen.ids)} and {len(rejected.ids)} response "
                f"tokens, over the limits of {data.max_prompt_length} and {data.max_length}.",
                "Raise data.max_length, or set data.overlong to truncate or drop.",
                where=pair.where,
            )
        result.dropped["over the length limits"] += 1
        return
    chosen_cut, rejected_cut = chosen.cut(room), rejected.cut(room)
    reason = _no_signal(chosen_cut, rejected_cut, data.min_response_tokens)
    if reason is not None:
        if data.on_no_signal == "error":
            raise UserError(
                f"the pair carries no signal: {reason}.",
                "Mend the record, or set data.on_no_signal: drop to leave such pairs out and count them.",
                where=pair.where,
            )
        result.dropped[reason] += 1
        return
    encoded = EncodedPair(
        prompt=_array(prompt),
        chosen=_array(chosen_cut.ids),
        rejected=_array(rejected_cut.ids),
        prompt_key=prompt_key(pair),
        where=pair.where,
        prompt_cut=len(prompt) < num_prompt,
        chosen_cut=chosen_cut is not chosen,
        rejected_cut=rejected_cut is not rejected,
    )
    for what, holds in (
        ("prompt cut", encoded.prompt_cut),
        ("chosen cut", encoded.chosen_cut),
        ("rejected cut", encoded.rejected_cut),
        ("tokenized apart", ids.apart),
        ("no end token", not (chosen.has_end and rejected.has_end)),
        ("special token kept as text", texts.way != "parsed"),
        ("answer not as the template writes it", texts.as_written),
        ("tools unknown to the template", texts.tools_left_out),
    ):
        if holds:
            result.counts[what] += 1
    result.pairs.append(encoded)


@dataclass(frozen=True, slots=True)
class _Response:
    """A response's tokens, and whether the last one is an end token."""

    ids: list[int]
    has_end: bool

    def cut(self, room: int) -> "_Response":
        """The first `room` tokens; one that is cut has no end token. Itself where it fits."""
        return self if len(self.ids) <= room else _Response(self.ids[:room], False)


def _ended(ids: list[int], rules: _Rules) -> _Response:
    """A response up to and including its first end token, put there where the rendering has none of its own."""
    places = [ids.index(end) for end in rules.ends if end in ids]
    if places:
        return _Response(ids[: min(places) + 1], True)
    end = rules.marks.end_id if rules.marks.end_id is not None else rules.tokenizer.eos_id
    if end is not None and (rules.plain or not rules.marks.end_is_written):
        return _Response([*ids, end], True)
    return _Response(ids, False)


def _cut_prompt(prompt: list[int], most: int, bos_id: int | None) -> list[int]:
    """The last `most` tokens, with the BOS kept in front."""
    if len(prompt) <= most:
        return prompt
    if bos_id is not None and prompt[0] == bos_id:
        return [bos_id, *prompt[len(prompt) - most + 1 :]]
    return prompt[len(prompt) - most :]


def _no_signal(chosen: _Response, rejected: _Response, fewest: int) -> str | None:
    """Why a pair cannot teach, or None."""
    shortest = min(len(response.ids) - response.has_end for response in (chosen, rejected))
    if shortest == 0:
        return "response without tokens"
    if shortest < fewest:
        return f"response of fewer than {fewest} tokens"
    return "responses identical after the cut" if chosen.ids == rejected.ids else None


def _array(ids: Sequence[int]) -> NDArray[np.int32]:
    return np.asarray(ids, dtype=np.int32)


def prompt_key(pair: PreferencePair) -> str:
    """A hash of the prompt's text; a string and the same string as one user message are the same prompt."""
    messages = (Message("user", pair.prompt),) if isinstance(pair.prompt, str) else pair.prompt
    text = json.dumps([[message.role, message.content] for message in messages], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
