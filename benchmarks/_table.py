"""Rows of a table in Markdown, printed and written as soon as they are known."""

from typing import TextIO


def write_row(table: TextIO, cells: tuple[str, ...]) -> None:
    """Add one row."""
    line = f"| {' | '.join(cells)} |"
    print(line, flush=True)
    table.write(line + "\n")
    table.flush()
