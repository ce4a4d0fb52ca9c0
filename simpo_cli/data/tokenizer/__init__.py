"""A model's tokenizer and chat template, read from its files without transformers, so that `simpo stats` stays light.

The ids are those of the model's `tokenizer.json` together with the tokens that `tokenizer_config.json` adds, which is
what transformers and inference servers read too; the template is the model's own, rendered by the same rules (sandboxed
Jinja, blocks trimmed). One difference is known: for the class of Llama 2 transformers 5 rebuilds the tokenizer, and
drops the space that some of its tokenizer.json files put behind a special token.

Two things go beyond a plain call of the tokenizer: special tokens that a message spells out stay text, and what the
template writes around turns is learned by rendering a few made-up ones.
"""

from simpo_cli.data.tokenizer.files import (
    TOKENIZER_FILES,
    from_transformers,
    load_tokenizer,
    read_template,
    require_model_name,
    template_of,
    tokenizer_folder,
)
from simpo_cli.data.tokenizer.template import EncodingError, TemplateError, TurnMarks, compile_template
from simpo_cli.data.tokenizer.text_tokenizer import GIVEN_BY_US, SpecialTokenMode, TextTokenizer

__all__ = [
    "GIVEN_BY_US",
    "TOKENIZER_FILES",
    "EncodingError",
    "SpecialTokenMode",
    "TemplateError",
    "TextTokenizer",
    "TurnMarks",
    "compile_template",
    "from_transformers",
    "load_tokenizer",
    "read_template",
    "require_model_name",
    "template_of",
    "tokenizer_folder",
]
