"""What holds for every pair of a call, what became of the pairs, and which length limits are too low for them."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from simpo_cli.data.pair import EncodedPair, PreferencePair, prompt_messages
from simpo_cli.data.raw import MAX_KEPT_TEXT, BadRecord, RecordError
from simpo_cli.data.tokenizer import TextTokenizer, TurnMarks
from simpo_cli.recipe.schema import DataRecipe

MANY = 0.05
"""Share of pairs above which a cut is worth a warning; the limit that is named leaves no more than this share cut."""
LIMITS = {"max_prompt_length": "their prompt", "max_length": "an answer"}


def cut_warnings(needed: Mapping[str, Counter[int]], data: DataRecipe, longest: int | None = None) -> dict[str, str]:
    """A sentence for each limit that is too low for more than a twentieth of the pairs; empty where none is.

    Args:
        needed: of `EncodedPairs`.
        data: the limits.
        longest: most tokens that the model takes; None where that is not known.
    """
    wanted = {name: limit for name in LIMITS if (limit := _limit(needed[name]))}
    settings = dict(wanted)
    if "max_prompt_length" in wanted:  # longer prompts take room that the answers then lack
        more = wanted["max_prompt_length"] - data.max_prompt_length
        settings["max_length"] = more + wanted.get("max_length", data.max_length)
    fix = " ".join(f"data.{name}={value}" for name, value in settings.items()) + " keeps 95 % whole"
    if longest is not None and settings.get("max_length", 0) > longest:
        fix = fix.replace("keeps", "would keep") + f", and the model takes {longest:,} tokens"
    how = "cut at" if data.overlong == "truncate" else "over"
    shares = {name: 100 * (1 - needed[name][0] / needed[name].total()) for name in wanted}
    return {
        name: f"{share:.0f} % of pairs have {LIMITS[name]} {how} data.{name}={getattr(data, name)}: {fix}"
        for name, share in shares.items()
    }


def _limit(needed: Counter[int]) -> int:
    """The smallest limit that leaves few pairs cut; 0 where few are."""
    above, most = 0, MANY * needed.total()
    for tokens in sorted(needed, reverse=True):
        above += needed[tokens]
        if above > most:
            return tokens
    return 0


SKIP = "Set data.on_bad_record: skip to leave such records out and count them."


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
        needed: what the pairs would need to stay whole, of those that are not refused: `max_prompt_length` and
            `max_length`, each with the number of pairs by tokens, rounded up to 64; 0 where they fit.
        places: where the pairs of each reason in `dropped` and each property in `counts` come from.
    """

    pairs: list[EncodedPair] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    bad: list[BadRecord] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    needed: dict[str, Counter[int]] = field(default_factory=lambda: {name: Counter() for name in LIMITS})
    places: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add_counts(self, other: "EncodedPairs") -> None:
        """Count what became of further pairs, without the pairs and their places."""
        self.dropped += other.dropped
        self.bad += other.bad
        self.counts += other.counts
        for limit, counts in other.needed.items():
            self.needed[limit] += counts

    def refuse(self, pair: PreferencePair, error: RecordError) -> None:
        """Leave out one pair that is refused; its texts go into the file of rejected records."""
        prompt = pair.prompt if isinstance(pair.prompt, str) else [[turn.role, turn.content] for turn in pair.prompt]
        texts = {"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected}
        kept = json.dumps(texts, ensure_ascii=False)[:MAX_KEPT_TEXT]
        self.bad.append(BadRecord(pair.where, error.problem, error.fix, kept))

    def need(self, limit: str, tokens: int, most: int) -> None:
        """One more pair needs so many tokens under a limit that allows for `most`."""
        self.needed[limit][0 if tokens <= most else tokens + -tokens % 64] += 1

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
        return cls(data, tokenizer, marks, tokenizer.end_ids_under(data.chat_template_kwargs))

    @property
    def plain(self) -> bool:
        """Whether texts are used as they are."""
        return not self.tokenizer.has_template or self.data.rendered


def prompt_key(pair: PreferencePair) -> str:
    """A hash of the prompt's text; a string and the same string as one user message are the same prompt."""
    text = json.dumps([[turn.role, turn.content] for turn in prompt_messages(pair.prompt)], ensure_ascii=False)
    return _digest(text)


def pair_key(pair: PreferencePair) -> str:
    """32 hex digits that tell a pair by its texts: 16 of prompt and chosen, then 16 of prompt and rejected.

    So a pair whose labels are swapped has the same halves in the other order.
    """
    prompt = prompt_key(pair)
    return "".join(_digest(f"{prompt} {response}") for response in (pair.chosen, pair.rejected))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
