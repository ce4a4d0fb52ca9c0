"""Layouts of files that are known by their own fields: a table in the vocabulary of `columns` and `labels`.

To add one, write a `Known` with the fields that only such files have together, and say the rest as a person would say
it in a recipe; PKU-SafeRLHF in the table is an example.

`columns` may leave out what the usual names say (`prompt`, `system`, `tools`). `answers` is two fields, or one field
with a list of texts or objects, `completions.response` where the text stands in each object; `scores` and `rank` are
fields in the same order, or one field with a list, or `completions.overall_score` in each object; `rank` and scores
whose lowest is best say `best: lowest`. `label` is a field, or the list of 0/1 fields of which one is set (the values
are then their names). `labels` gives `first`, `second` and `tie` as lists of values, or `{below: 0}`, `{above: 0}`.
`direction="first"` is for layouts in which the first of `answers` is the better one. Names reach inside with dots, also
into lists (`annotations.0.result.0.value.selected`). What a pattern of fields cannot say gets a `rewrite` of
rewrites.py: a function from a record to the records that the columns are about (several for a tree). The first entry
whose `needs` most records have is taken, and `lacks` names fields that tell a near relative.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from simpo_cli.data.formats import rewrites
from simpo_cli.data.formats.layout import Rewrite
from simpo_cli.data.formats.names import MISSING, Record, Records, get

NEEDS = "SimPO needs a chosen and a rejected response to each prompt."


@dataclass(frozen=True, kw_only=True)
class Known:
    """A layout that is recognised by the fields of its records: those that each has (`needs`), and none has (`lacks`).

    `said` tells what says which response is preferred, as the end of the sentence that is printed, where the columns do
    not say it well enough; `refused` and `fix`, why such records are no pairs, and what to do instead.
    """

    name: str
    needs: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    columns: Mapping[str, str | list[str]] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)
    direction: Literal["first"] | None = None
    said: str = ""
    rewrite: Rewrite | None = None
    refused: str = ""
    fix: str = NEEDS

    def fits(self, record: Record) -> bool:
        """Whether a record has the fields of this layout."""
        return all(get(record, name) is not MISSING for name in self.needs) and all(
            get(record, name) is MISSING for name in self.lacks
        )


# The layouts

_ORDERING = (
    *("label", "labels", "preference", "choice", "winner", "best", "better", "chosen", "rejected"),
    *("score", "scores", "rating", "ratings", "reward", "rewards", "rank", "ranks", "ranking"),
)
"""Fields that would say another order than the place in a list does."""

KNOWN: tuple[Known, ...] = (
    # the sides have names
    Known(
        name="ms-swift",
        needs=("messages", "rejected_response"),
        lacks=("chosen", "rejected_messages"),
        rewrite=rewrites.beside_messages,
        said="messages over rejected_response",
    ),
    Known(
        name="ms-swift",
        needs=("messages", "rejected_messages"),
        lacks=("chosen", "chosen_messages"),
        columns={"chosen": "messages", "rejected": "rejected_messages"},
    ),
    *(
        Known(
            name="ms-swift",
            needs=(answer, "rejected_response"),
            lacks=("messages", "chosen", "chosen_response"),
            columns={"chosen": answer, "rejected": "rejected_response"},
        )
        for answer in ("response", "output", "answer")
    ),
    Known(
        name="LLaMA-Factory, ranked output",
        needs=("instruction", "output.1"),
        lacks=("output.2", *_ORDERING),
        columns={"answers": "output"},
        direction="first",
        said="the first output over the second",
    ),
    Known(
        name="StackExchange pairs",
        needs=("question", "response_j", "response_k"),
        columns={"prompt": "question", "chosen": "response_j", "rejected": "response_k"},
    ),
    Known(
        name="UltraInteract",
        needs=("trajectory", "chosen", "rejected"),
        lacks=("prompt",),
        columns={"prompt": "trajectory"},
    ),
    Known(
        name="OpenPipe",
        needs=("prompt_messages", "chosen_messages", "rejected_messages"),
        columns={"prompt": "prompt_messages", "chosen": "chosen_messages", "rejected": "rejected_messages"},
    ),
    Known(
        name="Amazon Nova",
        needs=("messages.-1.candidates",),
        rewrite=rewrites.nova,
        said="the candidate with the preferenceLabel preferred over the other",
    ),
    # no pairs
    Known(
        name="OASST messages",
        needs=("message_id", "parent_id", "text", "role"),
        refused="holds one message a record (OASST messages): the answers to a prompt stand in several records.",
        fix="Use the file of whole trees, whose records hold a prompt and its ranked replies.",
    ),
    Known(
        name="HelpSteer ratings",
        needs=("prompt", "response", "helpfulness"),
        lacks=("chosen", "rejected", "rejected_response"),
        refused="holds one response a record, with ratings (HelpSteer).",
        fix="Join the responses to each prompt into records with prompt, chosen and rejected.",
    ),
    # a label
    Known(
        name="PKU-SafeRLHF",
        needs=("response_0", "response_1", "better_response_id"),
        columns={"answers": ["response_0", "response_1"], "label": "better_response_id"},
        labels={"first": [0], "second": [1]},
        said="better_response_id is the number of the better response",
    ),
    Known(
        name="Chatbot Arena",
        needs=("conversation_a", "conversation_b", "model_a", "model_b", "winner"),
        columns={"answers": ["conversation_a", "conversation_b"], "label": "winner"},
        labels={
            "first": ["model_a"],
            "second": ["model_b"],
            "tie": ["tie", "tie (bothbad)", "tie (both bad)", "both_bad", "bothbad"],
        },
    ),
    Known(
        name="Chatbot Arena, table",
        needs=("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
        columns={"answers": ["response_a", "response_b"], "label": ["winner_model_a", "winner_model_b", "winner_tie"]},
        labels={"first": ["winner_model_a"], "second": ["winner_model_b"], "tie": ["winner_tie"]},
        rewrite=rewrites.lists_as_text,
        said="the one of winner_model_a, winner_model_b and winner_tie that is 1 says which is preferred",
    ),
    Known(
        name="Stanford SHP",
        needs=("history", "human_ref_A", "human_ref_B", "labels"),
        columns={"prompt": "history", "answers": ["human_ref_A", "human_ref_B"], "label": "labels"},
        labels={"first": [1], "second": [0]},
        said="labels = 1 prefers human_ref_A, 0 human_ref_B",
    ),
    Known(
        name="HelpSteer2 preference",
        needs=("prompt", "response_1", "response_2", "preference_strength"),
        columns={"answers": ["response_1", "response_2"], "label": "preference_strength"},
        labels={"first": [-3, -2, -1], "second": [1, 2, 3], "tie": [0]},
        said="a negative preference_strength prefers response_1, a positive one response_2",
    ),
    Known(
        name="HelpSteer3 preference",
        needs=("context", "response1", "response2", "overall_preference"),
        columns={"prompt": "context", "answers": ["response1", "response2"], "label": "overall_preference"},
        labels={"first": [-3, -2, -1], "second": [1, 2, 3], "tie": [0]},
        said="a negative overall_preference prefers response1, a positive one response2",
    ),
    Known(
        name="AlpacaFarm",
        needs=("instruction", "output_1", "output_2", "preference"),
        columns={"answers": ["output_1", "output_2"], "label": "preference"},
        labels={"first": [1], "second": [2], "tie": [1.5]},
        said="preference is the number of the better output",
    ),
    Known(
        name="OpenAI summaries",
        needs=("info.post", "summaries.1.text", "choice"),
        columns={"prompt": "info.post", "answers": "summaries.text", "label": "choice"},
        labels={"first": [0], "second": [1]},
        said="choice is the number of the better summary, counted from 0",
    ),
    Known(
        name="Preference Collection",
        needs=("orig_instruction", "orig_response_A", "orig_response_B", "orig_preference"),
        columns={
            "prompt": "orig_instruction",
            "answers": ["orig_response_A", "orig_response_B"],
            "label": "orig_preference",
        },
        labels={"first": ["A"], "second": ["B"]},
        said="orig_preference is the letter of the better response",
    ),
    Known(
        name="JudgeBench",
        needs=("pair_id", "question", "response_A", "response_B", "label"),
        columns={"prompt": "question", "answers": ["response_A", "response_B"], "label": "label"},
        labels={"first": ["A>B"], "second": ["B>A"], "tie": ["A=B"]},
    ),
    Known(name="Label Studio", needs=("data", "annotations.0.result"), rewrite=rewrites.label_studio),
    Known(
        name="Label Studio, short",
        needs=("prompt", "answer1", "answer2", "cmp"),
        columns={"answers": ["answer1", "answer2"], "label": "cmp"},
        labels={"first": ["left"], "second": ["right"]},
    ),
    Known(name="Argilla", needs=("fields", "responses", "status"), rewrite=rewrites.argilla),
    # scores and ranks
    Known(
        name="UltraFeedback",
        needs=("instruction", "completions.1.response", "completions.1.overall_score"),
        columns={"prompt": "instruction", "answers": "completions.response", "scores": "completions.overall_score"},
    ),
    Known(
        name="WebGPT comparisons",
        needs=("question.full_text", "answer_0", "answer_1", "score_0", "score_1"),
        columns={"prompt": "question.full_text", "answers": ["answer_0", "answer_1"], "scores": ["score_0", "score_1"]},
    ),
    Known(
        name="StackExchange preferences",
        needs=("question", "answers.0.text", "answers.0.pm_score"),
        columns={"prompt": "question", "answers": "answers.text", "scores": "answers.pm_score"},
    ),
    Known(
        name="Nectar",
        needs=("prompt", "answers.0.answer", "answers.0.rank"),
        columns={"answers": "answers.answer", "rank": "answers.rank", "best": "lowest"},
    ),
    Known(
        name="NeMo-RL",
        needs=("context", "completions.0.completion", "completions.0.rank"),
        columns={
            "prompt": "context",
            "answers": "completions.completion",
            "rank": "completions.rank",
            "best": "lowest",
        },
    ),
    Known(
        name="Vertex AI",
        needs=("contents.0.parts", "completions.0.completion", "completions.0.score"),
        columns={"prompt": "prompt", "answers": "completions.text", "scores": "completions.score"},
        rewrite=rewrites.vertex,
    ),
    Known(
        name="OASST trees",
        needs=("prompt.text", "prompt.replies"),
        rewrite=rewrites.oasst,
        columns={"answers": "replies", "rank": "ranks", "best": "lowest"},
    ),
)


def known_layout(records: Records) -> Known | None:
    """The layout whose fields most of the records have, or None."""
    return next((one for one in KNOWN if sum(one.fits(record) for record in records) * 2 > len(records)), None)
