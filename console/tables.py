"""Answers of the control panel as people read them: objects and lists of objects as tables.

The invariant: what a command answered is all there, and nothing as nothing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

WIDTH = 78
"""Columns of a table where nobody says how many there are."""


def shown(answer: object, width: int = WIDTH) -> str:
    """Return an answer as text of so many columns."""
    if answer is None or answer in ({}, []):
        return ""
    if isinstance(answer, dict):
        return rendered(*_tables(answer), width=width)
    if _is_rows(answer):
        return rendered(_rows("", answer), width=width)
    return answer if isinstance(answer, str) else json.dumps(answer, indent=2)


def _is_rows(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _tables(answer: dict[str, Any]) -> list[Table]:
    plain = Table("what", "value", box=SIMPLE_HEAD)
    more: list[Table] = []
    for key, value in answer.items():
        if _is_rows(value):
            more.append(_rows(key, value))
        else:
            for name, part in _flat(str(key), value):
                plain.add_row(name, _cell(part))
    return [plain, *more] if plain.row_count else more


def _flat(name: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield what is in nested objects, with names such as ``counters.0.reload``."""
    nested = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list) and _is_rows(value) else None
    if not nested:
        yield name, value
        return
    for key, part in nested.items():
        yield from _flat(f"{name}.{key}", part)


def _rows(title: str, rows: Any) -> Table:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns, box=SIMPLE_HEAD, title=title or None, title_justify="left")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    return table


def _cell(value: object) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def rendered(*tables: Table, width: int = WIDTH) -> str:
    """Return tables as text without colours."""
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, color_system=None, force_terminal=False, markup=False)
    for table in tables:
        console.print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
