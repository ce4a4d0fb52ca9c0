"""`simpo chat` without its terminal: a conversation with one model, or two side by side, and the pairs it gives.

A model gets a conversation as it gets the prompt of a pair: the same template, the same tokens, and the oldest turns go
where all of them do not fit. So what a person prefers here is a pair that training reads as it was seen.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from simpo_cli.data.encode import Rules, answer_opening, encode_pairs, encode_prompt
from simpo_cli.data.pair import Message, PreferencePair, RecordError, prompt_messages
from simpo_cli.data.prepare import prepare_tokenizer
from simpo_cli.data.tokenizer import TextTokenizer
from simpo_cli.errors import UserError
from simpo_cli.evaluate.generate.decode import (
    Decoding,
    InverseDraw,
    KeptCache,
    answer_until_end,
    generate_ids,
    open_for_answers,
    uniforms,
)
from simpo_cli.evaluate.targets import Target, baseline_of, find_speaker
from simpo_cli.model.adapters import switch_adapter
from simpo_cli.model.source import ModelSource
from simpo_cli.recipe.schema import DataRecipe, ModelRecipe

BASE = "base"
"""What `--beside` calls the model that training started from."""
AGAIN_TEMPERATURE = 0.7
"""Of further answers where the first ones are greedy."""


@dataclass(frozen=True)
class Settings:
    """How answers are drawn: at most `max_tokens` each, greedily where the temperature is 0."""

    max_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class Reply:
    """An answer, or what there was of it.

    Attributes:
        text: white space at both ends left out.
        num_tokens: without the end token.
        ended: whether the model ended it; else it was cut at the most tokens, or stopped.
        stopped: whether the person stopped it.
        without_oldest: whether the model no longer saw the whole conversation.
    """

    text: str
    num_tokens: int
    ended: bool
    stopped: bool
    without_oldest: bool


class GrowingText:
    """The text of tokens that arrive one by one, passed on as soon as further tokens can no longer change it.

    What is passed on is, put together, the text of all tokens without white space at its ends. Characters of several
    tokens wait for the last of them, and white space for what follows it.
    """

    def __init__(self, to_text: Callable[[Sequence[int]], str], hear: Callable[[str], object]) -> None:
        self._to_text, self._hear = to_text, hear
        self._ids: list[int] = []
        self._passed = ""

    def add(self, token: int) -> None:
        """One more token."""
        self._ids.append(token)
        self._pass_on(self._to_text(self._ids).rstrip("\N{REPLACEMENT CHARACTER}").strip())

    def end(self) -> None:
        """No token follows: bytes that are no characters are passed on too."""
        self._pass_on(self._to_text(self._ids).strip())

    def _pass_on(self, text: str) -> None:
        # some decoders take back characters while bytes behind them are missing
        if len(text) > len(self._passed) and text.startswith(self._passed):
            piece, self._passed = text[len(self._passed) :], text
            self._hear(piece)


@dataclass(frozen=True)
class Speaker:
    """A model that answers.

    Attributes:
        name: as people read it.
        data: how its conversations are written and cut.
        tokenizer: with the template of its run.
        num_positions: most tokens of prompt and answer, or None where its configuration does not say.
        model: the causal language model.
        with_adapter: of two speakers that share a model, whether this one has its adapter; None where it is not shared.
        kept: what was computed of its last prompt and answer.
    """

    name: str
    data: DataRecipe
    tokenizer: TextTokenizer
    num_positions: int | None
    model: Any
    with_adapter: bool | None
    kept: KeptCache = field(default_factory=KeptCache)

    def answer(
        self, prompt: tuple[Message, ...], settings: Settings, draw: str, hear: Callable[[str], object]
    ) -> Reply:
        """Answer a conversation; KeyboardInterrupt stops the answer and goes no further.

        Args:
            draw: names the random numbers of a sampled answer, together with the seed.
            hear: called with each piece of the text as soon as it is there.

        Raises:
            UserError: the chat template refuses the conversation, or the card's memory is full.
        """
        try:
            ids, opening, is_cut = self._read(prompt, settings.max_tokens)
        except RecordError as error:
            raise UserError(f"{self.name} cannot be asked this: {error.problem}.", "/new starts over.") from error
        decoding = Decoding(
            max_new_tokens=min(settings.max_tokens, (self.num_positions or sys.maxsize) - len(ids)),
            temperature=settings.temperature,
            seed=settings.seed,
            end_ids=tuple(sorted(Rules.of(self.data, self.tokenizer).ends)),
            to_text=self.tokenizer.decode,
        )
        text, tokens, stopped = GrowingText(self.tokenizer.decode, hear), list[int](), False
        if opening:
            hear(opening)

        def take(newest: list[int]) -> None:
            tokens.extend(newest)
            if tokens[-1] not in decoding.end_ids:
                text.add(tokens[-1])

        device, processors = next(self.model.parameters()).device, []
        if decoding.temperature > 0:
            numbers = torch.from_numpy(uniforms(draw, decoding)).to(device)
            processors = [InverseDraw(numbers[None], decoding.temperature, len(ids))]
        if self.with_adapter is not None:  # at every answer: Ctrl-C may come at any moment
            switch_adapter(self.model, on=self.with_adapter)
        try:
            with torch.inference_mode():
                generate_ids(
                    self.model, [ids], device, decoding.max_new_tokens, decoding.end_ids, processors,
                    on_tokens=take, kept=self.kept,
                )  # fmt: skip
        except KeyboardInterrupt:
            stopped = True
        except torch.OutOfMemoryError as error:
            raise UserError(f"no memory is left for an answer of {self.name}.", "/new starts over.") from error
        text.end()
        answer = answer_until_end("", tokens, decoding.end_ids, self.tokenizer.decode)
        return Reply(f"{opening}{answer.text}".strip(), len(answer.ids), answer.ended, stopped, is_cut)

    def _read(self, prompt: tuple[Message, ...], max_tokens: int) -> tuple[list[int], str, bool]:
        """The tokens of a conversation, what they hold of the answer already, and whether its oldest turns are gone."""
        ids, most = encode_prompt(prompt, self.tokenizer, self.data), self.num_positions
        opening = answer_opening(prompt, self.tokenizer, self.data)
        if most is not None:  # room for the answer, of a quarter of the positions at most
            most -= min(max_tokens, most // 4)
        if most is None or len(ids) <= most:
            return ids, opening, False
        return encode_prompt(prompt, self.tokenizer, self.data, most), opening, True

    def require_trainable(self, pair: PreferencePair) -> None:
        """Refuse (UserError) a pair that training on this model would refuse, or drop as one without signal."""
        encoded = encode_pairs([pair], self.tokenizer, self.data)
        if problems := [*(bad.problem for bad in encoded.bad), *encoded.dropped]:
            raise UserError(f"this is no pair to train on: {problems[0]}.", "/again gives another answer.")


def open_speakers(name: str, beside: str | None) -> list[Speaker]:
    """The model of a name, and perhaps another one beside it, their weights read.

    Args:
        name: a run, a model, a checkpoint, an adapter, or a recipe for its start model.
        beside: the other model by its name; `base` is what the first one started from.

    Raises:
        UserError: a name means nothing, both mean the same model, or one does not load.
    """
    targets = {name: find_speaker(name)}
    if beside is not None:
        other = _base_of(name, targets[name]) if beside == BASE else find_speaker(beside)
        if other.identity == targets[name].identity:
            raise UserError(f"the model beside {name} is the same one.", "Name another with --beside.")
        targets[other.name if beside == BASE else beside] = other
    sources = [target.source() for target in targets.values()]
    tokenizers = [prepare_tokenizer(target.recipe) for target in targets.values()]
    # what lies under the adapter of the first needs no second copy of the weights
    is_shared = _is_under(sources[-1], sources[0]) and all(target.checkpoint is None for target in targets.values())
    speakers: list[Speaker] = []
    for (called, target), source, tokenizer in zip(targets.items(), sources, tokenizers, strict=True):
        if speakers and is_shared:
            model = speakers[0].model
        else:
            model = open_for_answers(source, None if target.checkpoint is None else target.load_checkpoint)
        # what is typed was not rendered before, and what training would leave out is refused here
        data = replace(
            target.recipe.data, rendered=False, overlong="truncate", on_bad_record="skip", on_no_signal="drop"
        )
        with_adapter = not speakers if is_shared else None
        speakers.append(Speaker(called, data, tokenizer, source.max_length, model, with_adapter))
    return speakers


def _is_under(source: ModelSource, adapted: ModelSource) -> bool:
    """Whether a model is what another one is without its adapter, which holds no trained biases or copies besides."""
    if adapted.adapter is None or adapted.adapter_base is None or adapted.adapter.whole_parts:
        return False
    if source.quantization != adapted.quantization:
        return False
    return source.folder.resolve() == adapted.adapter_base.folder.resolve()


def _base_of(name: str, target: Target) -> Target:
    """What a model started from: the start model of its run, or the model under the adapter."""
    base, under = baseline_of(target, None, ()), target.source().adapter_base
    if base is None and under is not None:
        model = ModelRecipe(path=under.name, revision=under.revision)
        base = Target(under.name, replace(target.recipe, model=model))
    if base is None:
        raise UserError(f"nothing says what {name} started from.", "Name the model: --beside MODEL")
    return base


class Listener(Protocol):
    """Who follows the answers to a question."""

    def begin(self, number: int, name: str) -> None:
        """A model begins the first or second answer."""

    def hear(self, piece: str) -> None:
        """More of its text."""

    def end(self, reply: Reply) -> None:
        """The whole of it."""


class Chat:
    """A conversation, and the answers to its last question that can be compared.

    It continues with the first answer, or with the one that was called better.

    Attributes:
        system: the system turn; empty for none.
        turns: what was said behind it; the last turn is an answer.
        replies: the answers to the last question, at most two.
    """

    def __init__(self, speakers: Sequence[Speaker], settings: Settings, system: str = "") -> None:
        self.speakers, self.settings = speakers, settings
        self._num_rounds = 0
        self.start_over(system)

    def start_over(self, system: str) -> None:
        """Forget what was said."""
        self.system = system
        self.turns: list[Message] = []
        self.replies: list[Reply] = []

    def ask(self, text: str, listener: Listener) -> None:
        """Have all speakers answer, one after the other; who stops an answer ends the round.

        Raises:
            UserError: see `Speaker.answer`; what was said before stays.
        """
        self._answer([*self.turns, Message("user", text)], [], self.settings.temperature, listener)

    def again(self, listener: Listener) -> None:
        """Have the last question answered anew by sampling: a second answer of one model, or new ones of both.

        Raises:
            UserError: nothing was asked, or as `ask`.
        """
        if not self.turns:
            raise UserError("nothing was asked yet.", "Type a question first.")
        kept = [reply for reply in self.replies[:1] if len(self.speakers) == 1 and not reply.stopped]
        self._answer(self.turns[:-1], kept, self.settings.temperature or AGAIN_TEMPERATURE, listener)

    def _answer(self, turns: list[Message], kept: list[Reply], temperature: float, listener: Listener) -> None:
        replies, settings = list(kept), replace(self.settings, temperature=temperature)
        self._num_rounds += 1
        for speaker in self.speakers:
            listener.begin(len(replies) + 1, speaker.name)
            reply = speaker.answer(self._prompt(turns), settings, str(self._num_rounds), listener.hear)
            listener.end(reply)
            if reply.text or not reply.stopped:  # nothing stays of a question that was taken back
                replies.append(reply)
                self.turns, self.replies = [*turns, Message("assistant", replies[0].text)], replies
            if reply.stopped:
                return

    def _prompt(self, turns: Sequence[Message]) -> tuple[Message, ...]:
        return (*([Message("system", self.system)] if self.system else []), *turns)

    def better(self, number: int) -> PreferencePair:
        """The pair in which answer 1 or 2 is chosen and the other one rejected.

        Raises:
            UserError: there are no two answers to compare, or they are no pair to train on.
        """
        if len(self.replies) < 2:
            raise UserError("there are no two answers to compare.", "Ask something, or get another answer with /again.")
        chosen, rejected = self.replies[number - 1], self.replies[2 - number]
        if chosen.stopped or rejected.stopped:
            raise UserError("an answer that was stopped is no response to train on.", "/again gives another answer.")
        if not chosen.ended:
            raise UserError(
                f"answer {number} was cut before its end, and would teach the model to stop there.",
                "Allow for longer answers with --max-new-tokens, or get another one with /again.",
            )
        pair = PreferencePair(self._prompt(self.turns[:-1]), chosen.text, rejected.text, where="")
        self.speakers[0].require_trainable(pair)
        return pair

    def continue_with(self, number: int) -> None:
        """Continue the conversation with an answer, now the only one to its question."""
        self.replies = [self.replies[number - 1]]
        self.turns[-1] = Message("assistant", self.replies[0].text)


def record_of(pair: PreferencePair) -> dict[str, Any]:
    """A pair as a record of a file of preferences: the conversation, and each response as its next turn."""
    chosen, rejected = ([answer.as_record()] for answer in pair.answers)
    return {
        "prompt": [turn.as_record() for turn in prompt_messages(pair.prompt)],
        "chosen": chosen,
        "rejected": rejected,
    }
