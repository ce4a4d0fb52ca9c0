"""`simpo chat`: a conversation with a model at the terminal, and preferences between its answers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simpo_cli.cli.options import TrustRemoteCode, importing, require_here, shows_work
from simpo_cli.errors import UserError
from simpo_cli.model.remote_code import trusting

if TYPE_CHECKING:
    from simpo_cli.evaluate.chat import Chat

_PREFERENCES = Path("preferences.jsonl")
_MOST_TOKENS = 512


def chat(
    name: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="A run, a model, a checkpoint, an adapter or builtin:guide.")
    ],
    beside: Annotated[
        str | None,
        typer.Option(metavar="base|MODEL", help="A second model that answers too; base: what the first started from."),
    ] = None,
    pairs: Annotated[
        Path, typer.Option("--pairs", metavar="FILE", help="Where /better appends preferences, as JSON lines.")
    ] = _PREFERENCES,
    system: Annotated[str, typer.Option(metavar="TEXT", help="The system message.", show_default=False)] = "",
    max_new_tokens: Annotated[int, typer.Option(metavar="N", help="Most tokens of an answer.")] = _MOST_TOKENS,
    temperature: Annotated[
        float, typer.Option(metavar="T", help="0 is greedy decoding; above it answers are sampled.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the sampled answers.")] = 0,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Talk to a model, alone or beside the model that it started from, and note which answer is better."""
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is {max_new_tokens}, must be at least 1.", f"{_MOST_TOKENS} is usual.")
    if not 0 <= temperature <= 10:
        raise UserError(f"--temperature is {temperature:g}, must be 0 to 10.", "0 is greedy decoding; 0.7 is usual.")
    if pairs.suffix not in (".jsonl", ".ndjson") or (pairs.exists() and not pairs.is_file()):
        raise UserError(f"--pairs {pairs} is no file of JSON lines.", "Let it end in .jsonl.")
    require_here([name, *([beside] if beside not in (None, "base") else [])])
    with trusting(trust_remote_code):
        opened = _opened(name, beside, max_tokens=max_new_tokens, temperature=temperature, seed=seed)
        opened.start_over(system)
        from simpo_cli.cli.chat_loop import ChatLoop

        ChatLoop(opened, pairs).run()


@shows_work
def _opened(name: str, beside: str | None, **settings: Any) -> "Chat":
    with importing():
        from simpo_cli.evaluate.chat import Chat, Settings, open_speakers
    return Chat(open_speakers(name, beside), Settings(**settings))
