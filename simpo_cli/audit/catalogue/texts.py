"""Findings about single texts and their tokens, and about what predicts the label without being the better answer."""

from simpo_cli.audit.catalogue.entry import Entry

ENTRIES = (
    # Characters
    Entry(
        code="CHR001",
        title="NUL characters in texts",
        severity="warning",
        short="NUL",
        meaning="A text holds U+0000.",
        harm="No model has seen any in its training; they come from broken exports, often with lost text around them.",
        remedy="Remove them; no model has seen any.",
    ),
    Entry(
        code="CHR002",
        title="control characters in texts",
        severity="warning",
        short="control characters",
        meaning="A text holds a C0 or C1 control character other than tab, newline, carriage return and NUL: form "
        "feeds, escape sequences of terminals, bytes of another encoding.",
        harm="The model learns to write them. In terminals they can do harm, in JSON they break parsers.",
        remedy="Remove them where the file is made, such as by stripping terminal colours.",
    ),
    Entry(
        code="CHR003",
        title="mojibake (text decoded with the wrong encoding)",
        severity="warning",
        short="mojibake",
        meaning="A text holds what UTF-8 becomes when it is read as Windows-1252, Latin-1 or Mac Roman: â€™ for ’, Ã© "
        "for é, ðŸ˜€ for an emoji. Only sequences that decode to something sensible are counted.",
        harm="The model learns to write the garbage, and tokenizers spend three to six tokens on each such letter.",
        remedy="Read the source again as UTF-8, or repair the texts, such as with the package ftfy.",
    ),
    Entry(
        code="CHR004",
        title="replacement characters (text that could not be decoded)",
        severity="warning",
        short="lost characters",
        meaning="A text holds U+FFFD, which a decoder writes for bytes that it cannot read.",
        harm="What stood there is lost, and the model learns to write the sign for it.",
        remedy="Read the source again with its true encoding.",
    ),
    Entry(
        code="CHR005",
        title="HTML entities in texts",
        severity="warning",
        short="HTML entities",
        meaning="A text holds &amp;, &lt;, &gt;, &quot;, &nbsp; or another character as HTML writes it. A text "
        "about HTML is counted too.",
        harm="The model learns to write the entities instead of the characters.",
        remedy="Decode them where the file is made (in Python: html.unescape), unless the answers are meant as HTML.",
    ),
    # The template's business inside texts
    Entry(
        code="TOK001",
        title="special tokens spelled out in texts",
        severity="warning",
        short="special tokens",
        meaning="A text spells out a special token: of the tokenizer, or, when words are counted, one that is widely "
        "used (<|im_end|>, </s>, [INST], <end_of_turn>).",
        harm="Here they stay text. Other tools, and the server that will run the model, read them as tokens: a "
        "response ends early, or a user's text opens a turn. Mostly they are left over from generation.",
        remedy="Strip them where they are left over from generation; here they are kept as text.",
    ),
    Entry(
        code="TOK002",
        title="two BOS tokens at the start (mended)",
        severity="warning",
        short="BOS",
        meaning="The rendered prompt began with two beginning-of-text tokens, and one was taken away.",
        harm="Here it is mended. Another tool would train on both, and a model that was never shown two does worse.",
        remedy="Nothing needs to be done here; look for a text or template that brings a BOS of its own.",
        needs="tokens",
    ),
    Entry(
        code="EOS001",
        title="a response without an end token",
        severity="warning",
        short="EOS",
        meaning="A scored response does not end with an end-of-turn token: the length limit cut it off, or neither "
        "template nor tokenizer writes one. Counted for each side.",
        harm="A model learns to stop from end tokens. Where chosen responses lose theirs, the tuned model runs on.",
        remedy="Raise data.max_length; where nothing was cut, give a template that ends turns (data.chat_template).",
        needs="tokens",
    ),
    Entry(
        code="EOS002",
        title="a response spells out an end token",
        severity="warning",
        short="end tokens as text",
        meaning="A response holds the text of a widely used end token, such as <|im_end|>, or </s> without <s>. Under "
        "data.rendered: true the tokenizer's own, which are then read as tokens, are not counted.",
        harm="It is scored as text in front of the real end token: the model learns to write both, and what users see "
        "ends with it.",
        remedy="Take it off the responses: the template writes the end token itself. Texts rendered for this "
        "very model keep it, with data.rendered: true.",
    ),
    Entry(
        code="TPL001",
        title="a response begins with the header of its own turn",
        severity="warning",
        short="headers",
        meaning='A response begins with "Assistant:", "### Response:" or a template\'s assistant header.',
        harm="The template writes that header already. The model learns to write it once more at the start of every "
        "answer.",
        remedy="Strip the header from the responses.",
    ),
    Entry(
        code="TPL002",
        title="a response goes on with another turn",
        severity="warning",
        short="turns",
        meaning='A response holds a further turn, such as a paragraph that begins with "Human:" or "### Instruction:".',
        harm="The model learns to speak for the user and to go on after its own answer.",
        remedy="Cut the responses in front of the next turn.",
    ),
    Entry(
        code="TPL003",
        title="both responses repeat the prompt",
        severity="warning",
        short="repeated prompts",
        meaning="Chosen and rejected both begin with the prompt's text (the last turn by the user, or the first turn), "
        'to the letter, with or without a header such as "Human:" in front. Prompts of one or two words are not '
        "looked at.",
        harm="The prompt is scored as a part of the answers: the model learns to repeat the question, and the lengths "
        "by which SimPO divides are wrong.",
        remedy="Take the prompt off both responses: --write-clean FILE writes them without it.",
        mends=True,
    ),
    Entry(
        code="TPL004",
        title="another template's markers in texts",
        severity="warning",
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
    Entry(
        code="TRU001",
        title="both responses cut by the length limit",
        severity="warning",
        short="both cut",
        meaning="Neither response fits in what data.max_length leaves behind the prompt; both lose their end.",
        harm="Neither response shows how to stop, and a comparison of two beginnings may be another than the label's.",
        remedy="Raise data.max_length, or set data.overlong: drop.",
        needs="tokens",
    ),
    Entry(
        code="TRU002",
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
    Entry(
        code="TRU003",
        title="prompts cut by the length limit",
        severity="warning",
        short="prompts cut",
        meaning="The prompt has more tokens than data.max_prompt_length; its last ones are kept.",
        harm="The question may be gone, or the system turn, or half of a turn's markers; the label was given to the "
        "whole prompt.",
        remedy="Raise data.max_prompt_length; the last tokens are kept.",
        needs="tokens",
    ),
    Entry(
        code="TRU004",
        title="responses identical after the cut (training drops such pairs)",
        severity="warning",
        short="identical after the cut",
        meaning="The texts differ, and the scored tokens do not: the difference lies behind the cut, or the template "
        "or tokenizer takes it away.",
        harm="Two equal rows of tokens have equal rewards whatever the model is: nothing can be learned.",
        remedy="Raise data.max_length; where nothing is cut, the responses differ in white space only.",
        needs="tokens",
        drops=True,
    ),
    Entry(
        code="TRU005",
        title="over the length limits (training drops such pairs)",
        severity="warning",
        short="over the limits",
        meaning="The recipe says data.overlong: drop, and prompt or response is over its limit.",
        harm="What is dropped is not like what stays: long prompts and long answers are missing from the run.",
        remedy="Raise data.max_length or data.max_prompt_length if it is too many.",
        needs="tokens",
        drops=True,
    ),
    # What predicts the label without being the better answer
    Entry(
        code="LEN001",
        title="length predicts the label",
        severity="warning",
        short="length",
        meaning="The rule that the longer response is the chosen one is right (or wrong) in clearly more than half of "
        "the pairs: its whole 95 % interval lies over 55 % or under 45 %.",
        harm="A model can win by length alone. Its accuracy then says little, and its answers grow (or shrink) with "
        "training.",
        remedy="Read a model's accuracy length-balanced, and watch the length of its answers.",
    ),
    Entry(
        code="SRF001",
        title="surface features predict the label",
        severity="warning",
        short="surface",
        meaning="A classifier that sees no meaning, only differences in length, lists, bold, code, headings, openers "
        "and the like, gets clearly more than half of unseen pairs right: the whole 95 % interval of its "
        "cross-validated accuracy lies over 55 %.",
        harm="That accuracy, not 50 %, is what a trained model has to beat before it has learned anything about the "
        "answers themselves.",
        remedy="Compare a trained model with this accuracy, not with 50 %; the weights say which features lead.",
    ),
    # What a model says of the pairs before any training
    Entry(
        code="MOD001",
        title="most pairs are past the target before any training",
        severity="warning",
        short="room to learn",
        meaning="The margin of more than half of the pairs is over gamma at step 0: the whole 95 % interval of that "
        "share lies over 50 %.",
        harm="A pair past the target has a small loss and a small gradient, so the run has little to learn from.",
        remedy="Raise gamma, or give pairs that this model does not tell apart yet.",
        needs="model",
    ),
)
