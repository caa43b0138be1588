"""Lines to fields: by Arrow in the thread that reads ahead, where a line is nothing but fields and separators.

The odd lines of a block (of more or fewer fields), blocks with many of them, and whatever Arrow would read in another
way are left to SQL, which splits one line like the other: it takes longer, on the thread that has the most to do.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.csv as pv

from pipeline.warehouse import literal

MANY = 64  # odd lines of a block, from which on SQL splits all of them
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Splitter:
    """Adds the column ``split`` to lines: a structure of their ``width`` fields, null where that is left to ``sql``."""

    separator: str
    quote: str  # or empty
    width: int

    @property
    def kind(self) -> pa.StructType:
        return pa.struct([(f"field{place}", pa.string()) for place in range(1, self.width + 1)])

    def schema(self, lines: pa.Schema) -> pa.Schema:
        return lines.append(pa.field("split", self.kind))

    def split(self, lines: pa.RecordBatch, block: bytes) -> Iterator[pa.RecordBatch]:
        """The lines of a block in their order, those that are split apart from those that are not."""
        fields, odd = self._by_arrow(block, len(lines)) or (pa.nulls(len(lines), self.kind), [])
        start = 0
        for place in [*odd, len(lines)]:
            plain, one = lines.slice(start, place - start), lines.slice(place, 1)
            for some, split in ((plain, fields.slice(0, len(plain))), (one, pa.nulls(len(one), self.kind))):
                if len(some):
                    yield pa.record_batch([*some.columns, split], schema=self.schema(lines.schema))
            fields, start = fields.slice(len(plain)), place + 1

    def _by_arrow(self, block: bytes, lines: int) -> tuple[pa.StructArray, list[int]] | None:
        """The fields of the lines, and the places of those that are missing; None if it might read them otherwise."""
        is_plain = self.width > 1 and len(self.separator.encode()) == 1 and self.separator not in "\r\n"
        has_quotes = self.quote and self.quote.encode() in block
        if not is_plain or has_quotes or block.startswith(BOM) or breaks(block) != lines:
            return None
        odd: list[int] = []

        def skip(row: pv.InvalidRow) -> str:
            odd.append(row.number - 1)
            return "skip" if len(odd) < MANY else "error"

        names = [field.name for field in self.kind]
        try:
            table = pv.read_csv(
                pa.py_buffer(block),
                pv.ReadOptions(column_names=names, use_threads=False, block_size=len(block)),
                pv.ParseOptions(
                    delimiter=self.separator, quote_char=False, ignore_empty_lines=False, invalid_row_handler=skip
                ),
                pv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), check_utf8=False),
            )
        except pa.ArrowInvalid:
            return None
        if len(table) + len(odd) != lines:  # a carriage return is a line break to Arrow
            return None
        return pa.StructArray.from_arrays([column.combine_chunks() for column in table.columns], names), odd

    @property
    def sql(self) -> str:
        """The fields of ``text`` as a list. Null where quotes do not pair."""
        separator = literal(self.separator)
        plain = f"string_split(text, {separator})"
        if not self.quote:
            return plain
        q, s = (_escaped(part) for part in (self.quote, self.separator))
        # A separator in front, so that every match consumes one and none is empty.
        pattern = literal(f"{s}({q}(?:[^{q}]|{q}{q})*{q}|[^{q}{s}][^{s}]*|)")
        body = f"{separator} || text"
        found = f"regexp_extract_all({body}, {pattern}, 1)"
        mark, double = literal(self.quote), literal(self.quote * 2)
        unquoted = (
            f"list_transform({found}, lambda x: if(starts_with(x, {mark}), replace(x[2:-2], {double}, {mark}), x))"
        )
        whole = f"{separator} || array_to_string({found}, {separator}) = {body}"
        return f"case when not contains(text, {mark}) then {plain} when {whole} then {unquoted} end"


def breaks(block: bytes) -> int:
    """How many line breaks a block has. (``bytes.count`` takes several times as long where there are many.)"""
    return int(np.count_nonzero(np.frombuffer(block, np.uint8) == ord("\n")))


def _escaped(character: str) -> str:
    """A character for a regular expression, also within brackets."""
    return f"\\x{ord(character):02x}" if len(character) == 1 and not character.isalnum() else character
