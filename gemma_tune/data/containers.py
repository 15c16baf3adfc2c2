"""Which files of rows a path means: a file, a folder of files, or what lies in a zip file. Nothing is unpacked here."""

from __future__ import annotations

import stat
import zipfile
from collections import Counter
from itertools import islice
from pathlib import Path, PurePosixPath

from gemma_tune import hub
from gemma_tune.data.files import AS_CSV, IMAGE_SUFFIXES, KNOWN, SUFFIXES, DataFile, shown_name, told
from gemma_tune.errors import DataError

MAX_FILES = 1_000
LOOKED_AT = 100  # files of a folder within a folder, to tell whether it holds images
_OUTSIDE = "Pack the file again without folders that lead outside it."


def files_of(path: Path) -> tuple[list[DataFile], list[str]]:
    """The files of rows that a path means, in order of their names, and notes on what is passed over."""
    if path.is_dir():
        return _of_folder(path)
    if path.suffix.lower() == ".zip":
        return _of_zip(path)
    with told(shown_name(path)):
        path.stat()
    if not path.is_file():
        raise DataError.at(
            shown_name(path), None, "This is neither a file nor a folder, so reading it may never end.",
            "Name a file or a folder.",
        )  # fmt: skip
    return [_single(path)], []


def _single(path: Path) -> DataFile:
    suffix = path.suffix.lower()
    return DataFile(path, shown_name(path), Path(path.stem).suffix.lower() if suffix == ".gz" else suffix)


def _of_folder(folder: Path) -> tuple[list[DataFile], list[str]]:
    found, passed = [], []
    with told(shown_name(folder)):
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "_")))
    for path in paths:
        if path.is_symlink():
            hub.check_path(path, f"{shown_name(folder)}/{shown_name(path)}")
        if path.suffix.lower() == ".zip" and path.is_file():
            found += _of_zip(path)[0]
        elif path.is_file() and _single(path).suffix in SUFFIXES:
            found.append(_single(path))
        else:
            passed.append(shown_name(path))
    passed = [name for name in passed if not _holds_images(folder / name)] if found else passed
    return _some(found, passed, shown_name(folder), "The folder")


def _holds_images(path: Path) -> bool:
    """Whether rows may name it: an image, or a folder that begins with some."""
    if not path.is_dir():
        return path.suffix.lower() in IMAGE_SUFFIXES
    return any(one.suffix.lower() in IMAGE_SUFFIXES for one in islice(path.rglob("*"), LOOKED_AT))


def _of_zip(path: Path) -> tuple[list[DataFile], list[str]]:
    found, passed, where = [], [], shown_name(path)
    with told(where), zipfile.ZipFile(path) as archive:
        names = Counter(entry.filename for entry in archive.infolist())
        if "[Content_Types].xml" in names:
            raise DataError.at(where, "[Content_Types].xml", "This is an Excel or Word file.", AS_CSV)
        if twice := [name for name, count in names.items() if count > 1]:
            raise DataError.at(
                where,
                twice[0],
                "Two files in the zip have the same name.",
                "Pack it again with a name for each.",
            )
        for entry in archive.infolist():
            inside = PurePosixPath(entry.filename.replace("\\", "/"))
            _refuse_outside(entry, inside, where)
            if not inside.parts or entry.is_dir() or any(_is_hidden(part) for part in inside.parts):
                continue
            if inside.suffix.lower() in SUFFIXES:
                found.append(
                    DataFile(path, f"{where}/{entry.filename}", inside.suffix.lower(), entry.filename)
                )
            else:
                passed.append(entry.filename)
    if found:
        passed = [name for name in passed if not name.lower().endswith(IMAGE_SUFFIXES)]
    return _some(sorted(found, key=lambda one: one.member), passed, where, "The zip file")


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX"))


def _refuse_outside(entry: zipfile.ZipInfo, inside: PurePosixPath, where: str) -> None:
    if inside.is_absolute() or ".." in inside.parts or ":" in entry.filename.split("/")[0]:
        raise DataError.at(where, entry.filename, "A file in the zip climbs out of its folder.", _OUTSIDE)
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise DataError.at(where, entry.filename, "A file in the zip is a link to another place.", _OUTSIDE)
    if entry.flag_bits & 1:
        raise DataError.at(
            where, entry.filename, "The zip file is locked with a password.", "Pack it again without one."
        )


def _some(
    found: list[DataFile], passed: list[str], where: str, what: str
) -> tuple[list[DataFile], list[str]]:
    if not found:
        raise DataError.at(
            where, ", ".join(passed[:5]) or "nothing", f"{what} holds no file of rows.",
            f"Put {KNOWN} into it ({', '.join(SUFFIXES)}).",
        )  # fmt: skip
    if len(found) > MAX_FILES:
        raise DataError.at(
            where,
            f"{len(found):,} files",
            f"At most {MAX_FILES:,} files are read together.",
            "Join them into fewer.",
        )
    names = ", ".join(passed[:5]) + (", …" if len(passed) > 5 else "")
    return found, [f"{len(passed)} other files are passed over: {names}."] if passed else []
