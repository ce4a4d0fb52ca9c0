"""Findings about records, and about pairs beside others: the same twice, labels at odds, leaks and scores."""

from simpo_cli.audit.catalogue.entry import Entry

ENTRIES = (
    # Records and their sides
    Entry(
        code="FMT001",
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
    Entry(
        code="FMT002",
        title="responses that are JSON of messages",
        severity="warning",
        short="messages as text",
        meaning='A response is the text of a message with its role and content, such as {"role": "assistant", '
        '"content": ...}, or of a list of such messages.',
        harm="The model learns to write the JSON around its answers. It comes from tables whose cells hold objects.",
        remedy="Write the answers alone, or the messages themselves as JSON objects and not as text.",
    ),
    Entry(
        code="EMP001",
        title="an empty response (training drops such pairs)",
        severity="warning",
        short="empty",
        meaning="One of the two responses is empty or white space.",
        harm="An empty response has no mean log-probability. Training drops the pair; what is worrying is how it came "
        "about, such as a crashed generation or a filter.",
        remedy="Find out why answers are empty.",
        drops=True,
    ),
    Entry(
        code="EMP002",
        title="a response without enough tokens (training drops such pairs)",
        severity="warning",
        short="tokens",
        meaning="After the cut a response has fewer tokens than data.min_response_tokens, the end token not counted.",
        harm="Such answers have no mean log-probability to train, or one that a single token decides.",
        remedy="Such answers have no mean log-probability to train; look at how they came about.",
        needs="tokens",
        drops=True,
    ),
    Entry(
        code="EMP003",
        title="a response of fewer than 4 scored tokens",
        severity="warning",
        short="short responses",
        meaning="A response that is trained on has one to three scored tokens, its end token among them.",
        harm="SimPO divides by the length, so each token of a short response weighs as much as hundreds of tokens of a "
        "long one, and the end token is a good part of what is learned: stop early.",
        remedy="Read a few; if they are not meant, raise data.min_response_tokens.",
        needs="tokens",
    ),
    Entry(
        code="EMP004",
        title="a text that is the word for a missing value (NaN, None, null)",
        severity="warning",
        short="missing values",
        meaning="A turn of the prompt, the system text among them, or a response is nothing but NaN, None, null, <NA> "
        "or NaT.",
        harm="A table wrote the word where there was nothing, and the model is trained on it as on any text.",
        remedy="Leave the field empty where the file is made (in pandas: fillna('')), unless the word is the answer.",
    ),
    # The same twice
    Entry(
        code="DUP001",
        title="exact duplicate pairs",
        severity="warning",
        short="duplicates",
        meaning="The same prompt, chosen and rejected response as in an earlier pair. The first is not counted.",
        harm="A repeated pair counts more than others, and when it lies on both sides of a split the evaluation is of "
        "what was trained on.",
        remedy="Leave the repeats out, unless the pair is meant to count more.",
        drops=True,
    ),
    Entry(
        code="DUP002",
        title="near-duplicate pairs",
        severity="warning",
        short="near-duplicates",
        meaning="Pairs whose prompt, chosen and rejected response are each nearly the same as an earlier pair's: two "
        "in three of the prompts' word triples are common and five in eight of the responses', case, white space and "
        "punctuation aside. The first of each group is not counted.",
        harm="They count a thing several times and leak over a split that goes by exact prompts.",
        remedy="Keep one of each group.",
        needs="near",
        drops=True,
    ),
    Entry(
        code="DUP003",
        title="identical responses (training drops such pairs)",
        severity="warning",
        short="identical",
        meaning="Chosen and rejected are the same text.",
        harm="Two equal answers have equal rewards whatever the model is: the gradient of the pair is zero. Many of "
        "them say that the sampler's temperature was too low or that a join went wrong.",
        remedy="Two equal answers teach nothing; sample again.",
        drops=True,
    ),
    Entry(
        code="DUP004",
        title="nearly identical responses",
        severity="warning",
        short="nearly identical",
        meaning="Chosen and rejected are not the same, and five in eight of their word triples are common, case, white "
        "space and punctuation aside.",
        harm="All that the pair teaches sits in a few tokens, while its loss pushes on all of them; known to lower the "
        "log-probability of both responses.",
        remedy="Look at what differs; sample again if it is not what you want to teach.",
        needs="near",
    ),
    # Labels
    Entry(
        code="LBL002",
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
    Entry(
        code="LBL003",
        title="preferences that go in a circle (A over B, B over C, C over A)",
        severity="error",
        short="cycles",
        meaning="Pairs of one prompt whose preferences form a circle of three or more responses. Contradictory pairs "
        "(LBL002), which are circles of two, are set aside first.",
        harm="No reward can satisfy all of them, so part of the loss can never fall.",
        remedy="Judge the responses of these prompts again, or leave the pairs out.",
        drops=True,
    ),
    Entry(
        code="LBL004",
        title="nearly contradictory labels",
        severity="warning",
        short="near-contradictions",
        meaning="Pairs with nearly the same prompt in which each one's chosen response is nearly the other's rejected "
        "one. Exact contradictions (LBL002) and near-duplicates of an earlier pair are not counted.",
        harm="As for LBL002: what one pair teaches the other takes back, but for what little differs.",
        remedy="Look at what differs, and decide which answer is the better one.",
        needs="near",
    ),
    Entry(
        code="LBL005",
        title="labels look swapped",
        severity="warning",
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
    Entry(
        code="LEK001",
        title="prompts that are also in the evaluation file",
        severity="warning",
        short="leaks",
        meaning="Training pairs whose prompt occurs, the same to the letter, in the evaluation file.",
        harm="The evaluation then measures memory: accuracy on prompts that were trained on is higher than on "
        "new ones.",
        remedy="Take these prompts out of one of the two files.",
        needs="evaluation",
    ),
    Entry(
        code="LEK002",
        title="prompts that are nearly in the evaluation file",
        severity="warning",
        short="near leaks",
        meaning="Training pairs whose prompt is not in the evaluation file to the letter, and nearly the same as one "
        "that is: two in three of the word triples are common, case, white space, punctuation and system turns aside.",
        harm="As for LEK001: the evaluation measures memory in part.",
        remedy="Take these prompts out of one of the two files.",
        needs="evaluation",
    ),
    # Scores
    Entry(
        code="SCR001",
        title="scores order the pair against its label",
        severity="warning",
        short="score order",
        meaning="The record holds scores of both responses, and the rejected one has the higher score.",
        harm="Either the label is wrong or the scores are; many of them mean that the columns are swapped.",
        remedy="Look at these pairs; if there are many, chosen and rejected may be swapped.",
    ),
    Entry(
        code="SCR002",
        title="tied scores",
        severity="warning",
        short="score ties",
        meaning="The record holds scores of both responses, and they are equal.",
        harm="The label of such a pair was the order of a sort: a coin's toss that is trained like any other pair.",
        remedy="Such pairs are a coin's toss; leave them out, as --write-clean FILE --drop SCR002 does.",
    ),
    Entry(
        code="SCR003",
        title="scores written as text",
        severity="warning",
        short="score types",
        meaning='A score is text such as "4.5".',
        harm="It is read as the number; another tool may order such scores as text, where 10 is below 9.",
        remedy="Write numbers as numbers.",
    ),
    Entry(
        code="SCR004",
        title="scores or labels that prefer neither answer (not read as pairs)",
        severity="warning",
        short="ties",
        meaning="Scores or a label say which response is preferred, and here they say neither.",
        harm="Nothing can be learned from a tie; such records are not among the pairs.",
        remedy="Leave them out, or decide.",
    ),
)
