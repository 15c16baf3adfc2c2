"""Rows in the normal form on disk: written once for a source, schema and fixes, then looked up by any process.

A folder of the cache, whole or not there: `rows.jsonl` (a row a line), `facts.bin` and `sketches.bin` (see `facts`),
`ends.bin` (where each line ends), `rejected.jsonl`, `meta.json`, and where rows have images a folder of them. A run's
own folder holds the same files.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import orjson

from gemma_tune import hub
from gemma_tune.data import facts
from gemma_tune.data.facts import FACTS, SKETCH
from gemma_tune.data.formats import reader
from gemma_tune.data.images import Images
from gemma_tune.data.json_rows import parse_lines
from gemma_tune.data.parallel import Watch, in_order
from gemma_tune.data.rows import Opened, Records, Rejected, Row, Schema
from gemma_tune.errors import DataError

VERSION = 3  # of what is written; another one is not read
CACHE_BYTES = 20_000_000_000
DRAFT_SECONDS = 24 * 3600  # after which an unfinished folder belongs to nobody
FILES = ("rows.jsonl", "facts.bin", "sketches.bin", "ends.bin", "rejected.jsonl")
META = "meta.json"
ROWS_WITH_IMAGES = 100  # in a piece
IMAGE_WORK_BYTES = 1_000_000  # of text that is as much work as such a piece
IMAGES = "images"  # the folder of those that rows name, by a digest of their bytes


@dataclass(frozen=True)
class Part:
    """One source of a mix with how it is read."""

    opened: Opened
    schema: Schema
    fixes: tuple[str, ...] = ()
    split_column: str = ""
    weight: float = 1.0
    held_back: bool = False  # its rows are all for validation
    beside: str = ""  # changes with the images beside it, where its rows name some

    def key(self) -> str:
        """Equal exactly where the rows that come out are."""
        read_as = [
            self.schema.format,
            self.schema.columns,
            sorted(self.fixes),
            self.split_column,
            self.held_back,
            self.beside,
        ]
        return json.dumps([self.opened.fingerprint(), *read_as], sort_keys=True)


@dataclass(frozen=True)
class Converted:
    """What one piece of a source becomes."""

    file: str
    rows: bytes
    ends: np.ndarray  # of the lines in `rows`
    facts: np.ndarray
    sketches: np.ndarray
    rejected: bytes
    rejected_count: int
    read_bytes: int
    with_images: int  # rows


class Store:
    """The rows of a folder, each by its index. Only what is asked for is in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        self.key: str = meta["key"]
        self.files: list[str] = meta["files"]
        self.rejected_count: int = meta["rejected"]
        self.has_images: bool = bool(meta.get("images"))  # whether any of its rows has one

    def __len__(self) -> int:
        return len(self.facts)

    @cached_property
    def facts(self) -> np.ndarray:
        """(n,) of FACTS."""
        return mapped(self.folder / "facts.bin", FACTS)

    @cached_property
    def sketches(self) -> np.ndarray:
        """(n, SKETCH)"""
        return mapped(self.folder / "sketches.bin", np.uint32).reshape(-1, SKETCH)

    @cached_property
    def ends(self) -> np.ndarray:
        """(n + 1,): where each row begins, and the end."""
        return np.concatenate([[0], mapped(self.folder / "ends.bin", np.int64)])

    def row(self, index: int) -> Row:
        return Row.from_json(next(self.lines([index])))

    def rows(self, indices: Iterable[int]) -> Iterator[Row]:
        return map(Row.from_json, self.lines(indices))

    def lines(self, indices: Iterable[int]) -> Iterator[bytes]:
        with (self.folder / "rows.jsonl").open("rb") as file:
            for index in indices:
                file.seek(int(self.ends[index]))
                yield file.read(int(self.ends[index + 1] - self.ends[index]))

    def blocks(self, size_bytes: int = 1 << 20) -> Iterator[bytes]:
        """All rows in order, some whole lines at a time."""
        begin = 0
        with (self.folder / "rows.jsonl").open("rb") as file:
            while begin < len(self):
                end = int(np.searchsorted(self.ends, self.ends[begin] + size_bytes, "right")) - 1
                end = max(end, begin + 1)
                yield file.read(int(self.ends[end] - self.ends[begin]))
                begin = end

    def rejected(self) -> Iterator[Rejected]:
        with (self.folder / "rejected.jsonl").open("rb") as file:
            for line in file:
                values = orjson.loads(line)
                yield Rejected(**values | {"fixes": tuple(values["fixes"])})

    def image_path(self, file: str) -> Path:
        """The file of an image that a row names."""
        return self.folder / IMAGES / file

    def copy_to(self, folder: Path) -> Store:
        """The same rows in another folder, without a second copy on the disk where that can be."""
        folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / IMAGES).is_dir():
            (folder / IMAGES).mkdir(exist_ok=True)
            for path in (self.folder / IMAGES).iterdir():
                _link_or_copy(path, folder / IMAGES)
        for name in (*FILES, META):  # meta.json last: it says that all are there
            _link_or_copy(self.folder / name, folder)
        return Store(folder)


def _link_or_copy(path: Path, folder: Path) -> None:
    draft = folder / f".{path.name}.part"
    draft.unlink(missing_ok=True)
    try:
        os.link(path, draft)
    except OSError:
        shutil.copyfile(path, draft)
    draft.replace(folder / path.name)
    draft.unlink(missing_ok=True)  # where both were the same file already, it still stands


def holds_images(folder: Path) -> bool:
    """Whether the rows kept in a folder have images; False where none are kept."""
    return (folder / META).is_file() and Store(folder).has_images


def stored(parts: list[Part], watch: Watch) -> Store:
    """The rows of all parts, from the cache where they are there. DataError where a source cannot be read."""
    key = hashlib.sha256(
        "\n".join([f"rows {VERSION}", *(part.key() for part in parts)]).encode()
    ).hexdigest()[:32]
    return Store(cached(f"rows-{key}", partial(_write, parts, key, watch)))


def cached(name: str, write: Callable[[Path], None]) -> Path:
    """The folder of the cache under that name; where there is none, `write` fills one, which then appears whole."""
    root = hub.home() / "cache"
    folder = root / name
    if (folder / META).is_file():
        os.utime(folder)
        return folder
    draft = root / f".{name}.{os.getpid()}-{time.monotonic_ns()}"
    try:
        with _told(root):
            draft.mkdir(parents=True)
            write(draft)
            _appear(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    with suppress(FileNotFoundError):  # another process forgets at the same time
        _forget_drafts(root)
        _forget_oldest(root, folder)
    return folder


def _appear(draft: Path, folder: Path) -> None:
    """Another process may have been faster, or was ended while it forgot the folder."""
    try:
        draft.replace(folder)
    except OSError:
        if not (folder / META).is_file():
            shutil.rmtree(folder, ignore_errors=True)
            draft.replace(folder)


@contextmanager
def _told(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError.at(
            str(root), error.strerror or error, "The prepared rows cannot be written to this disk.",
            "Free some space there, or set GEMMA_TUNE_HOME to a folder that can be written.",
        ) from None  # fmt: skip


def _forget_drafts(root: Path) -> None:
    """What processes left that were killed: nothing was written there for a day."""
    for draft in root.glob(".*"):
        last = max(
            path.stat().st_mtime for path in (draft, *draft.glob("*"))
        )  # a folder's is that of its last file
        if time.time() - last > DRAFT_SECONDS:
            shutil.rmtree(draft, ignore_errors=True)


def _forget_oldest(root: Path, but: Path) -> None:
    """What was used longest ago goes first; a run has its own copy."""
    folders = sorted((one for one in root.glob("[!.]*") if one != but), key=lambda one: one.stat().st_mtime)
    total = sum(_bytes_in(folder) for folder in [*folders, but])
    for folder in folders:
        if total <= CACHE_BYTES:
            return
        total -= _bytes_in(folder)
        shutil.rmtree(folder, ignore_errors=True)


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _write(parts: list[Part], key: str, watch: Watch, folder: Path) -> None:
    total = sum(part.opened.total_bytes or 0 for part in parts) or None
    names: dict[str, int] = {}
    position = done = rejected = with_images = 0
    with appending(folder, FILES) as files:
        for one in in_order(
            partial(convert_piece, parts=_light(parts), images=folder / IMAGES),
            _pieces(parts),
            lambda piece: piece[1].read_bytes + (IMAGE_WORK_BYTES if parts[piece[0]].beside else 0),
        ):
            found = one.facts
            found["file"] = names.setdefault(one.file, len(names))
            for name, content in zip(
                FILES, (one.rows, found.tobytes(), one.sketches.tobytes(), (one.ends + position).tobytes(), one.rejected),
                strict=True,
            ):  # fmt: skip
                files[name].write(content)
            position += len(one.rows)
            done += one.read_bytes
            rejected += one.rejected_count
            with_images += one.with_images
            watch("reading", done, total)
    meta = {"version": VERSION, "key": key, "files": list(names) or [""], "rejected": rejected}
    meta |= {"images": with_images} if with_images else {}
    (folder / META).write_text(json.dumps(meta), encoding="utf-8")


@contextmanager
def appending(folder: Path, names: Iterable[str]) -> Iterator[dict]:
    """The files of a folder, open to be written one after the other."""
    files = {name: (folder / name).open("wb") for name in names}
    try:
        yield files
    finally:
        for file in files.values():
            file.close()


def _light(parts: list[Part]) -> list[tuple]:
    """What a process needs of each part to convert its rows."""
    several = len(parts) > 1
    return [
        (part.schema, part.fixes, part.split_column, part.held_back, part.opened.name if several else "")
        for part in parts
    ]


def _pieces(parts: list[Part]) -> Iterator[tuple[int, Records]]:
    for index, part in enumerate(parts):
        for records in part.opened.records():
            for some in _few_rows(records) if part.beside else [records]:
                yield index, some


def _few_rows(records: Records) -> Iterator[Records]:
    """The same rows in more pieces, since their images are the work, so that it can be shared out, watched and stopped."""
    lines = records.lines.split(b"\n") if records.lines else []
    numbers = records.numbers or range(records.first, records.first + len(records.values))
    yield replace(records, lines=b"", values=[], numbers=[])  # what could not be read, and the bytes
    for start in range(0, len(lines), ROWS_WITH_IMAGES):
        some = b"\n".join(lines[start : start + ROWS_WITH_IMAGES])
        yield Records(records.first + start, some, file=records.file, origin=records.origin)
    for start in range(0, len(records.values), ROWS_WITH_IMAGES):
        some = slice(start, start + ROWS_WITH_IMAGES)
        yield Records(
            records.first, values=records.values[some], numbers=list(numbers[some]), file=records.file,
            origin=records.origin,
        )  # fmt: skip


def convert_piece(piece: tuple[int, Records], parts: list[tuple], images: Path | None = None) -> Converted:
    """The rows of one piece in the normal form, with what is noted of each; their images are kept in a folder."""
    index, records = piece
    schema, fixes, split_column, held_back, source = parts[index]
    label = " › ".join(filter(None, (source, records.file)))
    keep = Images(records.origin, images).keep
    read = reader(schema, frozenset(fixes), split_column, label, held_back, keep)
    rows, rejected = [], list(records.rejected)
    for number, value in values_of(records):
        found = value if isinstance(value, Rejected) else read(number, value)
        (rejected if isinstance(found, Rejected) else rows).append(found)
    rejected = [_placed(one, label, held_back) for one in sorted(rejected, key=lambda one: one.number)]
    lines = [row.to_json() + b"\n" for row in rows]
    noted = [facts.noted(row, index) for row in rows]
    return Converted(
        label,
        b"".join(lines),
        np.cumsum([len(line) for line in lines], dtype=np.int64),
        np.array([one for one, _ in noted], FACTS),
        np.concatenate([sketch for _, sketch in noted] or [np.empty(0, np.uint32)]),
        b"".join(orjson.dumps(asdict(one)) + b"\n" for one in rejected),
        len(rejected),
        records.read_bytes,
        sum(bool(row.images) for row in rows),
    )


def values_of(records: Records) -> Iterator[tuple[int, object]]:
    """(number, value or Rejected) of each row of a piece."""
    if records.lines:
        yield from parse_lines(records)
    numbers = records.numbers or range(records.first, records.first + len(records.values))
    for number, value in zip(numbers, records.values, strict=True):
        if isinstance(value, Rejected):
            value = replace(value, number=number)
        yield number, value


def _placed(rejected: Rejected, label: str, held_back: bool) -> Rejected:
    return replace(rejected, file=label, side="validation" if held_back else "train")


def mapped(path: Path, kind: np.dtype | type) -> np.ndarray:
    """A file of numbers of one kind, read where it is looked at."""
    return np.memmap(path, kind, "r") if path.stat().st_size else np.empty(0, kind)


def let_go(array: np.ndarray) -> None:
    """Gives back the memory of what was read of a mapped file; it is read again when it is looked at again."""
    if isinstance(array, np.memmap):
        array._mmap.madvise(mmap.MADV_DONTNEED)
