"""`simpo chat` without its terminal: a conversation with one model, or two side by side, and the pairs it gives.

A model gets a conversation as it gets the prompt of a pair: the same template, the same tokens, and the oldest turns go
where all of them do not fit. So what a person prefers here is a pair that training reads as it was seen.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from simpo_cli.data.encode import Rules, answer_opening, encode_pairs, encode_prompt
from simpo_cli.data.pair import Message, PreferencePair, RecordError, prompt_messages
from simpo_cli.data.prepare import prepare_tokenizer
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
from simpo_cli.model.adapters import without_adapter
from simpo_cli.model.load import ModelSource
from simpo_cli.recipe.schema import ModelRecipe

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
        ended: whether the model ended it; else it was cut at the most tokens, or stopped.
        stopped: whether the person stopped it.
        without_oldest: whether the model no longer saw the whole conversation.
    """

    text: str
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
            self._hear(text[len(self._passed) :])
            self._passed = text


class Speaker:
    """A model that answers.

    Args:
        name: as people read it.
        target: the model with the recipe that says how its conversations are written.
        source: the same, located.
    """

    def __init__(self, name: str, target: Target, source: ModelSource) -> None:
        self.name, self._target, self._source = name, target, source
        # what is typed is never rendered already, and a pair that training would not take is to be refused here
        self._data = replace(
            target.recipe.data, rendered=False, overlong="truncate", on_bad_record="skip", on_no_signal="drop"
        )
        self._tokenizer = prepare_tokenizer(target.recipe)
        self._ends = Rules.of(self._data, self._tokenizer).ends
        self._kept = KeptCache()
        self._model: Any = None
        self._is_bare = False

    @property
    def is_plain(self) -> bool:
        """Whether the model has no chat template, so that it reads conversations as Human/Assistant text."""
        return not self._tokenizer.has_template

    @property
    def weights(self) -> str:
        """Type and device of its weights, such as `float32 on cpu`."""
        weight = next(self._model.parameters())
        return f"{str(weight.dtype).removeprefix('torch.')} on {weight.device.type}"

    def load(self, first: "Speaker | None" = None) -> None:
        """Read the weights; those of a `first` speaker do where only its adapter is to be left out.

        Raises:
            UserError: they do not load.
        """
        if first is not None and first._is_this_with_adapter(self):
            self._model, self._is_bare = first._model, True
        else:
            checkpoint = self._target.checkpoint
            self._model = open_for_answers(self._source, None if checkpoint is None else self._target.load_checkpoint)

    def _is_this_with_adapter(self, other: "Speaker") -> bool:
        adapter, under = self._source.adapter, self._source.adapter_base
        return (
            adapter is not None
            and under is not None
            and not adapter.whole_parts  # such as biases, which stay what they are when the adapter is left out
            and under.folder.resolve() == other._source.folder.resolve()
            and self._target.checkpoint is None
            and other._target.checkpoint is None
        )

    def answer(self, turns: Sequence[Message], settings: Settings, draw: str, hear: Callable[[str], object]) -> Reply:
        """Answer a conversation, piece by piece; KeyboardInterrupt stops the answer and is not raised.

        Args:
            draw: by its seed and this, an answer that is sampled has its random numbers.
            hear: called with each piece of text.

        Raises:
            UserError: the chat template refuses the conversation, or the memory does not do.
        """
        prompt, known = tuple(turns), self._source.max_length
        try:
            ids = encode_prompt(prompt, self._tokenizer, self._data)
            opening = answer_opening(prompt, self._tokenizer, self._data)
            # room for the answer, which never takes more than a quarter from the conversation
            most = None if known is None else known - min(settings.max_tokens, known // 4)
            is_cut = most is not None and len(ids) > most
            if is_cut:
                ids = encode_prompt(prompt, self._tokenizer, self._data, most)
        except RecordError as error:
            raise UserError(f"{self.name} cannot be asked this: {error.problem}.", "/new starts over.") from error
        decoding = Decoding(
            max_new_tokens=settings.max_tokens if known is None else min(settings.max_tokens, known - len(ids)),
            temperature=settings.temperature,
            seed=settings.seed,
            end_ids=tuple(sorted(self._ends)),
            to_text=self._tokenizer.decode,
        )
        tokens: list[int] = []
        text = GrowingText(self._tokenizer.decode, hear)
        if opening:
            hear(opening)

        def take(newest: list[int]) -> None:
            tokens.extend(newest)
            if tokens[-1] not in self._ends:
                text.add(tokens[-1])

        try:
            self._generate(ids, decoding, draw, take)
            stopped = False
        except KeyboardInterrupt:
            stopped = True
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the card has no memory left for an answer of {self.name}.",
                "Start over with /new: a shorter conversation takes less.",
            ) from error
        text.end()
        answer = answer_until_end("", tokens, self._ends, self._tokenizer.decode)
        return Reply(f"{opening}{answer.text}".strip(), answer.ended, stopped and not answer.ended, is_cut)

    def _generate(self, ids: list[int], decoding: Decoding, draw: str, take: Callable[[list[int]], None]) -> None:
        device = next(self._model.parameters()).device
        processors = []
        if decoding.temperature > 0:
            numbers = torch.from_numpy(np.stack([uniforms(draw, decoding)])).to(device)
            processors = [InverseDraw(numbers, decoding.temperature, len(ids))]
        with torch.inference_mode(), without_adapter(self._model) if self._is_bare else nullcontext():
            generate_ids(
                self._model,
                [ids],
                device,
                decoding.max_new_tokens,
                decoding.end_ids,
                processors,
                on_tokens=take,
                kept=self._kept,
            )

    def require_trainable(self, pair: PreferencePair) -> None:
        """Refuse (UserError) a pair that training on this model would refuse, or drop as one without signal."""
        encoded = encode_pairs([pair], self._tokenizer, self._data)
        if problems := [*(bad.problem for bad in encoded.bad), *encoded.dropped]:
            raise UserError(f"this is no pair to train on: {problems[0]}.", "/again gives another answer.")


def open_speakers(name: str, beside: str | None) -> list[Speaker]:
    """The model of a name, and perhaps one beside it, their weights read.

    Args:
        name: a run, a model, a checkpoint, an adapter, or a recipe for its start model.
        beside: the other model by its name; `base` is what the first one started from.

    Raises:
        UserError: a name means nothing, both mean the same, or a model does not load.
    """
    target = find_speaker(name)
    speakers = [Speaker(name, target, target.source())]
    if beside is not None:
        other = _base_of(name, target) if beside == BASE else find_speaker(beside)
        if other.identity == target.identity:
            raise UserError(f"the model beside {name} is the same one.", "Name another with --beside.")
        speakers.append(Speaker(other.name if beside == BASE else beside, other, other.source()))
    speakers[0].load()
    for speaker in speakers[1:]:
        speaker.load(speakers[0])
    return speakers


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
                "Allow for longer answers with --max-tokens, or get another one with /again.",
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
