"""Files on disk as bytes: packed ones within bounds, their encoding and fingerprint.

Which of them a path means is `containers`' matter, what stands in them `readers`'.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gemma_tune.errors import DataError, shown

SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt", ".md")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")  # read where a row names them
KNOWN = "JSON, JSONL, CSV, TSV, Parquet or plain text"
BLOCK_BYTES = 1 << 20
HEAD_BYTES = 1 << 20
MAX_UNPACKED_BYTES = 16_000_000_000  # of one packed file
MAX_RATIO, RATIO_COUNTS_FROM_BYTES = 200, 100_000_000  # text packs about 10 to 1; a bomb 1,000 to 1
MAX_ROW_BYTES = 32_000_000
PROBES_KEPT = 1_000
_AS_TEXT = f"Save it as {KNOWN} in UTF-8."
_WITH_ROWS = "Choose it together with a data file whose rows name it, or a zip file of both."
AS_CSV = "Save the table as CSV and upload that."
_BINARY = {  # how such a file begins -> what it is, the way out
    b"PK\x03\x04": ("an Excel file, or a zip file under another name", f"{AS_CSV} A zip file needs a name that ends in .zip."),
    b"\x1f\x8b": ("a gzip file under another name", "Give it a name that ends in .gz."),
    b"%PDF": ("a PDF file", "Copy its text into a file that ends in .txt."),
    b"\xd0\xcf\x11\xe0": ("an old Excel or Word file", AS_CSV),
    b"\x28\xb5\x2f\xfd": ("a Zstandard file", f"Unpack it. {_AS_TEXT}"),
    b"BZh": ("a bzip2 file", f"Unpack it. {_AS_TEXT}"),
    b"\xfd7zXZ": ("an xz file", f"Unpack it. {_AS_TEXT}"),
    b"ARROW1": ("an Arrow file", "Save it as Parquet."),
    b"\x89PNG": ("an image", _WITH_ROWS),
    b"\xff\xd8\xff": ("an image", _WITH_ROWS),
    b"RIFF": ("an image or a sound file", _WITH_ROWS),
    b"GIF8": ("an image", _WITH_ROWS),
}  # fmt: skip
UNPACKING = (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


@dataclass(frozen=True)
class DataFile:
    """One file of rows, packed or not."""

    path: Path
    label: str  # as it is shown
    suffix: str  # of what stands in it
    member: str = ""  # its name within a zip file

    def open(self) -> BinaryIO:
        """Its bytes, unpacked. DataError where they cannot be read."""
        with told(self.label):
            if self.member:
                archive = zipfile.ZipFile(self.path)
                packed = min(archive.getinfo(self.member).compress_size, self.path.stat().st_size)
                return _Bounded(archive.open(self.member), packed, self.label)
            if self.path.suffix.lower() == ".gz":
                return _Bounded(gzip.open(self.path), self.path.stat().st_size, self.label)
            return self.path.open("rb")

    @property
    def key(self) -> tuple[str, str, int, int]:
        """Changes where the file does."""
        found = self.path.stat()
        return str(self.path), self.member, found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class Probe:
    """What one pass over a file tells."""

    sha256: str
    bytes: int  # unpacked
    encoding: str
    note: str  # where the encoding had to be guessed


class _Bounded(io.RawIOBase):
    """A packed file that stops when it unpacks to more than any honest one."""

    def __init__(self, inner: BinaryIO, packed_bytes: int, label: str) -> None:
        self._inner, self._packed, self._label, self._read = inner, max(1, packed_bytes), label, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._inner.seekable()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._inner.seek(offset, whence)

    def tell(self) -> int:
        return self._inner.tell()

    def readinto(self, buffer) -> int:
        with told(self._label):
            count = self._inner.readinto(buffer)
        self._read += count or 0
        far = self._read > RATIO_COUNTS_FROM_BYTES and self._read > MAX_RATIO * self._packed
        if far or self._read > MAX_UNPACKED_BYTES:
            raise DataError.at(
                self._label, f"{self._packed:,} bytes unpack to more than {self._read:,}",
                "The file unpacks to far more than it should, as a decompression bomb does.",
                "Unpack it yourself, look at it, and upload what is inside.",
            )  # fmt: skip
        return count

    def close(self) -> None:
        self._inner.close()
        super().close()


@contextmanager
def told(label: str) -> Iterator[None]:
    """What the disk and the unpackers raise, as a DataError."""
    try:
        yield
    except FileNotFoundError:
        raise DataError.at(label, None, "There is no such file.", "Upload it, or correct the path.") from None
    except UNPACKING as error:
        raise DataError.at(
            label, str(error), "The packed file is damaged or cut off.", "Pack or upload it again."
        ) from None
    except UnicodeDecodeError as error:
        raise DataError.at(
            label, error.object[error.start : error.end],
            f"The file holds bytes that are no text in its encoding, {error.encoding}.", "Save it as UTF-8.",
        ) from None  # fmt: skip
    except OSError as error:
        raise DataError.at(
            label, error.strerror or error, "The file cannot be read.", "Check the path and its rights."
        ) from None


def shown_name(path: Path) -> str:
    """The name as it can be written anywhere: on a disk it may hold bytes that are no text."""
    return path.name.encode("utf-8", "replace").decode()


def safe_name(name: str) -> str:
    """The name without what a path or a shell could read otherwise; its last two suffixes are kept (.jsonl.gz)."""
    stem, *suffixes = name.split(".")
    if not stem:
        stem, suffixes = "upload", suffixes[-1:]
    ends = [re.sub(r"[^A-Za-z0-9]+", "", suffix)[:10] for suffix in suffixes[-2:]]
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", ".".join([stem, *suffixes[:-2]])).strip(".-")[:60] or "upload"
    return ".".join([stem, *filter(None, ends)])


def head(file: DataFile) -> bytes:
    """The first bytes, unpacked. DataError where they are not of a kind that is read here."""
    with file.open() as stream, told(file.label):
        found = _read_up_to(stream, HEAD_BYTES)
    for magic, (kind, way_out) in _BINARY.items():
        if found.startswith(magic):
            raise DataError.at(file.label, found[:8], f"This is {kind}, not text.", way_out)
    if not _is_utf16(found) and not found.startswith(b"PAR1") and b"\x00" in found[:4096]:
        line = found[: found.index(b"\x00")].count(b"\n") + 1
        raise DataError.at(
            f"{file.label} line {line}",
            found[:8],
            "The file holds bytes that are not text (a NUL).",
            _AS_TEXT,
        )
    return found


def _read_up_to(stream: BinaryIO, count: int) -> bytes:
    parts = []
    while count > 0 and (part := stream.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def blocks_of(stream: BinaryIO, label: str) -> Iterator[bytes]:
    while True:
        with told(label):
            block = stream.read(BLOCK_BYTES)
        if not block:
            return
        yield block


def probe(file: DataFile, watch: Callable[[int], object] = lambda count: None) -> Probe:
    """One pass: fingerprint and encoding. Kept for a file until it changes. `watch` is told the bytes as they are read."""
    with told(file.label):
        key = file.key
    if key not in _probed:
        _probed[key] = _pass_over(file, watch)
        while len(_probed) > PROBES_KEPT:
            _probed.pop(next(iter(_probed)))
    return _probed[key]


_probed: dict[tuple, Probe] = {}


def _pass_over(file: DataFile, watch: Callable[[int], object]) -> Probe:
    digest, total, lines = hashlib.sha256(), 0, 1
    decoder = codecs.getincrementaldecoder("utf-8")()
    first_bad, first = 0, b""
    with file.open() as stream:
        for block in blocks_of(stream, file.label):
            first = (first + block[:4])[:4]
            digest.update(block)
            total += len(block)
            watch(len(block))
            if first_bad or file.suffix == ".parquet":
                continue
            try:
                decoder.decode(block)
                lines += block.count(b"\n")
            except UnicodeDecodeError as error:
                first_bad = lines + block.count(b"\n", 0, max(0, error.start))
    if decoder.getstate()[0] and not first_bad:  # it ends within a character
        first_bad = lines
    encoding, note = _encoding(file, first, first_bad)
    return Probe(digest.hexdigest(), total, encoding, note)


def _encoding(file: DataFile, first: bytes, first_bad_line: int) -> tuple[str, str]:
    if _is_utf16(first):
        return "utf-16", "Read as UTF-16, by its byte order mark."
    if not first_bad_line:
        return "utf-8-sig" if first.startswith(codecs.BOM_UTF8) else "utf-8", ""
    western = _decodes(file, "cp1252")
    label = "Windows-1252 (Western European)" if western else "Latin-1"
    note = f"Line {first_bad_line} is not UTF-8, so the file was read as {label}. If accents look wrong, save it as UTF-8."
    return "cp1252" if western else "latin-1", note


def _decodes(file: DataFile, encoding: str) -> bool:
    decoder = codecs.getincrementaldecoder(encoding)()
    with file.open() as stream:
        try:
            for block in blocks_of(stream, file.label):
                decoder.decode(block)
        except UnicodeDecodeError:
            return False
    return True


def guessed_encoding(start: bytes) -> str:
    """From the first bytes alone, for a look at the first rows."""
    if _is_utf16(start):
        return "utf-16"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start, final=len(start) < HEAD_BYTES)
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8-sig" if start.startswith(codecs.BOM_UTF8) else "utf-8"


def _is_utf16(start: bytes) -> bool:
    return start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and start[:4] != codecs.BOM_UTF32_LE


def text_of_file(file: DataFile, encoding: str) -> io.TextIOWrapper:
    """The text of a file, line ends as they stand.

    An encoding that was only guessed from the beginning may fail later: then a mark stands for what cannot be read.
    """
    raw = file.open()
    buffered = raw if isinstance(raw, io.BufferedIOBase) else io.BufferedReader(raw, BLOCK_BYTES)
    errors = "strict" if encoding == "utf-16" else "replace"
    return io.TextIOWrapper(buffered, encoding=encoding, errors=errors, newline="")


class Lines:
    """The lines of a text, none of them longer than a row may be."""

    def __init__(self, text: io.TextIOWrapper, label: str) -> None:
        self._text, self._label, self._read, self._number = text, label, 0, 0

    def __iter__(self) -> Iterator[str]:
        while True:
            with told(self._label):
                line = self._text.readline(MAX_ROW_BYTES + 1)
            if not line:
                return
            self._number += 1
            self._read += len(line)
            if len(line) > MAX_ROW_BYTES:
                raise DataError.at(
                    f"{self._label} line {self._number}", shown(line[:200]),
                    f"The line is longer than {MAX_ROW_BYTES // 1_000_000} MB, more than any row to learn from.",
                    "Write one row per line, or split it into several rows.",
                )  # fmt: skip
            yield line.lstrip("\ufeff") if self._number == 1 else line

    def taken(self) -> int:
        """Characters since the last time."""
        read, self._read = self._read, 0
        return read


def no_row(file: DataFile, start: str) -> DataError:
    return DataError.at(file.label, start, "The file holds no row.", "Choose a file with at least one row.")
