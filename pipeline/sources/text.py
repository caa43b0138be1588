"""Text files to rows, for every source that is not Parquet: plain, gzip, bz2, lz4 or zstd, however dirty.

``read_lines`` gives every line of a file its number and says what is wrong with its bytes; ``read_rows`` splits lines
into named columns and says what is wrong with their number. No line is dropped and no file is held in memory: blocks
are cut at line breaks with numpy and handed to DuckDB without a copy. (DuckDB's own CSV reader is as fast, but numbers
no rows, skips blank lines, and stops at a file that is cut off in the middle of a gzip member.) A record is a line: a
quoted field cannot hold a line break. How a line is split is the matter of ``fields``.
"""

import codecs
import csv
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from duckdb import DuckDBPyConnection, DuckDBPyRelation

from pipeline.errors import ConfigError, DataError, nearest
from pipeline.sources.fields import BOM, Splitter, breaks
from pipeline.warehouse import ahead, quote

BLOCK = 1 << 22  # bytes read at a time
PIECE = 1 << 13  # bytes unpacked at a time
MANY = 32  # undecodable lines of a block, from which on its lines are looked at one by one
LONGEST = 1 << 20  # bytes of a line; what is longer is refused, so that memory stays bounded
LINES = pa.schema({"line": pa.int64(), "text": pa.string(), "broken": pa.string(), "torn": pa.bool_()})
CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".zstd": "zstd", ".lz4": "lz4"}
ARCHIVES = {".zip", ".7z", ".rar", ".tar", ".tgz", ".xz"}
ADDED = ("line", "raw", "fault")  # columns of read_rows besides the file's own
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Layout:
    """How a text file keeps its columns."""

    columns: tuple[str, ...] = ()  # their names in the file's order; empty: the first line names them
    separator: str = ","
    quote: str = ""  # the character around fields that hold a separator; empty where the format has none
    encoding: str = "utf-8"
    needed: tuple[str, ...] = ()  # of a header: columns without which nothing can be read

    def __post_init__(self) -> None:
        if not self.separator or (self.quote and len(self.separator) > 1):
            raise ConfigError(f"separator {self.separator!r}: give one character (without quoted fields, one or more).")
        if len(self.quote) > 1 or self.quote == self.separator:
            raise ConfigError(f"quote {self.quote!r}: give one character that is not the separator, or none.")
        try:
            known = "a\n".encode(self.encoding).endswith(b"a\n")
        except LookupError:
            known = False
        if not known:
            raise ConfigError(f"encoding {self.encoding!r} cannot be read; name another (utf-8, latin-1, cp1252 …).")


def read_rows(con: DuckDBPyConnection, path: Path, layout: Layout, only: Array | None = None) -> DuckDBPyRelation:
    """The rows of a file: its columns as text, then ``line`` (1-based), ``raw`` (the line) and ``fault`` (or null).

    A row with a fault has unusable columns. ``only`` limits it to some lines, sorted. The relation can be scanned once;
    the connection holds one such file at a time. Raises DataError for a header without the needed columns.
    """
    names = layout.columns or header(path, layout)
    _tell_apart(path, names)
    last = len(names)
    splitter = Splitter(layout.separator, layout.quote, last)
    blocks = ahead(list(splitter.split(*block)) for block in _blocks_of_lines(path, layout.encoding, only))
    con.register("lines", pa.RecordBatchReader.from_batches(splitter.schema(LINES), chain.from_iterable(blocks)))
    blank = "trim(text, ' ' || chr(9)) = ''"
    columns = [
        f"if(split is null, fields[{place}], split.field{place}) as {quote(name)}"
        for place, name in enumerate(names, start=1)
    ]
    return con.sql(
        f"""
        with fields as (
            select *, if(split is null, {splitter.sql}, null) as fields
            from lines
            where line > {int(not layout.columns)}
        )
        select
            {", ".join(columns)},
            line,
            if(strlen(text) <= 2000, text, left(text, 2000)) as raw,
            case
                when broken is not null then broken
                when text = '' then 'blank line'
                when split is not null then null
                when len(fields) = {last}{f" and not {blank}" * (last == 1)} then null
                when {blank} then 'blank line'
                when fields is null then 'a quote is not closed, or text follows one'
                when torn then 'torn last line'
                else 'has ' || len(fields) || ' columns instead of {last}'
            end as fault
        from fields
        """
    )


def count_rows(path: Path, layout: Layout) -> int:
    """The lines of a file less its header, counted without parsing them."""
    return max(0, count_lines(path) - (not layout.columns))


def header(path: Path, layout: Layout) -> tuple[str, ...]:
    """The column names in the first line; a blank one becomes ``column0`` for the first place and so on.

    Raises DataError when there is no such line, when a needed name is missing, or when two cannot be told apart.
    """
    first = first_line(path, layout.encoding)
    if not first.strip():
        raise DataError(f"{path} does not start with a line of column names; fetch it again, or remove it.")
    if "\0" in first:
        raise DataError(f"{path} is not plain text, or written in UTF-16; save it as UTF-8.")
    fields = _split(first, layout)
    names = tuple(name.strip() or f"column{place}" for place, name in enumerate(fields))
    if missing := [name for name in layout.needed if name not in names]:
        raise DataError(f"{path} has no column {missing[0]!r}; {nearest(missing[0], names)}")
    return names


def _tell_apart(path: Path, names: Sequence[str]) -> None:
    """Raise DataError for a name that comes twice, also in other letters (SQL's rule), or that is one of ours."""
    lower = [name.lower() for name in names]
    for name in names:
        if name.lower() in ADDED:
            raise DataError(f"{path} has a column {name!r}, which is the name of a column that is added; rename it.")
        if lower.count(name.lower()) > 1:
            raise DataError(f"{path} names the column {name!r} twice; rename one of them.")


def text_files(folder: Path, pattern: str, header_lines: int = 0) -> list[Path]:
    """The files of a folder with a name of this pattern, plain or compressed, in the order of their names.

    Raises DataError for one that holds no rows, and for one in an archive if there is no other.
    """
    paths = sorted(path for path in folder.glob(f"{pattern}*") if path.is_file())
    packed = [path for path in paths if ARCHIVES & {suffix.lower() for suffix in path.suffixes}]
    found = [path for path in paths if path.suffix.lower() in {Path(pattern).suffix, *CODECS} and path not in packed]
    if packed and not found:
        raise DataError(f"{packed[0]} is an archive; unpack it into the same folder.")
    for path in found:
        if not has_rows(path, header_lines):
            raise DataError(f"{path} holds no rows; fetch it again, or remove it if another file replaces it.")
    return found


def has_rows(path: Path, header_lines: int = 0) -> bool:
    """Whether anything follows the header. No more is read than it takes to see that."""
    for block in _blocks(path, min(PIECE, BLOCK)):
        if isinstance(block, _Damage) or (block and not header_lines):
            return True
        _, newline, rest = block.partition(b"\n")
        if rest:
            return True
        header_lines -= bool(newline)
    return False


def read_lines(con: DuckDBPyConnection, path: Path, encoding: str = "utf-8", only: Array | None = None) -> None:
    """Register ``lines``: line (1-based), text (without its line break), broken (why its bytes are no text, or null),
    torn (the file ends here without a line break).

    It can be scanned once. ``only`` (sorted line numbers) limits it; nothing is read past the last of them.
    """
    batches = (lines for lines, _ in _blocks_of_lines(path, encoding, only))
    con.register("lines", pa.RecordBatchReader.from_batches(LINES, ahead(batches)))


def count_lines(path: Path) -> int:
    """The lines that ``read_lines`` gives, a torn last one included."""
    lines, last = 0, b"\n"
    for block in _blocks(path):
        if isinstance(block, _Damage):
            return lines + (last != b"\n") + 1
        lines += breaks(block)
        last = block[-1:] or last
    return lines + (last != b"\n")


class _Damage(str):
    """What ends a compressed file before its time."""


def _blocks(path: Path, size: int | None = None) -> Iterator[bytes | _Damage]:
    """A file's bytes in blocks, unpacked, without a byte order mark; a _Damage where it cannot be unpacked further."""
    position, damage, size = 0, None, size or BLOCK
    with _opened(path) as stream:
        while damage is None:
            block, damage = _block(stream, size, PIECE if path.suffix.lower() in CODECS else size)
            if damage:
                block += _last_bytes(path, position + len(block))
            if block:
                yield block if position else block.removeprefix(BOM)
                position += len(block)
            elif damage is None:
                return
        yield damage


@contextmanager
def _opened(path: Path) -> Iterator[pa.NativeFile]:
    codec = CODECS.get(path.suffix.lower())
    with pa.OSFile(str(path)) as file, pa.CompressedInputStream(file, codec) if codec else file as stream:
        yield stream


def _block(stream: pa.NativeFile, size: int, piece: int) -> tuple[bytes, _Damage | None]:
    """The next block, read in pieces: a piece in which something is damaged is not given at all."""
    pieces = []
    for _ in range(size // piece):
        try:
            pieces.append(stream.read(piece))
        except OSError as error:
            reason = str(error).splitlines()[0]
            return b"".join(pieces), _Damage(f"the compressed file is cut off or damaged here: {reason}")
        if not pieces[-1]:
            break
    return b"".join(pieces), None


def _last_bytes(path: Path, start: int) -> bytes:
    """The sound bytes of the piece at ``start`` that cannot be read whole: read again, one by one."""
    found = []
    with _opened(path) as stream:
        for skipped in range(0, start, BLOCK):
            stream.read(min(BLOCK, start - skipped))
        with suppress(OSError):
            while byte := stream.read(1):
                found.append(byte)
    return b"".join(found)


def _blocks_of_lines(path: Path, encoding: str, only: Array | None) -> Iterator[tuple[pa.RecordBatch, bytes]]:
    """Lines as they are registered, and as bytes."""
    line, rest, damage, overlong = 1, b"", None, False
    for block in _blocks(path):
        if isinstance(block, _Damage):
            damage = block
            break
        if overlong and b"\n" not in block:
            continue  # in the middle of a line that is refused already
        end = block.rfind(b"\n") + 1
        whole, rest = (b"".join([rest, memoryview(block)[:end]]), block[end:]) if end else (b"", rest + block)
        overlong = len(rest) > LONGEST
        rest = rest[: LONGEST + 1]
        if whole:
            ends = np.flatnonzero(np.frombuffer(whole, np.uint8) == 10) + 1  # [L] behind each line break
            yield from _block_of_lines(whole, ends, line, encoding, only)
            line += len(ends)
        if only is not None and (not len(only) or line > only[-1]):
            return
    if rest:
        for torn, text in _block_of_lines(rest, np.array([len(rest)]), line, encoding, only):
            torn = torn.set_column(3, LINES.field("torn"), pa.array([True]))
            if damage:
                torn = torn.set_column(2, LINES.field("broken"), pa.array(["cut off with its compressed file"]))
            yield torn, text
        line += 1
    if damage and (only is None or line in only):
        yield pa.record_batch([[line], [""], [str(damage)], [True]], schema=LINES), b""


def _block_of_lines(
    block: bytes, ends: Array, first: int, encoding: str, only: Array | None
) -> Iterator[tuple[pa.RecordBatch, bytes]]:
    """The lines of a block that ends behind its last line, or those of them that are wanted."""
    numbers = np.arange(first, first + len(ends))
    if only is not None:
        numbers = only[slice(*np.searchsorted(only, [first, first + len(ends)]))]
        if not len(numbers):
            return
        block, ends = _joined(_cut(block, ends, numbers - first))
    block, ends, faults = _readable(block, ends, encoding)
    broken = pa.nulls(len(ends), pa.string())
    if faults:
        places = np.full(len(ends), -1)
        places[list(faults)] = np.arange(len(faults))
        broken = pa.array(list(faults.values()), pa.string()).take(pa.array(places, mask=places < 0))
    whole = pa.array(np.zeros(len(ends), bool))
    yield pa.record_batch([pa.array(numbers), _text(block, ends), broken, whole], schema=LINES), block


def _text(block: bytes, ends: Array) -> pa.StringArray:
    """Lines without their breaks."""
    offsets = np.zeros(len(ends) + 1, np.int32)
    offsets[1:] = ends
    letters = block.replace(b"\n", b"")
    if b"\r" in letters or len(letters) + len(ends) > len(block):
        whole = pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(block))
        return pc.ascii_rtrim(whole, "\r\n")
    offsets -= np.arange(len(offsets), dtype=np.int32)  # every break is one byte: five times as fast
    return pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(letters))


def _cut(block: bytes, ends: Array, places: Iterable[int]) -> list[bytes]:
    """Some lines of a block."""
    starts = np.r_[0, ends[:-1]]
    return [block[starts[place] : ends[place]] for place in places]


def _joined(lines: Sequence[bytes]) -> tuple[bytes, Array]:
    """Lines as a block, and where each ends."""
    return b"".join(lines), np.cumsum([len(line) for line in lines])


def _readable(block: bytes, ends: Array, encoding: str) -> tuple[bytes, Array, dict[int, str]]:
    """A block as UTF-8, where its lines end, and what is wrong with the bytes of some, by place.

    Bytes that are no text are written as escapes, so that a person can read them.
    """
    faults = _faults(block, ends, encoding)
    is_utf8 = codecs.lookup(encoding).name == "utf-8"
    if not faults and (is_utf8 or block.isascii()):
        return block, ends, faults
    if not is_utf8 or len(faults) > MANY:
        lines = _cut(block, ends, range(len(ends)))
        return *_joined([_decoded(line[: LONGEST + 1], encoding) for line in lines]), faults
    pieces, start = [], 0  # sound stretches, and the faulty lines between them
    for place in sorted(faults):
        begin = int(ends[place - 1]) if place else 0
        pieces += [block[start:begin], _decoded(block[begin : ends[place]][: LONGEST + 1], encoding)]
        start = int(ends[place])
    lengths = np.diff(ends, prepend=0)
    for number, place in enumerate(sorted(faults)):
        lengths[place] = len(pieces[2 * number + 1])
    return b"".join([*pieces, block[start:]]), np.cumsum(lengths), faults


def _faults(block: bytes, ends: Array, encoding: str) -> dict[int, str]:
    """What is wrong with the bytes of some lines, by place."""
    found = dict.fromkeys(np.flatnonzero(np.diff(ends, prepend=0) > LONGEST).tolist(), f"longer than {LONGEST:,} bytes")
    if b"\0" in block:
        nuls = np.flatnonzero(np.frombuffer(block, np.uint8) == 0)
        for place in np.unique(np.searchsorted(ends, nuls, side="right")).tolist():
            found.setdefault(place, "holds a NUL byte")
    for place in () if block.isascii() else _undecodable(block, ends, encoding):
        found.setdefault(place, f"not valid {encoding.upper()}")
    return found


def _undecodable(block: bytes, ends: Array, encoding: str) -> list[int]:
    """The places of the lines that are no text in the encoding."""
    outside = np.flatnonzero(np.frombuffer(block, np.uint8) > 127)  # of ASCII, which every encoding has
    doubtful = np.unique(np.searchsorted(ends, outside, side="right")).tolist()
    if len(doubtful) <= MANY:
        lines = zip(doubtful, _cut(block, ends, doubtful), strict=True)
        return [place for place, line in lines if _is_broken(line, encoding)]
    found: list[int] = []
    start = 0
    while start < len(block) and len(found) < MANY:
        try:
            block[start:].decode(encoding)
            return found
        except UnicodeDecodeError as error:
            found.append(int(np.searchsorted(ends, start + error.start, side="right")))
            start = int(ends[found[-1]])
    # Many: each try would decode all that follows once more.
    first = len(ends) if start >= len(block) else int(np.searchsorted(ends, start, side="right"))
    rest = range(first, len(ends))
    lines = zip(rest, _cut(block, ends, rest), strict=True)
    return found + [place for place, line in lines if _is_broken(line, encoding)]


def _is_broken(line: bytes, encoding: str) -> bool:
    try:
        line.decode(encoding)
    except UnicodeDecodeError:
        return True
    return False


def _decoded(raw: bytes, encoding: str) -> bytes:
    return raw.decode(encoding, errors="backslashreplace").replace("\0", "\\x00").encode()


def first_line(path: Path, encoding: str = "utf-8") -> str:
    """The first line of a file as text, without its line break, whatever its bytes."""
    first = b""
    for block in _blocks(path):
        first += b"" if isinstance(block, _Damage) else block
        if b"\n" in first or len(first) > LONGEST:
            break
    return first.split(b"\n", 1)[0][:LONGEST].decode(encoding, errors="replace").rstrip("\r")


def _split(line: str, layout: Layout) -> Sequence[str]:
    if not layout.quote:
        return line.split(layout.separator)
    return next(csv.reader([line], delimiter=layout.separator, quotechar=layout.quote), [])
