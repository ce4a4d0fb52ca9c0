"""Prompts without responses to tokens, for generation: the ids that the same prompt has in a pair."""

from simpo_cli.data.encode.cutting import whole_prompt
from simpo_cli.data.encode.rendering import render_prompt
from simpo_cli.data.encode.rules import Rules
from simpo_cli.data.pair import Message
from simpo_cli.data.raw import RecordError
from simpo_cli.data.tokenizer import EncodingError, TemplateError, TextTokenizer
from simpo_cli.recipe.schema import DataRecipe

_MEND = "Mend the prompt, or leave it out."


def encode_prompt(prompt: tuple[Message, ...] | str, tokenizer: TextTokenizer, data: DataRecipe) -> list[int]:
    """The ids of a prompt with the header of the answer, as training sees them, not cut.

    Args:
        prompt: a conversation that ends before the answer, or plain text.
        tokenizer: the model's tokenizer with the template that the recipe chose.
        data: the template's variables.

    Raises:
        RecordError: the template or the tokenizer refuses the prompt, or nothing is left of it.
    """
    rules = Rules.of(data, tokenizer)
    try:
        text, way = render_prompt(prompt, rules)
        ids = tokenizer.encode_batch([text], way)[0]
    except TemplateError as error:
        raise RecordError(f"the chat template refuses the prompt: {error}", _MEND) from error
    except EncodingError as error:
        raise RecordError(f"the text {error}", _MEND) from error
    ids, _ = whole_prompt(ids, rules)
    if not ids:
        raise RecordError("the prompt has no tokens", _MEND)
    return ids
