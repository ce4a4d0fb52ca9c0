"""What holds for every pair of a call, and what became of the pairs."""

import hashlib
import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from simpo_cli.data.pair import EncodedPair, Message, PreferencePair
from simpo_cli.data.raw import MAX_KEPT_TEXT, BadRecord, RecordError
from simpo_cli.data.tokenizer import TextTokenizer, TurnMarks
from simpo_cli.recipe.schema import DataRecipe

SKIP = "Set data.on_bad_record: skip to leave such records out and count them."


LIMITS = ("max_prompt_length", "max_length")


@dataclass
class EncodedPairs:
    """What became of the pairs.

    Attributes:
        pairs: those that can be trained on or scored, in their order.
        dropped: pairs without signal, by reason.
        bad: pairs that the template or the rules refuse, each with the reason.
        counts: pairs with a property worth telling: `prompt cut`, `chosen cut`, `rejected cut`, `response of one
            token`, `tokenized apart`, `no end token`, `second BOS left out`, `special token kept as text`, `answer not
            as the template writes it`, `turns that the template writes otherwise once they are answered`, `tools
            unknown to the template` (it has no place for their definitions, in training as later in use), `reasoning
            that the template does not write` and others of this form.
        needed: what cut pairs would need to be whole: `max_prompt_length` and `max_length`, each with the number of
            pairs by tokens, rounded up to 64.
        places: where the pairs of each reason in `dropped` and each property in `counts` come from.
    """

    pairs: list[EncodedPair] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    bad: list[BadRecord] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    needed: dict[str, Counter[int]] = field(default_factory=lambda: {name: Counter() for name in LIMITS})
    places: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def drop(self, reason: str, where: str) -> None:
        """Leave out one pair without signal."""
        self.dropped[reason] += 1
        self.places[reason].append(where)

    def count(self, what: str, where: str) -> None:
        """One more pair with a property worth telling."""
        self.counts[what] += 1
        self.places[what].append(where)


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for every pair of a call; `ends` are the tokens that end an answer."""

    data: DataRecipe
    tokenizer: TextTokenizer
    marks: TurnMarks
    ends: frozenset[int]

    @classmethod
    def of(cls, data: DataRecipe, tokenizer: TextTokenizer) -> "Rules":
        """The rules of a recipe's data under a tokenizer with the template that the recipe chose."""
        marks = tokenizer.turn_marks(data.chat_template_kwargs) if tokenizer.has_template else TurnMarks()
        ends = tokenizer.end_ids | ({marks.end_id} if marks.end_id is not None else set())
        return cls(data=data, tokenizer=tokenizer, marks=marks, ends=ends)

    @property
    def plain(self) -> bool:
        """Whether texts are used as they are."""
        return not self.tokenizer.has_template or self.data.rendered


def refusal(pair: PreferencePair, error: RecordError) -> BadRecord:
    """The refusal with the pair as text, for the file of rejected records."""
    prompt = pair.prompt if isinstance(pair.prompt, str) else [[turn.role, turn.content] for turn in pair.prompt]
    shown = json.dumps({"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected}, ensure_ascii=False)
    return BadRecord(pair.where, error.problem, error.fix, shown[:MAX_KEPT_TEXT])


def prompt_key(pair: PreferencePair) -> str:
    """A hash of the prompt's text; a string and the same string as one user message are the same prompt."""
    messages = (Message("user", pair.prompt),) if isinstance(pair.prompt, str) else pair.prompt
    text = json.dumps([[message.role, message.content] for message in messages], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
