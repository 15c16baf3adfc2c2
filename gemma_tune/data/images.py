"""The images of rows: what a cell or a part of a turn names → bytes → a file of the store, each decoded once.

An image comes with its row (bytes, a data URI) or lies beside the data file, in its folder or zip file. Nothing is fetched
from a network, and nothing outside that folder is opened. Where an image stands in its row is `placing`'s matter.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from gemma_tune import hub
from gemma_tune.data import files
from gemma_tune.data.files import DataFile
from gemma_tune.data.rows import Image, RowFault, Schema, Table
from gemma_tune.data.turns import IMAGE_KEYS, IMAGE_PARTS
from gemma_tune.errors import DataError

MAX_BYTES = 50_000_000  # of one image as it is packed
MAX_PIXELS = 50_000_000  # decoded; a photograph of a telephone has 12 to 48 million
MAX_SIDE = 20_000
FORMATS = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp"}
_OPENED = [
    name for name in FORMATS if name != "MPO"
]  # which is a JPEG of several pictures, and is opened as one
KNOWN = "PNG, JPEG, WebP, GIF or BMP"
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM")
_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,", re.I)
_SCHEME = re.compile(r"([a-z][\w.+-]+):", re.I)  # of two letters at least: a single one is a drive
_TOGETHER = "Upload it together with the data file, or pack both into one zip file; with several folders only a zip keeps them."
_UPRIGHT = 1  # the EXIF orientation of an image that is stored as it is looked at
_ORIENTATION = 0x0112


class Images:
    """Finds, checks and keeps the images that one piece of a source names.

    `origin`: the data file that names them, where there is one. Without a folder nothing is written.
    """

    def __init__(self, origin: DataFile | None = None, folder: Path | None = None) -> None:
        self._origin, self._folder = origin, folder
        self._archive: zipfile.ZipFile | None = None
        self._known: dict[str, Image | RowFault] = {}  # by the digest of the bytes

    def keep(self, source: object, field: str) -> Image:
        """RowFault where there is no image that can be learned from."""
        content = _bytes_in(source, field)
        if isinstance(content, str):
            content = self._beside(content, field)
        if len(content) > MAX_BYTES:
            raise _too_large(
                field, f"{len(content):,} bytes", f"At most {MAX_BYTES // 1_000_000} MB are read."
            )
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._known:
            self._known[digest] = self._checked(content, field)
        found = self._known[digest]
        if isinstance(found, RowFault):
            raise RowFault(field, found.value, found.rule, found.way_out)
        return found

    def _checked(self, content: bytes, field: str) -> Image | RowFault:
        try:
            content, suffix, width, height = _upright(content, field)
        except RowFault as fault:
            return fault
        name = f"{hashlib.sha256(content).hexdigest()[:32]}.{suffix}"
        if self._folder and not (self._folder / name).exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            draft = self._folder / f".{name}.{os.getpid()}"
            draft.write_bytes(content)
            draft.replace(self._folder / name)
        return {"file": name, "width": width, "height": height}

    # ---- beside the data file ------------------------------------------------------------------------------------------
    def _beside(self, path: str, field: str) -> bytes:
        inside = _inner_path(path, field)
        try:
            found = self._in_zip(inside) if self._origin and self._origin.member else self._in_folder(inside)
        except (OSError, DataError, *files.UNPACKING) as error:
            raise RowFault(
                field, path, f"The image cannot be read: {error}.", "Pack or upload it again."
            ) from None
        if found is None:
            raise RowFault(field, path, "There is no such image beside the data file.", _TOGETHER)
        return found

    def _in_zip(self, inside: PurePosixPath) -> bytes | None:
        """By its path from the data file's folder, then from the top of the zip file."""
        self._archive = self._archive or zipfile.ZipFile(self._origin.path)
        folder = PurePosixPath(self._origin.member.replace("\\", "/")).parent
        for name in dict.fromkeys((str(folder / inside), str(inside))):
            if name in self._archive.NameToInfo:
                with self._archive.open(name) as file:
                    return file.read(MAX_BYTES + 1)
        return None

    def _in_folder(self, inside: PurePosixPath) -> bytes | None:
        """By its path from the data file's folder, then by the name that an upload is kept under."""
        folder = folder_beside(self._origin)
        if folder is None:
            return None
        for path in (folder / inside, folder / files.safe_name(inside.name)):
            real = path.resolve()
            if real.is_relative_to(folder.resolve()) and real.is_file():
                with real.open("rb") as file:
                    return file.read(MAX_BYTES + 1)
        return None


def folder_beside(origin: DataFile | None) -> Path | None:
    """Where the images of a data file may lie. None for a single upload, beside which lie those of others."""
    if origin is None or origin.member or origin.path.parent == hub.home() / "uploads":
        return None
    return origin.path.parent


def beside_digest(origin: DataFile | None) -> str:
    """Changes where an image beside a data file is added, taken away or replaced."""
    if origin is None:
        return ""
    if origin.member:
        with files.told(origin.label), zipfile.ZipFile(origin.path) as archive:
            found = [
                (one.filename, one.file_size, one.CRC)
                for one in archive.infolist()
                if _named_so(one.filename)
            ]
    elif folder := folder_beside(origin):
        with files.told(origin.label):
            found = [(str(path), (now := path.stat()).st_size, now.st_mtime_ns) for path in _below(folder)]
    else:
        return ""
    return hashlib.sha256(repr(sorted(found)).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _below(folder: Path) -> Iterator[Path]:
    """The files of images in a folder and its folders, but for hidden ones and those of our own."""
    own = {hub.home() / name for name in ("cache", "runs", "uploads")}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and Path(place, name) not in own]
        yield from (path for name in names if _named_so(name) and (path := Path(place, name)).is_file())


def _named_so(name: str) -> bool:
    return name.lower().endswith(files.IMAGE_SUFFIXES)


def looks_like_image(cell: object) -> bool:
    """Whether a cell names an image, or several, as far as can be told without opening one."""
    if isinstance(cell, dict):
        return isinstance(cell.get("bytes"), bytes) or any(
            looks_like_image(cell.get(name)) for name in ("path", "url", "image_url", "image")
        )
    if isinstance(cell, bytes):
        return cell.startswith(_MAGIC)
    if isinstance(cell, list | tuple):
        return any(map(looks_like_image, cell))
    if not isinstance(cell, str):
        return False
    start = cell.lstrip()[:12].lower()
    if start.startswith("["):
        return any(suffix in cell.lower() for suffix in files.IMAGE_SUFFIXES) or "data:image/" in cell
    named = cell.strip().partition("?")[0].lower()
    return start.startswith("data:image/") or ("\n" not in named and named.endswith(files.IMAGE_SUFFIXES))


def without_bytes(value: object) -> object:
    """A value of a row as it may be shown: what is said of an image, not the image."""
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, dict):
        return {name: without_bytes(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_bytes(one) for one in value]
    if isinstance(value, str) and _DATA_URI.match(value):
        return f"{value[:40]}…"
    return value


def names_files(table: Table, schema: Schema) -> bool:
    """Whether rows name images by the paths of their files: in the column of images, or in parts of turns."""
    column = schema.columns.get("images", "")
    others = [
        schema.columns[ours] for ours in ("messages", "conversations", "prompt") if ours in schema.columns
    ]
    return any(
        _is_path(record.get(column)) or any(_parts_name_files(record.get(one)) for one in others)
        for _, record in table.rows
    )


def _is_path(cell: object) -> bool:
    if isinstance(cell, list | tuple):
        return any(map(_is_path, cell))
    if isinstance(cell, dict):
        return cell.get("bytes") is None and any(_is_path(cell.get(name)) for name in ("path", "url"))
    return isinstance(cell, str) and bool(cell.strip()) and not _DATA_URI.match(cell)


def _parts_name_files(cell: object) -> bool:
    if isinstance(cell, str):  # of a CSV
        return cell.lstrip().startswith("[") and looks_like_image(cell)
    if isinstance(cell, list | tuple):
        return any(map(_parts_name_files, cell))
    if not isinstance(cell, dict):
        return False
    if cell.get("type") in IMAGE_PARTS:
        return any(_is_path(cell.get(name)) for name in IMAGE_KEYS)
    return any(_parts_name_files(one) for one in cell.values() if isinstance(one, list | tuple))


# ---- one source --------------------------------------------------------------------------------------------------------
def _bytes_in(source: object, field: str) -> bytes | str:
    """The bytes of an image, or the path that names it."""
    if isinstance(source, dict):
        inner = next(
            (
                source[name]
                for name in ("bytes", "path", "url", "image_url", "image")
                if source.get(name) is not None
            ),
            None,
        )
        return _bytes_in(inner, field)
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if not isinstance(source, str) or not source.strip():
        met = "nothing" if source in (None, "") else type(source).__name__
        raise RowFault(
            field, met, "This is no image.", "Give its file, its bytes, or a data URI (data:image/png;base64,…)."
        )  # fmt: skip
    source = source.strip()
    return _in_uri(source, field) if source[:5].lower() == "data:" else source


def _in_uri(uri: str, field: str) -> bytes:
    found = _DATA_URI.match(uri)
    try:
        if not found:
            raise ValueError
        return base64.b64decode(re.sub(r"\s+", "", uri[found.end() :]), validate=True)
    except (ValueError, binascii.Error):
        raise RowFault(
            field,
            uri[:60],
            "The data URI holds no image in base64.",
            "Write data:image/png;base64,… with its bytes.",
        ) from None


def _inner_path(path: str, field: str) -> PurePosixPath:
    """The path, where it leads into the data file's folder."""
    scheme = _SCHEME.match(path)
    if scheme and scheme[1].lower() in ("http", "https", "ftp", "s3", "gs", "hf"):
        raise RowFault(
            field, path, "Images are not fetched from a network.",
            "Download it, put it beside the data file, and name it by its path there.",
        )  # fmt: skip
    inside = PurePosixPath(path.replace("\\", "/"))
    outside = inside.is_absolute() or ".." in inside.parts or ":" in inside.parts[0] or path.startswith("~")
    if outside or "\0" in path:
        raise RowFault(
            field, path, "The path of the image leads out of the data file's folder.",
            "Write it from there on, such as images/cat.png.",
        )  # fmt: skip
    return inside


def _upright(content: bytes, field: str) -> tuple[bytes, str, int, int]:
    """(bytes, suffix, width, height) of an image as it is looked at; decoded once to see that it can be."""
    from PIL import Image as Pillow
    from PIL import ImageOps

    try:
        with warnings.catch_warnings(), Pillow.open(io.BytesIO(content), formats=_OPENED) as image:
            warnings.simplefilter("ignore")  # of sizes; they are checked here
            if max(image.size) > MAX_SIDE or image.width * image.height > MAX_PIXELS:
                rule = (
                    f"At most {MAX_PIXELS // 1_000_000} million pixels are read, and {MAX_SIDE:,} on a side."
                )
                raise _too_large(field, f"{image.width:,} × {image.height:,} pixels", rule)
            image.load()
            suffix = FORMATS[image.format]
            if image.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT:
                content = _turned(ImageOps.exif_transpose(image), suffix)
                with Pillow.open(io.BytesIO(content)) as turned:
                    return content, suffix if suffix == "jpg" else "png", *turned.size
            return content, suffix, *image.size
    except RowFault:
        raise
    except Pillow.DecompressionBombError as error:
        raise _too_large(field, str(error), "It unpacks to far more than any honest image.") from None
    except Exception as error:  # noqa: BLE001  a broken image raises what its decoder happens to
        rule = f"The image is broken, or it is none of {KNOWN}."
        raise RowFault(
            field, str(error) or type(error).__name__, rule, "Save it again, or take the row out."
        ) from None


def _turned(image, suffix: str) -> bytes:
    """Most of what cameras turn is JPEG, whose loss at this quality nobody sees; without loss it would be ten times larger."""
    file = io.BytesIO()
    if suffix == "jpg":
        image.save(file, "JPEG", quality=95, subsampling=0)
    else:
        image.save(file, "PNG")
    return file.getvalue()


def _too_large(field: str, met: str, rule: str) -> RowFault:
    return RowFault(
        field,
        met,
        f"The image is too large. {rule}",
        "Make it smaller; models read about 1,000 pixels a side.",
    )
