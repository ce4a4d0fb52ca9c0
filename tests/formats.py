"""The table of layouts that are read, as `make formats` prints it: what the reader says of three records of each.

usage: python -m tests.formats
"""

from collections.abc import Iterator

from simpo_cli.data.formats import detect
from simpo_cli.errors import UserError
from tests.data.layouts import READ, REFUSED


def rows() -> Iterator[tuple[str, str, str]]:
    """(layout, read as, direction by) of every layout; of what is refused, the reason."""
    yield "LAYOUT", "READ AS", "DIRECTION BY"
    for case in READ:
        layout = detect(case.records, {}, case.name)
        yield case.name, layout.form, layout.direction or "the names of the fields"
    for refusal in REFUSED:
        try:
            detect(refusal.records, {}, refusal.name)
        except UserError as error:
            yield refusal.name, "refused", error.problem
        else:
            yield refusal.name, "refused record by record", refusal.says[0]


def main() -> None:
    table = list(rows())
    widths = [max(len(row[column]) for row in table) for column in (0, 1)]
    for name, form, direction in table:
        print(f"{name:<{widths[0]}}  {form:<{widths[1]}}  {direction}")


if __name__ == "__main__":
    main()
