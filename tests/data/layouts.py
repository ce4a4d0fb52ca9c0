"""Layouts of preference files that people publish and tools write: three invented records of each, and their reading.

Every layout says the same three things. `make` writes one record from a question, a first and a second answer, and
which of them is the better one (0 or 1); the better one stands first, second and first, so that neither the place
nor a constant can give the right reading.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

QUESTIONS = (
    ("Where do swifts sleep?", "On the wing.", "In caves of ice."),
    ("What melts first, tin or iron?", "Tin.", "Iron does."),
    ("How many legs has a crab?", "Ten, claws included.", "Six."),
)
BETTER = (0, 1, 0)
"""Which answer of each record is the better one."""

Record = dict[str, Any]
Maker = Callable[[str, str, str, int], Record]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One layout: its records, what is read from them, and what is said of it.

    Attributes:
        name: the layout, and the test's name.
        make: one record from question, first answer, second answer and the index of the better one.
        says: what the decision says of the direction; empty where the fields are named chosen and rejected.
        before: the turns before the question, as (role, text).
        asked: how the layout writes the question itself, where more belongs to it.
        tools: the tools of the pair, as the JSON text has them.
        extra: further records that give no pair, such as ties.
        dropped: what is counted of those.
    """

    name: str
    make: Maker
    says: str = ""
    before: tuple[tuple[str, str], ...] = ()
    asked: str = "{}"
    tools: str | None = None
    extra: tuple[Record, ...] = ()
    dropped: tuple[tuple[str, int], ...] = ()

    @property
    def records(self) -> list[Record]:
        """The three records, then the extra ones."""
        made = []
        for (question, good, bad), better in zip(QUESTIONS, BETTER, strict=True):
            answers = (bad, good) if better else (good, bad)
            made.append(self.make(question, *answers, better))
        return [*made, *self.extra]


def named(make: Callable[[str, str, str], Record]) -> Maker:
    """A record whose fields say which answer is the better one: `make` gets the question, the better and the other."""
    return lambda q, a, b, w: make(q, (a, b)[w], (b, a)[w])


def said(*turns: tuple[str, Any]) -> list[Record]:
    """Messages with role and content."""
    return [{"role": role, "content": content} for role, content in turns]


def talk(question: str, answer: str) -> list[Record]:
    return said(("user", question), ("assistant", answer))


def parts(text: str) -> list[Record]:
    return [{"text": text}]


SYSTEM = "Answer in a few words."
TOOL = {"type": "function", "function": {"name": "count_legs", "parameters": {"type": "object", "properties": {}}}}
TOOLS = '[{"type": "function", "function": {"name": "count_legs", "parameters": {"type": "object", "properties": {}}}}]'


def vertex(question: str, a: str, b: str, w: int) -> Record:
    return {
        "systemInstruction": {"role": "system", "parts": parts(SYSTEM)},
        "contents": [{"role": "user", "parts": parts(question)}],
        "completions": [
            {"score": float(w == i), "completion": {"role": "model", "parts": parts(text)}}
            for i, text in enumerate((a, b))
        ],
    }


def nova(question: str, a: str, b: str, w: int) -> Record:
    labels = ("preferred", "non-preferred")
    answers = [{"content": parts(text), "preferenceLabel": labels[w != i]} for i, text in enumerate((a, b))]
    return {
        "schemaVersion": "bedrock-conversation-2024",
        "system": parts(SYSTEM),
        "messages": [{"role": "user", "content": parts(question)}, {"role": "assistant", "candidates": answers}],
    }


def arena(question: str, a: str, b: str, winner: str) -> Record:
    return {
        "question_id": "q",
        "model_a": "x",
        "model_b": "y",
        "winner": winner,
        "judge": "j",
        "conversation_a": talk(question, a),
        "conversation_b": talk(question, b),
        "turn": 1,
        "language": "English",
        "tstamp": 1.0,
    }


def label_studio(question: str, a: str, b: str, w: int) -> Record:
    result = {"type": "pairwise", "from_name": "pw", "to_name": "t1,t2", "value": {"selected": ("left", "right")[w]}}
    return {
        "id": 1,
        "annotations": [{"id": 1, "completed_by": 1, "result": [result], "was_cancelled": False}],
        "data": {"prompt": question, "answer1": a, "answer2": b},
        "project": 1,
    }


def argilla(question: str, a: str, b: str, votes: tuple[int, ...]) -> Record:
    values = [{"user_id": f"u{i}", "value": ("response1", "response2")[vote]} for i, vote in enumerate(votes)]
    return {
        "id": "r",
        "status": "completed",
        "fields": {"instruction": question, "response1": a, "response2": b},
        "metadata": {},
        "suggestions": {},
        "responses": {"preference": values},
    }


def shp(question: str, a: str, b: str, w: int) -> Record:
    return {
        "post_id": "p",
        "domain": "d",
        "history": question,
        "c_root_id_A": "1",
        "c_root_id_B": "2",
        "score_A": 9 - w,
        "score_B": 8 + w,
        "human_ref_A": a,
        "human_ref_B": b,
        "labels": int(w == 0),
        "seconds_difference": 10.0,
        "score_ratio": 2.0,
    }


def pku(question: str, a: str, b: str, w: int) -> Record:
    return {
        "prompt": question,
        "response_0": a,
        "response_1": b,
        "is_response_0_safe": True,
        "is_response_1_safe": True,
        "better_response_id": w,
        "safer_response_id": 1 - w,
    }


def ultrafeedback(question: str, a: str, b: str, w: int) -> Record:
    def completion(text: str, score: float) -> Record:
        return {"model": "m", "principle": "p", "custom_system_prompt": "-", "response": text, "overall_score": score}

    answers = [completion("Middling.", 4.0), completion(a, 9.0 - 8 * w), completion(b, 1.0 + 8 * w)]
    return {"source": "s", "instruction": question, "models": ["m"] * 3, "completions": answers}


def oasst(question: str, a: str, b: str, w: int) -> Record:
    def node(role: str, text: str, **more: Any) -> Record:
        return {"message_id": text, "text": text, "role": role, "lang": "en", "replies": [], **more}

    answers = [node("assistant", text, rank=int(w != i)) for i, text in enumerate((a, b))]
    return {
        "message_tree_id": "t",
        "tree_state": "ready_for_export",
        "prompt": node("prompter", question, replies=answers),
    }


READ = (
    # Named sides
    Case(name="TRL", make=named(lambda q, c, r: {"prompt": q, "chosen": c, "rejected": r})),
    Case(
        name="HH-RLHF",
        make=named(
            lambda q, c, r: {
                "chosen": f"\n\nHuman: {q}\n\nAssistant: {c}",
                "rejected": f"\n\nHuman: {q}\n\nAssistant: {r}",
            }
        ),
    ),
    Case(
        name="LLaMA-Factory sharegpt",
        make=named(
            lambda q, c, r: {
                "system": SYSTEM,
                "conversations": [{"from": "human", "value": q}],
                "chosen": {"from": "gpt", "value": c},
                "rejected": {"from": "gpt", "value": r},
            }
        ),
        before=(("system", SYSTEM),),
    ),
    Case(
        name="LLaMA-Factory alpaca",
        make=named(lambda q, c, r: {"instruction": "Say it shortly.", "input": q, "chosen": c, "rejected": r}),
        asked="Say it shortly.\n{}",
    ),
    Case(
        name="LLaMA-Factory ranked output",
        make=named(lambda q, c, r: {"instruction": q, "input": "", "output": [c, r]}),
    ),
    Case(
        name="ms-swift rejected_response",
        make=named(
            lambda q, c, r: {
                "messages": said(("system", SYSTEM), ("user", q), ("assistant", c)),
                "rejected_response": r,
            }
        ),
        before=(("system", SYSTEM),),
    ),
    Case(
        name="ms-swift rejected_response as messages",
        make=named(
            lambda q, c, r: {
                "messages": said(("user", "Hello."), ("assistant", "Hi."), ("user", q), ("assistant", c)),
                "rejected_response": said(("assistant", r)),
            }
        ),
        before=(("user", "Hello."), ("assistant", "Hi.")),
    ),
    Case(
        name="ms-swift rejected_messages",
        make=named(lambda q, c, r: {"messages": talk(q, c), "rejected_messages": talk(q, r)}),
    ),
    Case(
        name="ms-swift query",
        make=named(
            lambda q, c, r: {
                "system": SYSTEM,
                "query": q,
                "response": c,
                "rejected_response": r,
                "history": [["Hello.", "Hi."]],
            }
        ),
        before=(("system", SYSTEM), ("user", "Hello."), ("assistant", "Hi.")),
    ),
    Case(name="ms-swift output", make=named(lambda q, c, r: {"query": q, "output": c, "rejected_response": r})),
    Case(name="ms-swift answer", make=named(lambda q, c, r: {"query": q, "answer": c, "rejected_response": r})),
    Case(
        name="torchtune preference_dataset",
        make=named(lambda q, c, r: {"chosen_conversations": talk(q, c), "rejected_conversations": talk(q, r)}),
    ),
    Case(
        name="StackExchange paired",
        make=named(
            lambda q, c, r: {"qid": 1, "question": q, "date": "d", "metadata": [], "response_j": c, "response_k": r}
        ),
    ),
    Case(
        name="axolotl chat_template.default",
        make=named(
            lambda q, c, r: {
                "messages": said(("system", SYSTEM), ("user", q)),
                "chosen": said(("assistant", c))[0],
                "rejected": said(("assistant", r))[0],
            }
        ),
        before=(("system", SYSTEM),),
    ),
    Case(
        name="axolotl chatml.argilla",
        make=named(lambda q, c, r: {"system": SYSTEM, "instruction": q, "chosen_response": c, "rejected_response": r}),
        before=(("system", SYSTEM),),
    ),
    Case(name="axolotl bradley_terry", make=named(lambda q, c, r: {"input": q, "chosen": c, "rejected": r})),
    Case(name="NeMo-Aligner", make=named(lambda q, c, r: {"prompt": q, "chosen_response": c, "rejected_response": r})),
    Case(
        name="OpenAI",
        make=named(
            lambda q, c, r: {
                "input": {"messages": said(("user", q)), "tools": [TOOL], "parallel_tool_calls": True},
                "preferred_output": said(("assistant", c)),
                "non_preferred_output": said(("assistant", r)),
            }
        ),
        tools=TOOLS,
    ),
    Case(
        name="Intel orca",
        make=named(lambda q, c, r: {"system": SYSTEM, "question": q, "chosen": c, "rejected": r}),
        before=(("system", SYSTEM),),
    ),
    Case(
        name="MedicalGPT",
        make=named(
            lambda q, c, r: {
                "system": SYSTEM,
                "history": [["Hello.", "Hi."]],
                "question": q,
                "response_chosen": c,
                "response_rejected": r,
            }
        ),
        before=(("system", SYSTEM), ("user", "Hello."), ("assistant", "Hi.")),
    ),
    Case(
        name="UltraInteract",
        make=named(
            lambda q, c, r: {
                "task": "t",
                "dataset": "d",
                "trajectory": [{"from": "user", "value": q}],
                "chosen": c,
                "rejected": r,
                "id": "1",
                "parent_id": "0",
            }
        ),
    ),
    Case(
        name="reward-bench",
        make=named(
            lambda q, c, r: {
                "prompt": q,
                "chosen": c,
                "chosen_model": "x",
                "rejected": r,
                "rejected_model": "y",
                "subset": "s",
                "id": 1,
            }
        ),
    ),
    Case(
        name="OpenPipe",
        make=named(
            lambda q, c, r: {
                "prompt_messages": said(("user", q)),
                "chosen_messages": said(("assistant", c)),
                "rejected_messages": said(("assistant", r)),
            }
        ),
    ),
    # Labels
    Case(name="PKU-SafeRLHF", make=pku),
    Case(
        name="Chatbot Arena",
        make=lambda q, a, b, w: arena(q, a, b, ("model_a", "model_b")[w]),
        extra=(arena("?", "!", "-", "tie"), arena("?", "!", "-", "tie (bothbad)")),
        dropped=(("tied label", 2),),
    ),
    Case(
        name="LMSYS Kaggle",
        make=lambda q, a, b, w: {
            "id": 1,
            "model_a": "x",
            "model_b": "y",
            "prompt": f'["{q}"]',
            "response_a": f'["{a}"]',
            "response_b": f'["{b}"]',
            "winner_model_a": int(w == 0),
            "winner_model_b": int(w == 1),
            "winner_tie": 0,
        },
    ),
    Case(name="SHP", make=shp),
    Case(name="Label Studio JSON", make=label_studio),
    Case(
        name="Label Studio JSON-MIN",
        make=lambda q, a, b, w: {
            "id": 1,
            "prompt": q,
            "answer1": a,
            "answer2": b,
            "cmp": ("left", "right")[w],
            "annotator": 1,
        },
    ),
    Case(
        name="alpaca_farm",
        make=lambda q, a, b, w: {"instruction": q, "input": "", "output_1": a, "output_2": b, "preference": 1 + w},
    ),
    Case(
        name="summarize_from_feedback",
        make=lambda q, a, b, w: {
            "info": {"id": "t", "post": q, "title": "t", "subreddit": "s"},
            "summaries": [{"text": a, "policy": "p"}, {"text": b, "policy": "p"}],
            "choice": w,
            "worker": "w",
        },
    ),
    Case(
        name="HelpSteer2",
        make=lambda q, a, b, w: {
            "prompt": q,
            "response_1": a,
            "response_2": b,
            "preference_strength": (-2, 1)[w],
            "preference_statement": "s",
        },
    ),
    Case(
        name="HelpSteer3",
        make=lambda q, a, b, w: {
            "domain": "d",
            "language": "l",
            "context": said(("user", q)),
            "response1": a,
            "response2": b,
            "overall_preference": (-1, 3)[w],
        },
        extra=({"context": said(("user", "?")), "response1": "!", "response2": "-", "overall_preference": 0},),
        dropped=(("tied label", 1),),
    ),
    Case(
        name="Preference-Collection",
        make=lambda q, a, b, w: {
            "orig_instruction": q,
            "orig_response_A": a,
            "orig_response_B": b,
            "orig_preference": "AB"[w],
        },
    ),
    Case(
        name="JudgeBench",
        make=lambda q, a, b, w: {
            "pair_id": "p",
            "question": q,
            "response_A": a,
            "response_B": b,
            "label": ("A>B", "B>A")[w],
        },
    ),
    Case(name="Argilla", make=lambda q, a, b, w: argilla(q, a, b, (w, w))),
    Case(name="Amazon Nova", make=nova, before=(("system", SYSTEM),)),
    # Scores and ranks
    Case(name="UltraFeedback", make=ultrafeedback),
    Case(
        name="webgpt",
        make=lambda q, a, b, w: {
            "question": {"dataset": "d", "id": "1", "full_text": q},
            "quotes_0": {"title": [], "extract": []},
            "answer_0": a,
            "score_0": 0.5 - w,
            "quotes_1": {"title": [], "extract": []},
            "answer_1": b,
            "score_1": w - 0.5,
        },
    ),
    Case(
        name="distilabel",
        make=lambda q, a, b, w: {
            "instruction": q,
            "generations": [a, "Middling.", b],
            "model_names": ["x", "y", "z"],
            "ratings": [5 - 4 * w, 3, 1 + 4 * w],
            "rationales": ["-"] * 3,
        },
    ),
    Case(
        name="distilabel 0",
        make=lambda q, a, b, w: {
            "input": q,
            "generation_model": ["x", "y"],
            "generations": [a, b],
            "rating": [5.0 - 4 * w, 1.0 + 4 * w],
            "rationale": ["-"] * 2,
        },
    ),
    Case(
        name="StackExchange answers",
        make=lambda q, a, b, w: {
            "qid": 1,
            "question": q,
            "answers": [
                {"answer_id": 1, "author": "x", "pm_score": 7 - 6 * w, "selected": False, "text": a},
                {"answer_id": 2, "author": "y", "pm_score": 1 + 6 * w, "selected": False, "text": b},
            ],
        },
    ),
    Case(
        name="all_generated_responses",
        make=lambda q, a, b, w: {
            "prompt": q,
            "all_generated_responses": ["Middling.", a, b],
            "all_rm_scores": [0.5, 0.9 - 0.8 * w, 0.1 + 0.8 * w],
        },
    ),
    Case(
        name="Nectar",
        make=lambda q, a, b, w: {
            "prompt": f"\n\nHuman: {q}\n\nAssistant: ",
            "answers": [
                {"answer": a, "model": "x", "rank": 1 + 2 * w},
                {"answer": "Middling.", "model": "y", "rank": 2},
                {"answer": b, "model": "z", "rank": 3 - 2 * w},
            ],
            "turns": 1,
            "num_responses": 3,
        },
    ),
    Case(
        name="NeMo-RL",
        make=lambda q, a, b, w: {
            "context": said(("user", q)),
            "completions": [
                {"rank": w, "completion": said(("assistant", a))},
                {"rank": 1 - w, "completion": said(("assistant", b))},
            ],
        },
    ),
    Case(name="Vertex AI", make=vertex, before=(("system", SYSTEM),)),
    Case(name="OASST tree", make=oasst),
)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Records that are no pairs, or whose direction no field tells: what is said, and each piece of the fix."""

    name: str
    records: tuple[Record, ...]
    says: tuple[str, ...]


def twice(make: Callable[[int], Record]) -> tuple[Record, ...]:
    """Two records that differ in what `make` does with 0 and 1."""
    return (make(0), make(1))


Q, GOOD, BAD = QUESTIONS[0]

REFUSED = (
    Refusal(
        name="HelpSteer ratings",
        records=twice(lambda i: {"prompt": Q, "response": (GOOD, BAD)[i], "helpfulness": 4 - i, "correctness": 4 - i}),
        says=("one response a record",),
    ),
    Refusal(
        name="OASST messages",
        records=twice(
            lambda i: {"message_id": f"m{i}", "parent_id": "m", "text": (GOOD, BAD)[i], "role": "assistant", "rank": i}
        ),
        says=("one message a record", "trees"),
    ),
    Refusal(
        name="KTO",
        records=twice(lambda i: {"prompt": Q, "completion": (GOOD, BAD)[i], "label": i == 0}),
        says=("unpaired feedback",),
    ),
    Refusal(
        name="TRL stepwise supervision",
        records=twice(lambda i: {"prompt": Q, "completions": [GOOD, BAD], "labels": [i == 0, i == 1]}),
        says=("stepwise supervision",),
    ),
    Refusal(
        name="two fields that may be the prompt",
        records=({"instruction": "Be short.", "question": Q, "chosen_response": GOOD, "rejected_response": BAD},),
        says=("instruction, question",),
    ),
    Refusal(
        name="Argilla, annotators who do not agree",
        records=(argilla(Q, GOOD, BAD, (0, 1)),),
        says=("responses.preference: the annotators do not agree (response1, response2)",),
    ),
    Refusal(
        name="Guanaco transcripts",
        records=(
            {"chosen": f"### Human: {Q}### Assistant: {GOOD}", "rejected": f"### Human: {Q}### Assistant: {BAD}"},
        ),
        says=("not whole dialogues",),
    ),
    Refusal(
        name="images",
        records=(
            {
                "conversations": [{"from": "human", "value": "<image>What is on it?"}],
                "chosen": {"from": "gpt", "value": GOOD},
                "rejected": {"from": "gpt", "value": BAD},
                "images": ["a.jpg"],
            },
        ),
        says=("images", "only text can be trained on"),
    ),
    Refusal(
        name="scores of which the lower may be the better",
        records=twice(
            lambda i: {"prompt": Q, "response_a": GOOD, "response_b": BAD, "toxicity_a": 0.1 + i, "toxicity_b": 0.9}
        ),
        says=("toxicity_a", "scores: [toxicity_a, toxicity_b]", "best: lowest"),
    ),
    Refusal(
        name="ranks beside two responses",
        records=twice(lambda i: {"prompt": Q, "response_a": GOOD, "response_b": BAD, "rank_a": 1 + i, "rank_b": 2 - i}),
        says=("rank: [rank_a, rank_b]", "best: lowest"),
    ),
    Refusal(
        name="an index that may count from 0 or from 1",
        records=twice(lambda i: {"prompt": Q, "response_a": GOOD, "response_b": BAD, "label": i}),
        says=("label", "first: [0]", "first: [1]"),
    ),
    Refusal(
        name="two responses and nothing that tells the better one",
        records=({"prompt": Q, "output_1": GOOD, "output_2": BAD},),
        says=("output_1 and output_2",),
    ),
)
