"""Text and preference pairs of `builtin:guide`, drawn from the tables in topics.yaml.

- A *topic* is one thing that people want to do. Its right answer has a short form, goal and three steps, and a long
  form, the same with what then happens.
- Topics come as *siblings* about the same objects: "invite a teammate", "remove a teammate". The rejected answer to a
  question is its sibling's, and each answer is rejected for the sibling as often as it is chosen for its own topic, so
  no answer looks better than another; the question decides.
- A *question* is a frame around a phrase ("How do I ...?"), and a phrase is a pattern around an object. Some frames,
  patterns and objects are held out: no training pair has any of them, every held-out pair has a held-out frame and a
  held-out pattern.

The start model first reads right answers, and so learns what every question means. Then, for a short while, it reads
answers of which each part comes from the right answer or from the sibling's by chance, and unlearns to prefer either.
Preference tuning has to make the right one the habit again.

So the world can check any answer to any of its questions: `check_answer` says whether it is wholly right, and how many
of its parts are. Training questions that no pair asks are `free_prompts`, for a model to answer by itself.

The trap is length. In training pairs the better answer is mostly the longer one, in held-out pairs mostly the shorter.
A long answer is the short one and a sentence more, as hard to predict per token as what stands before it: otherwise a
model could win the training pairs by becoming unsure of everything, which a mean over more and easier tokens would
hide.
"""

import random
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import yaml
from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

Form = Literal["short", "long"]
Split = Literal["train", "eval"]
Turns = list[dict[str, str]]  # role and content of each turn
Record = dict[str, Turns]  # prompt, chosen, rejected

SEED = 20240523
"""Of everything that ships."""
PAIRS_PER_TOPIC: dict[Split, dict[tuple[Form, Form], int]] = {  # (form of the chosen, form of the rejected): pairs
    "train": {("long", "short"): 32, ("short", "long"): 8},
    "eval": {("long", "short"): 2, ("short", "long"): 5, ("short", "short"): 1, ("long", "long"): 1},
}
SYSTEM_SHARE, GREETING_SHARE = 0.12, 0.08  # of all prompts
SHORT_SHARE = 0.64  # of the start model's answers, so that it finds both forms about equally likely per token


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One thing that people want to do.

    Attributes:
        goal: what the guide calls it.
        patterns: how people say it, `{o}` standing for the object.
        held_out_patterns: more ways, kept out of every training pair.
        steps: what to do. The sibling has other steps with as many words, one by one.
        outcome: what then happens; the sibling has another with as many words.
    """

    goal: str
    patterns: tuple[str, ...]
    held_out_patterns: tuple[str, ...]
    steps: tuple[str, str, str]
    outcome: str


@dataclass(frozen=True, kw_only=True)
class Siblings:
    """Two topics about the same objects; the answer to either is the wrong answer to the other.

    Attributes:
        objects: what the questions are about; the first is the plainest.
        held_out_objects: more words for it, kept out of every training pair.
    """

    objects: tuple[str, ...]
    held_out_objects: tuple[str, ...]
    first: Topic
    second: Topic


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What topics.yaml holds. Greetings are of the user, each with the guide's reply."""

    frames: tuple[str, ...]
    held_out_frames: tuple[str, ...]
    system_turns: tuple[str, ...]
    greetings: tuple[tuple[str, str], ...]
    siblings: tuple[Siblings, ...]


TABLES = TypeAdapter(Tables).validate_python(yaml.safe_load(Path(__file__).with_name("topics.yaml").read_text("utf-8")))


def right_answer(topic: Topic, form: Form) -> str:
    """The answer to a question about the topic."""
    return _answer([topic] * 5, form)


def questions(topic: Topic, siblings: Siblings, split: Split) -> list[str]:
    """All questions about the topic that the pairs of a split may ask.

    Training pairs have taught patterns and taught objects; held-out ones have held-out frames and patterns, which keep
    their wording new whatever the object, and all objects.
    """
    frames = TABLES.frames if split == "train" else TABLES.held_out_frames
    patterns = topic.patterns if split == "train" else topic.held_out_patterns
    objects = siblings.objects if split == "train" else siblings.objects + siblings.held_out_objects
    return [_question(frame, pattern, o) for frame in frames for pattern in patterns for o in objects]


def preference_pairs(split: Split, seed: int) -> list[Record]:
    """The pairs of a split, in random order; every question occurs once.

    Each topic has the same number of pairs of each combination of forms. So within a combination every answer is as
    often chosen for its own topic as it is rejected for the sibling: length says something, the answer alone nothing.
    """
    rng = random.Random(f"{split} {seed}")
    records: list[Record] = []
    for number, siblings in enumerate(TABLES.siblings):
        for topic, sibling in _both_ways(siblings):
            forms = [pair for pair, count in PAIRS_PER_TOPIC[split].items() for _ in range(count)]
            if split == "eval":  # one more pair of equal forms, the same form for both siblings
                forms.append(("short", "short") if number % 2 else ("long", "long"))
            asked = rng.sample(questions(topic, siblings, split), len(forms))
            for question, (chosen, rejected) in zip(asked, forms, strict=True):
                records.append(
                    {
                        "prompt": _prompt(rng, question),
                        "chosen": [_turn("assistant", right_answer(topic, chosen))],
                        "rejected": [_turn("assistant", right_answer(sibling, rejected))],
                    }
                )
    rng.shuffle(records)
    return records


def conversations(seed: int, *, wrong_share: float) -> Iterator[Turns]:
    """What the start model reads, without end.

    Never a held-out frame around a held-out pattern: the questions of held-out pairs are new to the start model too.

    Args:
        seed: of every choice.
        wrong_share: the share of parts of answers that come from the sibling's.
    """
    rng = random.Random(f"conversations {seed} {wrong_share}")
    while True:
        siblings = rng.choice(TABLES.siblings)
        topic, sibling = rng.choice(_both_ways(siblings))
        taught, held_out = (TABLES.frames, topic.patterns), (TABLES.held_out_frames, topic.patterns)
        frames, patterns = rng.choice((taught, held_out, (TABLES.frames, topic.held_out_patterns)))
        objects = siblings.objects + siblings.held_out_objects
        question = _question(rng.choice(frames), rng.choice(patterns), rng.choice(objects))
        form: Form = "short" if rng.random() < SHORT_SHARE else "long"
        parts = [sibling if rng.random() < wrong_share else topic for _ in range(5)]
        yield [*_prompt(rng, question), _turn("assistant", _answer(parts, form))]


def free_prompts(seed: int = SEED) -> list[Turns]:
    """Prompts with the training questions that no training pair of this seed asks, in random order."""
    asked = {record["prompt"][-1]["content"] for record in preference_pairs("train", seed)}
    rng = random.Random(f"free {seed}")
    left = [
        question
        for siblings in TABLES.siblings
        for topic in (siblings.first, siblings.second)
        for question in questions(topic, siblings, "train")
        if question not in asked
    ]
    rng.shuffle(left)
    return [_prompt(rng, question) for question in left]


class Check(NamedTuple):
    """What the world says of an answer.

    Attributes:
        exact: whether it is the right answer, in either form, and nothing else.
        parts: share of its parts that are right, 0 to 1; 1 only where the answer is exact. The parts are goal, three
            steps, and, where the answer goes on, what it goes on with.
    """

    exact: bool
    parts: float


def check_answer(question: str, answer: str) -> Check | None:
    """Check an answer against the right one; None where the world does not know the question."""
    topic = topic_of(question)
    if topic is None:
        return None
    if answer in (right_answer(topic, "short"), right_answer(topic, "long")):
        return Check(True, 1.0)
    first, second, third = topic.steps
    place, num_right = 0, 0
    for part in (f"To {topic.goal}", f", {first}", f", {second}", f" and {third}."):
        found = answer.find(part, place)
        if found >= 0:
            place, num_right = found + len(part), num_right + 1
    _, _, rest = answer.partition(". ")
    num_parts = 5 if rest else 4
    num_right += rest == topic.outcome
    return Check(False, min(num_right, num_parts - 1) / num_parts)


def topic_of(question: str) -> Topic | None:
    """What a question asks; None where the world does not know it."""
    return _topics().get(question)


@cache
def _topics() -> dict[str, Topic]:
    """The topic of every question that can be asked."""
    return {
        _question(frame, pattern, o): topic
        for siblings in TABLES.siblings
        for topic in (siblings.first, siblings.second)
        for frame in TABLES.frames + TABLES.held_out_frames
        for pattern in topic.patterns + topic.held_out_patterns
        for o in siblings.objects + siblings.held_out_objects
    }


def _answer(parts: Sequence[Topic], form: Form) -> str:
    """An answer whose goal, three steps and outcome come from these topics."""
    goal, first, second, third, outcome = parts
    text = f"To {goal.goal}, {first.steps[0]}, {second.steps[1]} and {third.steps[2]}."
    return text if form == "short" else f"{text} {outcome.outcome}"


def _both_ways(siblings: Siblings) -> tuple[tuple[Topic, Topic], tuple[Topic, Topic]]:
    return (siblings.first, siblings.second), (siblings.second, siblings.first)


def _question(frame: str, pattern: str, o: str) -> str:
    return frame.format(p=pattern.format(o=o))


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _prompt(rng: random.Random, question: str) -> Turns:
    """A question, and before it mostly nothing, sometimes a system turn or a greeting."""
    draw = rng.random()
    opening: Turns = []
    if draw < SYSTEM_SHARE:
        opening = [_turn("system", rng.choice(TABLES.system_turns))]
    elif draw < SYSTEM_SHARE + GREETING_SHARE:
        hello, reply = rng.choice(TABLES.greetings)
        opening = [_turn("user", hello), _turn("assistant", reply)]
    return [*opening, _turn("user", question)]
