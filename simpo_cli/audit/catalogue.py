"""Every finding that there is: its stable code, what it means, why it ruins runs, and what to do about it.

A code never changes its meaning and is never used again for another; scripts and CI go by it.
"""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]
Needs = Literal["text", "tokens", "evaluation", "near", "model"]
"""Any audit, a tokenizer or recipe, the evaluation file, the search for near-duplicates, a model that scores pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One kind of finding."""

    title: str  # what it is, in a few words
    short: str  # what the line of passed checks calls it
    meaning: str  # what exactly is counted
    harm: str  # why it ruins runs
    remedy: str  # what to do, in a sentence or two
    severity: Severity = "warning"  # `error` for what makes training wrong, `warning` for what a person should look at
    needs: Needs = "text"  # what must be there for it to be looked for
    drops: bool = False  # whether --write-clean leaves such pairs out
    mends: bool = False  # whether it writes them without the trouble

    def __post_init__(self) -> None:
        assert self.drops or self.severity == "warning", f"{self.title}: what is cleaned passes --fail-on error"


CATALOGUE = {
    # Records and their sides
    "FMT001": Entry(
        title="malformed records, left out",
        severity="error",
        short="records",
        meaning="Records that are no preference pair: a field is missing or misspelt, a side is no text, a role is "
        "unknown, the prompts of the two sides differ, or the chat template refuses the conversation.",
        harm="Training stops at the first of them. With data.on_bad_record: skip it goes on without them, and a file "
        "in which many are malformed is seldom right in the others.",
        remedy="Mend the records.",
        drops=True,
    ),
    "FMT002": Entry(
        title="responses that are JSON of messages",
        short="messages as text",
        meaning='A response is the text of a message with its role and content, such as {"role": "assistant", '
        '"content": ...}, or of a list of such messages.',
        harm="The model learns to write the JSON around its answers. It comes from tables whose cells hold objects.",
        remedy="Write the answers alone, or the messages themselves as JSON objects and not as text.",
    ),
    "EMP001": Entry(
        title="an empty response (training drops such pairs)",
        short="empty",
        meaning="One of the two responses is empty or white space.",
        harm="An empty response has no mean log-probability. Training drops the pair; what is worrying is how it came "
        "about, such as a crashed generation or a filter.",
        remedy="Find out why answers are empty.",
        drops=True,
    ),
    "EMP002": Entry(
        title="a response without enough tokens (training drops such pairs)",
        short="tokens",
        meaning="After the cut a response has fewer tokens than data.min_response_tokens, the end token not counted.",
        harm="Such answers have no mean log-probability to train, or one that a single token decides.",
        remedy="Such answers have no mean log-probability to train; look at how they came about.",
        needs="tokens",
        drops=True,
    ),
    "EMP003": Entry(
        title="a response of fewer than 4 scored tokens",
        short="short responses",
        meaning="A response that is trained on has one to three scored tokens, its end token among them.",
        harm="SimPO divides by the length, so each token of a short response weighs as much as hundreds of tokens of a "
        "long one, and the end token is a good part of what is learned: stop early.",
        remedy="Read a few; if they are not meant, raise data.min_response_tokens.",
        needs="tokens",
    ),
    "EMP004": Entry(
        title="a text that is the word for a missing value (NaN, None, null)",
        short="missing values",
        meaning="A turn of the prompt, the system text among them, or a response is nothing but NaN, None, null, <NA> "
        "or NaT.",
        harm="A table wrote the word where there was nothing, and the model is trained on it as on any text.",
        remedy="Leave the field empty where the file is made (in pandas: fillna('')), unless the word is the answer.",
    ),
    # The same twice
    "DUP001": Entry(
        title="exact duplicate pairs",
        short="duplicates",
        meaning="The same prompt, chosen and rejected response as in an earlier pair. The first is not counted.",
        harm="A repeated pair counts more than others, and when it lies on both sides of a split the evaluation is of "
        "what was trained on.",
        remedy="Leave the repeats out, unless the pair is meant to count more.",
        drops=True,
    ),
    "DUP002": Entry(
        title="near-duplicate pairs",
        short="near-duplicates",
        meaning="Pairs whose prompt, chosen and rejected response are each nearly the same as an earlier pair's: two "
        "in three of the prompts' word triples are common and five in eight of the responses', case, white space and "
        "punctuation aside. The first of each group is not counted.",
        harm="They count a thing several times and leak over a split that goes by exact prompts.",
        remedy="Keep one of each group.",
        needs="near",
        drops=True,
    ),
    "DUP003": Entry(
        title="identical responses (training drops such pairs)",
        short="identical",
        meaning="Chosen and rejected are the same text.",
        harm="Two equal answers have equal rewards whatever the model is: the gradient of the pair is zero. Many of "
        "them say that the sampler's temperature was too low or that a join went wrong.",
        remedy="Two equal answers teach nothing; sample again.",
        drops=True,
    ),
    "DUP004": Entry(
        title="nearly identical responses",
        short="nearly identical",
        meaning="Chosen and rejected are not the same, and five in eight of their word triples are common, case, white "
        "space and punctuation aside.",
        harm="All that the pair teaches sits in a few tokens, while its loss pushes on all of them; known to lower the "
        "log-probability of both responses.",
        remedy="Look at what differs; sample again if it is not what you want to teach.",
        needs="near",
    ),
    # Labels
    "LBL002": Entry(
        title="contradictory labels (A over B and B over A)",
        severity="error",
        short="contradictions",
        meaning="The same two responses to the same prompt, preferred one way in one pair and the other way in "
        "another. All pairs of such a group are counted.",
        harm="What one pair teaches the other takes back, and with a margin to reach neither is ever done: they pull "
        "at full weight until the end.",
        remedy="Decide which answer is the better one, or leave both pairs out: together they teach nothing.",
        drops=True,
    ),
    "LBL003": Entry(
        title="preferences that go in a circle (A over B, B over C, C over A)",
        severity="error",
        short="cycles",
        meaning="Pairs of one prompt whose preferences form a circle of three or more responses. Contradictory pairs "
        "(LBL002), which are circles of two, are set aside first.",
        harm="No reward can satisfy all of them, so part of the loss can never fall.",
        remedy="Judge the responses of these prompts again, or leave the pairs out.",
        drops=True,
    ),
    "LBL004": Entry(
        title="nearly contradictory labels",
        short="near-contradictions",
        meaning="Pairs with nearly the same prompt in which each one's chosen response is nearly the other's rejected "
        "one. Exact contradictions (LBL002) and near-duplicates of an earlier pair are not counted.",
        harm="As for LBL002: what one pair teaches the other takes back, but for what little differs.",
        remedy="Look at what differs, and decide which answer is the better one.",
        needs="near",
    ),
    "LBL005": Entry(
        title="labels look swapped",
        short="swapped labels",
        meaning="The model finds the rejected response the likelier one, per token, in clearly more than half of the "
        "pairs: the whole 95 % interval of its accuracy lies under 45 %, and so does that of its length-balanced "
        "accuracy where there are pairs enough to tell.",
        harm="If chosen and rejected are swapped, the run teaches the opposite of what is wanted, and its own numbers "
        "look good.",
        remedy="Either chosen and rejected are swapped, or the labels prefer what this model would not write: read "
        "some pairs with simpo inspect.",
        needs="model",
    ),
    "LEK001": Entry(
        title="prompts that are also in the evaluation file",
        short="leaks",
        meaning="Training pairs whose prompt occurs, the same to the letter, in the evaluation file.",
        harm="The evaluation then measures memory: accuracy on prompts that were trained on is higher than on "
        "new ones.",
        remedy="Take these prompts out of one of the two files.",
        needs="evaluation",
    ),
    "LEK002": Entry(
        title="prompts that are nearly in the evaluation file",
        short="near leaks",
        meaning="Training pairs whose prompt is not in the evaluation file to the letter, and nearly the same as one "
        "that is: two in three of the word triples are common, case, white space, punctuation and system turns aside.",
        harm="As for LEK001: the evaluation measures memory in part.",
        remedy="Take these prompts out of one of the two files.",
        needs="evaluation",
    ),
    # Scores
    "SCR001": Entry(
        title="scores order the pair against its label",
        short="score order",
        meaning="The record holds scores of both responses, and the rejected one has the higher score.",
        harm="Either the label is wrong or the scores are; many of them mean that the columns are swapped.",
        remedy="Look at these pairs; if there are many, chosen and rejected may be swapped.",
    ),
    "SCR002": Entry(
        title="tied scores",
        short="score ties",
        meaning="The record holds scores of both responses, and they are equal.",
        harm="The label of such a pair was the order of a sort: a coin's toss that is trained like any other pair.",
        remedy="Such pairs are a coin's toss; leave them out, as --write-clean FILE --drop SCR002 does.",
    ),
    "SCR003": Entry(
        title="scores written as text",
        short="score types",
        meaning='A score is text such as "4.5".',
        harm="It is read as the number; another tool may order such scores as text, where 10 is below 9.",
        remedy="Write numbers as numbers.",
    ),
    "SCR004": Entry(
        title="scores or labels that prefer neither answer (not read as pairs)",
        short="ties",
        meaning="Scores or a label say which response is preferred, and here they say neither.",
        harm="Nothing can be learned from a tie; such records are not among the pairs.",
        remedy="Leave them out, or decide.",
    ),
    # Characters
    "CHR001": Entry(
        title="NUL characters in texts",
        short="NUL",
        meaning="A text holds U+0000.",
        harm="No model has seen any in its training; they come from broken exports, often with lost text around them.",
        remedy="Remove them; no model has seen any.",
    ),
    "CHR002": Entry(
        title="control characters in texts",
        short="control characters",
        meaning="A text holds a C0 or C1 control character other than tab, newline, carriage return and NUL: form "
        "feeds, escape sequences of terminals, bytes of another encoding.",
        harm="The model learns to write them. In terminals they can do harm, in JSON they break parsers.",
        remedy="Remove them where the file is made, such as by stripping terminal colours.",
    ),
    "CHR003": Entry(
        title="mojibake (text decoded with the wrong encoding)",
        short="mojibake",
        meaning="A text holds what UTF-8 becomes when it is read as Windows-1252, Latin-1 or Mac Roman: â€™ for ’, Ã© "
        "for é, ðŸ˜€ for an emoji. Only sequences that decode to something sensible are counted.",
        harm="The model learns to write the garbage, and tokenizers spend three to six tokens on each such letter.",
        remedy="Read the source again as UTF-8, or repair the texts, such as with the package ftfy.",
    ),
    "CHR004": Entry(
        title="replacement characters (text that could not be decoded)",
        short="lost characters",
        meaning="A text holds U+FFFD, which a decoder writes for bytes that it cannot read.",
        harm="What stood there is lost, and the model learns to write the sign for it.",
        remedy="Read the source again with its true encoding.",
    ),
    "CHR005": Entry(
        title="HTML entities in texts",
        short="HTML entities",
        meaning="A text holds &amp;, &lt;, &gt;, &quot;, &nbsp; or another character as HTML writes it. A text "
        "about HTML is counted too.",
        harm="The model learns to write the entities instead of the characters.",
        remedy="Decode them where the file is made (in Python: html.unescape), unless the answers are meant as HTML.",
    ),
    # The template's business inside texts
    "TOK001": Entry(
        title="special tokens spelled out in texts",
        short="special tokens",
        meaning="A text spells out a special token: of the tokenizer, or, when words are counted, one that is widely "
        "used (<|im_end|>, </s>, [INST], <end_of_turn>).",
        harm="Here they stay text. Other tools, and the server that will run the model, read them as tokens: a "
        "response ends early, or a user's text opens a turn. Mostly they are left over from generation.",
        remedy="Strip them where they are left over from generation; here they are kept as text.",
    ),
    "TOK002": Entry(
        title="two BOS tokens at the start (mended)",
        short="BOS",
        meaning="The rendered prompt began with two beginning-of-text tokens, and one was taken away.",
        harm="Here it is mended. Another tool would train on both, and a model that was never shown two does worse.",
        remedy="Nothing needs to be done here; look for a text or template that brings a BOS of its own.",
        needs="tokens",
    ),
    "EOS001": Entry(
        title="a response without an end token",
        short="EOS",
        meaning="A scored response does not end with an end-of-turn token: the length limit cut it off, or neither "
        "template nor tokenizer writes one. Counted for each side.",
        harm="A model learns to stop from end tokens. Where chosen responses lose theirs, the tuned model runs on.",
        remedy="Raise data.max_length; where nothing was cut, give a template that ends turns (data.chat_template).",
        needs="tokens",
    ),
    "EOS002": Entry(
        title="a response spells out an end token",
        short="end tokens as text",
        meaning="A response holds the text of a widely used end token, such as <|im_end|>, or </s> without <s>. Under "
        "data.rendered: true the tokenizer's own, which are then read as tokens, are not counted.",
        harm="It is scored as text in front of the real end token: the model learns to write both, and what users see "
        "ends with it.",
        remedy="Take it off the responses: the template writes the end token itself. Texts rendered for this "
        "very model keep it, with data.rendered: true.",
    ),
    "TPL001": Entry(
        title="a response begins with the header of its own turn",
        short="headers",
        meaning='A response begins with "Assistant:", "### Response:" or a template\'s assistant header.',
        harm="The template writes that header already. The model learns to write it once more at the start of every "
        "answer.",
        remedy="Strip the header from the responses.",
    ),
    "TPL002": Entry(
        title="a response goes on with another turn",
        short="turns",
        meaning='A response holds a further turn, such as a paragraph that begins with "Human:" or "### Instruction:".',
        harm="The model learns to speak for the user and to go on after its own answer.",
        remedy="Cut the responses in front of the next turn.",
    ),
    "TPL003": Entry(
        title="both responses repeat the prompt",
        short="repeated prompts",
        meaning="Chosen and rejected both begin with the prompt's text (the last turn by the user, or the first turn), "
        'to the letter, with or without a header such as "Human:" in front. Prompts of one or two words are not '
        "looked at.",
        harm="The prompt is scored as a part of the answers: the model learns to repeat the question, and the lengths "
        "by which SimPO divides are wrong.",
        remedy="Take the prompt off both responses: --write-clean FILE writes them without it.",
        mends=True,
    ),
    "TPL004": Entry(
        title="another template's markers in texts",
        short="markers",
        meaning="A prompt or response holds what another chat template writes around turns: [INST], <|im_start|>, "
        "<|start_header_id|>, <start_of_turn> and the like, or a line that begins with ### Instruction: or "
        "### Response:. With a tokenizer its own are not counted, nor such headings where it has no template.",
        harm="The texts were rendered for another model: here the markers are ordinary letters inside a turn, which "
        "the model learns to read and write.",
        remedy="Give the conversations as messages, without a template; or, if they are rendered for this very model, "
        "set data.rendered: true.",
    ),
    # The cut
    "TRU001": Entry(
        title="both responses cut by the length limit",
        short="both cut",
        meaning="Neither response fits in what data.max_length leaves behind the prompt; both lose their end.",
        harm="Neither response shows how to stop, and a comparison of two beginnings may be another than the label's.",
        remedy="Raise data.max_length, or set data.overlong: drop.",
        needs="tokens",
    ),
    "TRU002": Entry(
        title="only one response cut by the length limit",
        severity="error",
        short="one side cut",
        meaning="One response is cut and the other is not.",
        harm="Only one side keeps its end token, and what separates the two is then the cut: chosen responses that are "
        "cut teach never to stop, rejected ones that are cut teach to stop anywhere.",
        remedy="Only one side keeps its end. Raise data.max_length, or set data.overlong: drop.",
        needs="tokens",
        drops=True,
    ),
    "TRU003": Entry(
        title="prompts cut by the length limit",
        short="prompts cut",
        meaning="The prompt has more tokens than data.max_prompt_length; its last ones are kept.",
        harm="The question may be gone, or the system turn, or half of a turn's markers; the label was given to the "
        "whole prompt.",
        remedy="Raise data.max_prompt_length; the last tokens are kept.",
        needs="tokens",
    ),
    "TRU004": Entry(
        title="responses identical after the cut (training drops such pairs)",
        short="identical after the cut",
        meaning="The texts differ, and the scored tokens do not: the difference lies behind the cut, or the template "
        "or tokenizer takes it away.",
        harm="Two equal rows of tokens have equal rewards whatever the model is: nothing can be learned.",
        remedy="Raise data.max_length; where nothing is cut, the responses differ in white space only.",
        needs="tokens",
        drops=True,
    ),
    "TRU005": Entry(
        title="over the length limits (training drops such pairs)",
        short="over the limits",
        meaning="The recipe says data.overlong: drop, and prompt or response is over its limit.",
        harm="What is dropped is not like what stays: long prompts and long answers are missing from the run.",
        remedy="Raise data.max_length or data.max_prompt_length if it is too many.",
        needs="tokens",
        drops=True,
    ),
    # What predicts the label without being the better answer
    "LEN001": Entry(
        title="length predicts the label",
        short="length",
        meaning="The rule that the longer response is the chosen one is right (or wrong) in clearly more than half of "
        "the pairs: its whole 95 % interval lies over 55 % or under 45 %.",
        harm="A model can win by length alone. Its accuracy then says little, and its answers grow (or shrink) with "
        "training.",
        remedy="Read a model's accuracy length-balanced, and watch the length of its answers.",
    ),
    "SRF001": Entry(
        title="surface features predict the label",
        short="surface",
        meaning="A classifier that sees no meaning, only differences in length, lists, bold, code, headings, openers "
        "and the like, gets clearly more than half of unseen pairs right: the whole 95 % interval of its "
        "cross-validated accuracy lies over 55 %.",
        harm="That accuracy, not 50 %, is what a trained model has to beat before it has learned anything about the "
        "answers themselves.",
        remedy="Compare a trained model with this accuracy, not with 50 %; the weights say which features lead.",
    ),
    # What a model says of the pairs before any training
    "MOD001": Entry(
        title="most pairs are past the target before any training",
        short="room to learn",
        meaning="The margin of more than half of the pairs is over gamma at step 0: the whole 95 % interval of that "
        "share lies over 50 %.",
        harm="A pair past the target has a small loss and a small gradient, so the run has little to learn from.",
        remedy="Raise gamma, or give pairs that this model does not tell apart yet.",
        needs="model",
    ),
}
"""All entries by their codes: three letters and three digits."""
