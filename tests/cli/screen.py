"""A terminal small enough to be trusted: what a person sees after the bytes that a program wrote."""

from __future__ import annotations

import re
import unicodedata


class Screen:
    """Rows of cells; knows the few sequences that the console and tqdm write. Wraps late, as real terminals do."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.rows: list[list[str]] = [[]]
        self.row = self.column = 0
        self.saved = (0, 0)

    def feed(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|\x1b[78]|[\s\S]", text):
            if part == "\n":
                self._down()
            elif part == "\r":
                self.column = 0
            elif part == "\x1b7":
                self.saved = (self.row, self.column)
            elif part == "\x1b8":
                self.row, self.column = self.saved
            elif part == "\x1b[K":
                del self.rows[self.row][self.column :]
            elif part == "\x1b[A":
                self.row = max(0, self.row - 1)
            elif not part.startswith("\x1b"):
                assert part >= " ", f"control character {part!r}"
                self._put(part)

    def _down(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.rows):
            self.rows.append([])

    def _put(self, character: str) -> None:
        width = 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if self.column + width > self.columns:
            self._down()
        row = self.rows[self.row]
        row.extend(" " * (self.column + width - len(row)))
        row[self.column : self.column + width] = [character] + [""] * (width - 1)
        self.column += width

    def lines(self) -> list[str]:
        return ["".join(row).rstrip() for row in self.rows]
