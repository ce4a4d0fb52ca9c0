"""CSV as spreadsheets and pandas write it: line ends, separators, empty rows, missing values, messages in cells."""

import csv
import io
import json
from typing import Any

import pytest

from simpo_cli.data.pair import BadRecord
from simpo_cli.recipe.schema import DataSource
from tests.data.pair_files import LoadedPairs, Write, load_pairs, read, refusal, skipped

ROW = {"prompt": "Which bird is blue?", "chosen": "The jay, in part.", "rejected": "None of them."}
USER = {"role": "user", "content": ROW["prompt"]}
GOOD = {"role": "assistant", "content": ROW["chosen"]}
POOR = {"role": "assistant", "content": ROW["rejected"]}


def table(*rows: dict[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def load(path: str) -> LoadedPairs:
    return load_pairs(path, role="train")


def texts(loaded: LoadedPairs) -> list[tuple[Any, str, str]]:
    return [(pair.prompt, pair.chosen, pair.rejected) for pair in loaded.pairs]


def noted(loaded: LoadedPairs) -> dict[str, int]:
    """What is said of the file, without its name."""
    return {said.split(": ", 1)[-1]: count for said, count in loaded.warnings.items()}


WHOLE = (ROW["prompt"], ROW["chosen"], ROW["rejected"])


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz"])
@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (table(ROW, ROW).replace("\n", "\r"), [2, 3]),
        (table({**ROW, "prompt": "a\nb"}, ROW).replace("\n", "\r").replace("a\rb", "a\nb"), [2, 4]),
        ("sep=;\n" + table(ROW, ROW).replace(",", ";"), [3, 4]),
        ("sep=;\r\nprompt;chosen;rejected\r\na,a;b;c\r\n", [3]),
        ('"sep=\t"\nprompt\tchosen\trejected\na;b;c\tb\tc\n', [3]),
        ("prompt|chosen|rejected\na,b|b|c\n", [2]),
    ],
)
def test_line_ends_and_separators_of_spreadsheets(
    write: Write, content: str, lines: list[int], name: str, mark: str
) -> None:
    path = write(name, mark + content)
    loaded = load(path)
    assert [pair.where for pair in loaded.pairs] == [f"{path}:{line}" for line in lines]
    assert {pair.chosen for pair in loaded.pairs} <= {"The jay, in part.", "The jay; in part.", "b"}


def test_rows_without_any_text_are_skipped_and_counted(write: Write) -> None:
    content = table(ROW) + ",,\n" + table(ROW).split("\n", 1)[1] + ' , ,"\t"\n,,,,\n\n'
    loaded = load(write("a.csv", content))
    assert texts(loaded) == [WHOLE, WHOLE]
    assert noted(loaded) == {"a row without any text is skipped": 3}
    assert loaded.records_read == 2


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('prompt,chosen,rejected\n"a\rb",c,d\ne,f,g\n', [("a\rb", "c", "d"), ("e", "f", "g")]),
        ('prompt,chosen,rejected\n"a\nb, ""c""",4.5,2024-01-01\n', [('a\nb, "c"', "4.5", "2024-01-01")]),
        # the index of pandas
        (",prompt,chosen,rejected\n0,a,b,c\n1,d,e,f\n", [("a", "b", "c"), ("d", "e", "f")]),
        ("Unnamed: 0,prompt,chosen,rejected\n0,a,b,c\n", [("a", "b", "c")]),
        (",Unnamed: 0,prompt,chosen,rejected\n0,0,a,b,c\n", [("a", "b", "c")]),
        # what a spreadsheet has left behind
        ("prompt,chosen,rejected,,\na,b,c,,\n", [("a", "b", "c")]),
    ],
)
def test_cells_are_the_texts_that_they_were_under_whatever_names(
    write: Write, content: str, rows: list[tuple[str, str, str]]
) -> None:
    assert texts(load(write("a.csv", content))) == rows


def test_troubles_are_records(write: Write) -> None:
    content = b'prompt,chosen,rejected\na,b,c\na,b\n\na,b,c,d\na,"b"x,c\na,\xe9,c\na,b\x00,c\na,b,c\n'
    records, _ = read(write("a.csv", content))
    bad = {record.where.split(":")[-1]: record.problem for record in records if isinstance(record, BadRecord)}
    assert list(bad) == ["3", "5", "6", "7", "8"]
    assert len(records) == 7
    assert bad["3"] == "2 fields, but the header has 3"
    assert "not valid CSV" in bad["6"]
    assert bad["7"] == "not UTF-8 at byte 53 of the file (0xe9)"
    assert "NUL" in bad["8"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("a,a,b\n1,2,3\n", "two columns are named 'a'"),
        ('prompt,chosen,rejected\na,b,c\na,"b,c\nd,e,f\n', "a double quote opens here and is not closed"),
        ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', "holds JSON, not CSV"),
    ],
)
def test_files_that_cannot_be_read(write: Write, content: str, problem: str) -> None:
    assert problem in refusal(write("a.csv", content)).problem


# Missing values


@pytest.mark.parametrize("word", ["NaN", "nan", "<NA>", "NA", "N/A", "null", "None"])
@pytest.mark.parametrize("column", ["system", "score_chosen"])
def test_a_word_for_a_missing_value_is_no_value(write: Write, word: str, column: str) -> None:
    rows = [{**ROW, column: word, "score_rejected": "1"}] * 2
    loaded = load(write("a.csv", table(*rows)))
    assert texts(loaded) == [WHOLE, WHOLE]
    assert noted(loaded)[f"the word {word} in {column} is read as no value"] == 2


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_a_missing_prompt_or_answer_refuses_its_record(write: Write, column: str) -> None:
    path = write("a.csv", table(ROW, {**ROW, column: "NaN"}))
    error = refusal(path)
    assert (error.where, error.problem) == (f"{path}:3", f"{column}: the word NaN, which stands for a missing value.")
    assert len(skipped(path).bad_records) == 1


@pytest.mark.parametrize("word", ["None", "null", "NA"])
def test_a_word_that_may_be_an_answer_stays_and_is_counted(write: Write, word: str) -> None:
    loaded = load(write("a.csv", table(ROW, {**ROW, "chosen": word})))
    assert [pair.chosen for pair in loaded.pairs] == [ROW["chosen"], word]
    assert noted(loaded) == {f"the word {word} in chosen is read as text": 1}


def test_a_missing_value_under_another_name_is_no_text_either(write: Write) -> None:
    path = write("a.csv", table({"frage": "a", "chosen": "NaN", "rejected": "c"}).replace("chosen", "gut"))
    columns = {"prompt": "frage", "chosen": "gut", "rejected": "rejected"}
    error = refusal([DataSource(path=path, columns=columns)])
    assert error.problem == "gut: expected text or messages, got null."


# Messages in cells


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        (ROW["prompt"], GOOD, POOR),
        ([USER], GOOD, POOR),
        ([USER], [GOOD], [POOR]),
        ([{"from": "human", "value": ROW["prompt"]}], {"from": "gpt", "value": ROW["chosen"]}, POOR),
    ],
)
def test_messages_as_json_text_are_messages(
    write: Write, prompt: Any, chosen: Any, rejected: Any, indent: int | None
) -> None:
    cells = [
        value if isinstance(value, str) else json.dumps(value, indent=indent) for value in (prompt, chosen, rejected)
    ]
    row = dict(zip(ROW, cells, strict=True))
    loaded = load(write("a.csv", table(row, row)))
    assert [(pair.chosen, pair.rejected) for pair in loaded.pairs] == [(ROW["chosen"], ROW["rejected"])] * 2
    assert not loaded.warnings


def test_a_later_cell_that_is_other_text_is_refused_with_its_place(write: Write) -> None:
    rows = [{**ROW, "chosen": json.dumps(GOOD), "rejected": json.dumps(POOR)}] * 120
    path = write("a.csv", table(*rows, ROW, rows[0]))
    error = refusal(path)
    assert error.where == f"{path}:122"
    assert error.problem == "chosen: expected messages as JSON text, as in the records before."
    assert len(skipped(path).pairs) == 121


def test_a_message_among_other_texts_is_read_as_one_and_counted(write: Write) -> None:
    loaded = load(write("a.csv", table(ROW, {**ROW, "chosen": json.dumps(GOOD)})))
    assert texts(loaded) == [WHOLE, WHOLE]
    assert noted(loaded) == {"JSON text of messages in chosen is read as messages": 1}


@pytest.mark.parametrize("answer", [{"from": "Porto", "to": "Faro"}, [{"role": "keeper"}], {"content": 3}, ["a", "b"]])
def test_json_that_is_no_message_stays_text(write: Write, answer: Any) -> None:
    loaded = load(write("a.csv", table({**ROW, "chosen": json.dumps(answer)})))
    assert [pair.chosen for pair in loaded.pairs] == [json.dumps(answer)]


@pytest.mark.parametrize("prompt", [ROW["prompt"], str([USER])])
@pytest.mark.parametrize(("chosen", "rejected"), [(GOOD, POOR), ([GOOD], [POOR])])
def test_messages_that_python_printed_are_refused(write: Write, prompt: str, chosen: Any, rejected: Any) -> None:
    row = {"prompt": prompt, "chosen": str(chosen), "rejected": str(rejected)}
    error = refusal(write("a.csv", table(row, row)))
    assert "holds messages written as text by Python" in error.problem
    assert "to_json(orient='records', lines=True)" in error.fix
