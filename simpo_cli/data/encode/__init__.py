"""Pairs to tokens: which tokens are the prompt, which are scored, and what is cut.

The prompt is the conversation as the template writes it, with its generation prompt. The response is what the full
rendering holds behind that, up to and including the token that ends the turn by tokenizer or generation config, or the
first one behind the answer where they name none of these. Prompt and whole are tokenized as they are when a model is
used; where the whole does not begin with the prompt's own tokens, because a token would straddle the boundary, prompt
and response are tokenized apart, as they are when the model generates, and the pair is counted.

Messages go to the template whole: calls, their ids, names, reasoning and whatever else a record holds. What the
template does not write of them is counted; a call, or a turn, that it leaves out refuses the record.

Templates that do more than append are met by these rules:
- One that ignores `add_generation_prompt`: the header that it writes in front of an answer belongs to the prompt.
- One that changes the answer, as those do that drop its reasoning: the answer stands behind the prompt as it is in the
  record, followed by what the template writes behind an answer. Such pairs are counted.
- One whose generation prompt already opens the answer (`<think>`): the opening belongs to the prompt. Where the whole
  conversation's rendering lacks it, the answer stands behind the prompt as in the record, without the opening that the
  prompt holds; an answer that does not begin with it is refused.
- One whose generation prompt opens a thought and closes it (Gemma 4): the thought belongs to the prompt, and the answer
  stands behind it as the whole rendering has it. Such pairs are counted; an answer that thinks itself is refused.
- One that writes earlier turns otherwise once an answer follows, as Qwen3 and Harmony do where the assistant speaks
  twice in a row, and Mistral with its system text: the prompt is what the model sees when it generates, and the
  response what the whole rendering holds behind its last answer header. Such pairs are counted.
- One that leaves the last answer without an end, which the next turn's header is (GLM-4): that token is put there.
"""

from simpo_cli.data.encode.conversation import Rules
from simpo_cli.data.encode.pairs import answer_opening, encode_batches, encode_pairs, encode_prompt, pair_batches
from simpo_cli.data.encode.rendering import AS_TRANSCRIPT, LONGEST_WORD

__all__ = [
    "AS_TRANSCRIPT",
    "LONGEST_WORD",
    "Rules",
    "answer_opening",
    "encode_batches",
    "encode_pairs",
    "encode_prompt",
    "pair_batches",
]
