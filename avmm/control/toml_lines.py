"""Where in a TOML file each key and each array element is: the line numbers that tomllib does not keep.

For documents that tomllib (TOML v1.0.0) has accepted: the scanner checks nothing, it only has to find its way.
"""

from __future__ import annotations

import re

Path = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(r'"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'', re.DOTALL)
_SCALAR = re.compile(r"[^,\]}\n#]+")


def find_lines(text: str) -> dict[Path, int]:
    """Return the line, from 1, of each table, key and array element by its path, such as ("vm", "linux", "disks", 0)."""
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self._arrays: dict[Path, int] = {}
        """Elements so far of each array of tables."""

    def document(self) -> None:
        table: Path = ()
        self._blank()
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self._header()
            else:
                self._pair(table)
            self._blank()

    def _blank(self) -> None:
        found = _BLANK.match(self.text, self.at)
        assert found is not None
        self.at = found.end()

    def _here(self, path: Path) -> None:
        self.lines.setdefault(path, self.text.count("\n", 0, self.at) + 1)

    def _header(self) -> Path:
        start = self.at
        several = self.text.startswith("[[", self.at)
        self.at += 2 if several else 1
        table: Path = ()
        parts = self._key()
        for number, part in enumerate(parts):
            table += (part,)
            if several and number == len(parts) - 1:
                self._arrays[table] = self._arrays.get(table, -1) + 1
            if table in self._arrays:
                table += (self._arrays[table],)
        self._blank()
        self.at += 2 if several else 1
        end, self.at = self.at, start
        self._here(table)
        self.at = end
        return table

    def _key(self) -> list[str]:
        parts = []
        while True:
            self._blank()
            string = _STRING.match(self.text, self.at)
            found = string or _BARE.match(self.text, self.at)
            if found is None:
                raise ValueError(f"no key at {self.at}")
            parts.append(found[0][1:-1] if string else found[0])
            self.at = found.end()
            self._blank()
            if self.text[self.at] != ".":
                return parts
            self.at += 1

    def _pair(self, table: Path) -> None:
        start = self.at
        path = table + tuple(self._key())
        end, self.at = self.at, start
        self._here(path)
        self.at = end + 1  # behind the =
        self._blank()
        self._value(path)

    def _value(self, path: Path) -> None:
        opening = self.text[self.at]
        if opening not in "[{":
            found = _STRING.match(self.text, self.at) or _SCALAR.match(self.text, self.at)
            self.at = found.end() if found is not None else len(self.text)
            return
        self.at += 1
        self._blank()
        number = 0
        while self.text[self.at] not in "]}":
            if opening == "[":
                self._here((*path, number))
                self._value((*path, number))
            else:
                self._pair(path)
            number += 1
            self._blank()
            if self.text[self.at] == ",":
                self.at += 1
                self._blank()
        self.at += 1
