"""TensorFlow Datasets without TensorFlow: a set by its name, or a folder in which TFDS prepared one.

Only array_record is read: TFDS loses rows where it writes Parquet, and its other formats need TensorFlow. It
believes dataset_info.json how many rows there are, so those of every file are counted here.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from gemma_tune.data.rows import Opened, Records, RowFault
from gemma_tune.data.tfds_values import plain_reader, readable
from gemma_tune.errors import DataError

TFDS = "tfds:"
ROWS_AT_ONCE = 256
END_BYTES = 65_536  # read at either end of a file for the fingerprint

_NAME = re.compile(r"([a-zA-Z]\w*)(?:/([\w+][\w+.-]*))?(?::(?:\d+|\*)(?:\.(?:\d+|\*)){2})?")
_VERSIONS = "[0-9]*.[0-9]*.[0-9]*"
_KINDS = ("question_answering", "structured", "summarization", "text", "text_simplification", "translate")
_CATALOGUE = "See https://www.tensorflow.org/datasets/catalog/overview."
_ELSEWHERE = "Prepare it elsewhere with `tfds build NAME --file_format=array_record`, and choose its folder."
_AGAIN = 'Prepare it again in another folder: builder.download_and_prepare(file_format="array_record").'
_COPY = "Copy the whole folder again, or prepare the set again."
_REFUSED = {
    "parquet": "TFDS loses rows where it writes Parquet files, so these are not read.",
    "tfrecord": "TFRecord files can only be read with TensorFlow.",
    "riegeli": "Riegeli files can only be read with TensorFlow.",
}


def open_tfds(name: str, split: str) -> Opened:
    """`name` as TFDS spells it. Where it is not prepared yet, calling `records` or `fingerprint` downloads it."""
    where, builder = TFDS + name, _builder(name)
    folder, config = Path(builder.data_dir), builder.builder_config
    notes = [f"Config {config.name}, the default."] if config and not _parts(name)[1] else []

    @cache
    def opened() -> Opened:
        if not is_prepared(folder):
            _prepare(where, builder)
        return _open(where, folder, split)

    if is_prepared(folder):
        return replace(opened(), notes=notes + opened().notes)
    features, more = readable(builder.info.features or {})
    notes += ["Not prepared here yet: it is downloaded when it is first read.", *more]
    return Opened(
        where, lambda: opened().records(), lambda: opened().fingerprint(), None, notes, list(features)
    )


def is_prepared(folder: Path) -> bool:
    """Whether TFDS prepared a set here, or in the only version that lies in the folder."""
    return _prepared(folder) is not None


def open_prepared(folder: Path, split: str) -> Opened:
    return _open(str(folder), _prepared(folder) or folder, split)


def tfds_choices(source: str | Path) -> dict[str, list[str]]:
    """Config ("" where a set has none) → its splits, of which TFDS knows none before it is prepared."""
    if isinstance(source, Path):
        info = _info(str(source), _prepared(source) or source)
        return {info.config_name: [one.name for one in info.splits]}
    name = source.removeprefix(TFDS)
    base, config = _parts(name)
    found = _configs(base)
    if not found or (config and config not in found):
        raise _not_found(name)
    return {config: found[config]} if config else found


def _prepared(folder: Path) -> Path | None:
    found = [one for one in (folder, *folder.glob(_VERSIONS)) if (one / "features.json").is_file()]
    whole = [one for one in found if (one / "dataset_info.json").is_file()]
    return whole[0] if len(whole) == 1 else None


def _library():
    try:
        import tensorflow_datasets as tfds
        from array_record.python import array_record_module  # noqa: F401  TFDS imports it late
    except ImportError:
        way_out = 'pip install "gemma-tune[tfds]"'
        raise DataError.at("data.source", None, "TensorFlow Datasets is not installed.", way_out) from None
    _register_sets()
    return tfds


@cache
def _register_sets() -> None:
    """TFDS itself stops at the first kind of set that misses a library, and hides all after it."""
    for kind in _KINDS:
        with suppress(ImportError):
            importlib.import_module(f"tensorflow_datasets.{kind}")


def _failures() -> tuple[type[Exception], ...]:
    """What TFDS raises for names that it does not know and for files that it cannot read."""
    from google.protobuf import json_format, message

    known = (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError, RuntimeError)
    return *known, json_format.Error, message.DecodeError


def _home() -> Path:
    _library()
    from tensorflow_datasets.core import constants

    return Path(constants.get_default_data_dir()).expanduser()


def _parts(name: str) -> tuple[str, str | None]:
    """(set, config). Namespaces, whose code would come from elsewhere, and arguments are refused."""
    found = _NAME.fullmatch(name)
    if not found:
        rule = "A set of TFDS is written tfds:NAME, tfds:NAME/CONFIG or tfds:NAME/CONFIG:VERSION."
        raise DataError.at("data.source", TFDS + name, rule, "tfds:gsm8k or tfds:glue/cola, for instance.")
    return found[1], found[2]


def _builder(name: str):
    _parts(name)
    try:
        return _library().builder(name, data_dir=str(_home()))
    except ImportError as error:
        raise _needs(TFDS + name, error) from None
    except _failures() as error:
        raise _not_found(name, str(error)) from None


def _configs(base: str) -> dict[str, list[str]]:
    """All that the set's code names, and those on disk, which alone have splits."""
    found, root = {}, _home() / base
    with suppress(ValueError, ImportError):  # a set without code, known from the disk alone
        found = {config: [] for config in _library().builder_cls(base).builder_configs or [""]}
    folders = [*root.glob(_VERSIONS), *root.glob(f"*/{_VERSIONS}")]
    for folder in sorted(one for one in folders if is_prepared(one)):
        info = _info(str(folder), folder)
        found[info.config_name] = [one.name for one in info.splits]
    return found


def _not_found(name: str, reason: str = "") -> DataError:
    base, config = _parts(name)
    known = _library().list_builders(with_community_datasets=False)
    known += [one.name for one in _home().glob("*/")]
    configs = [one for one in _configs(base) if one]
    if base not in known:
        near = get_close_matches(base.lower(), known)
        rule = "TFDS has no set of this name."
        way_out = f"Did you mean {' or '.join(near)}?" if near else _CATALOGUE
    elif config and config not in configs:
        near = get_close_matches(config, configs, 10, 0.5) or configs[:10]
        rule = f"{base} has no such config."
        way_out = f"There are {len(configs)}, such as {', '.join(near)}." if near else f"Write {TFDS}{base}."
    else:
        told = reason.rpartition('": ')[2].partition("\n")[
            0
        ]  # TFDS puts its arguments before, a list after it
        rule = f"TFDS cannot open it. {told}".strip()
        way_out = f"Leave the version out, or name a config: {', '.join(configs[:10]) or 'it has none'}."
    return DataError.at("data.source", TFDS + name, rule, way_out)


def _needs(where: str, error: ImportError) -> DataError:
    rule = f"The code of this set needs {error.name or error}, which is not installed here."
    return DataError.at(where, None, rule, _ELSEWHERE)


def _prepare(where: str, builder) -> None:
    """Downloads the set and writes it as array_record. What TFDS prints goes to stderr."""
    try:
        with redirect_stdout(sys.stderr):
            builder.download_and_prepare(file_format="array_record")
    except ImportError as error:
        raise _needs(where, error) from None
    except Exception as error:  # noqa: BLE001  the code of a set may raise anything
        way_out = f"Check the network and the free space, and try again. {_ELSEWHERE}"
        raise DataError.at(where, str(error), "The set could not be prepared.", way_out) from error


def _open(where: str, folder: Path, split: str) -> Opened:
    """All is checked but the rows themselves."""
    info, tfds, folder = _info(where, folder), _library(), folder.resolve()
    written = info.file_format or "tfrecord"
    if "array_record" not in (written, *info.alternative_file_formats):
        rule = _REFUSED.get(written, "Only array_record files are read.")
        raise DataError.at(where, written, rule, _AGAIN)
    _check_features(where, folder)
    try:
        builder = tfds.builder_from_directory(folder)
        builder.info.set_file_format("array_record", override=True, override_if_initialized=True)
        pieces = _pieces(builder.info.splits, split)
        source = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    except _failures() as error:
        raise _damaged(where, error) from None
    total_bytes = sum(_checked_bytes(where, folder, one) for one in pieces)
    features, notes = readable(builder.info.features)
    return Opened(
        where,
        lambda: _records(where, source, tfds.features.FeaturesDict(features), total_bytes),
        lambda: _fingerprint(folder, info, pieces),
        total_bytes,
        notes,
        list(features),
    )


def _info(where: str, folder: Path):
    """dataset_info.json: name, config_name, version, splits, file_format."""
    _library()
    from tensorflow_datasets.core import dataset_info

    try:
        return dataset_info.read_proto_from_builder_dir(folder)
    except _failures() as error:
        raise _damaged(where, error) from None


def _damaged(where: str, error: Exception) -> DataError:
    return DataError.at(where, str(error), "TFDS cannot read this set; it is damaged or not whole.", _COPY)


def _check_features(where: str, folder: Path) -> None:
    """TFDS imports the classes that features.json names; only its own are let through."""
    try:
        text = json.dumps(json.loads((folder / "features.json").read_bytes()))
    except (OSError, ValueError) as error:
        raise _damaged(where, error) from None
    for one in re.findall(r'"(?:pythonClassName|type)": "([^"]+)"', text):
        if "." in one and not one.startswith("tensorflow_datasets."):
            rule = "A column is read by code of its own, which is not run here."
            raise DataError.at(where, one, rule, "Write the set with the features of TFDS alone.")


def _pieces(splits, split: str) -> list:
    """Of each file that the split or slice touches: filename, skip, take, examples_in_shard."""
    there_are = ", ".join(f"{name} ({one.num_examples:,} rows)" for name, one in splits.items())
    way_out = f"There are: {there_are}. train[:10%] and train[100:200] take a part."
    try:
        pieces = splits[split].file_instructions
    except (KeyError, ValueError, NotImplementedError):
        raise DataError.at("data.split", split, "There is no such split or slice.", way_out) from None
    if not pieces or any(one.take <= 0 for one in pieces):
        raise DataError.at("data.split", split, "The split or slice holds no row.", way_out)
    return pieces


def _checked_bytes(where: str, folder: Path, piece) -> int:
    """The size of what is read of the file, which must be there and hold as many rows as it should."""
    from array_record.python.array_record_module import ArrayRecordReader

    path = Path(piece.filename)
    if not path.is_file() or ".." in path.parts or not path.is_relative_to(folder):
        raise DataError.at(where, path.name, "A file of the set is missing.", _COPY)
    try:
        rows = ArrayRecordReader(str(path)).num_records()
    except RuntimeError as error:
        raise _damaged(f"{where}, {path.name}", error) from None
    if rows != piece.examples_in_shard:
        rule = f"The file holds {rows:,} rows, but dataset_info.json counts {piece.examples_in_shard:,}."
        raise DataError.at(where, path.name, rule, _COPY)
    return path.stat().st_size * piece.take // rows


def _records(where: str, source, features, total_bytes: int) -> Iterator[Records]:
    rows, plain = len(source), plain_reader(features)
    for start in range(0, rows, ROWS_AT_ONCE):
        keys = range(start, min(start + ROWS_AT_ONCE, rows))
        values, numbers, rejected = [], [], []
        try:
            for number, raw in enumerate(source.__getitems__(keys), start + 1):
                try:
                    values.append(plain(features.deserialize_example_np(raw), ""))
                    numbers.append(number)
                except RowFault as fault:
                    rejected.append(fault.rejected(number))
        except _failures() as error:
            raise _damaged(where, error) from None
        read_bytes = total_bytes * keys.stop // rows - total_bytes * start // rows
        yield Records(start + 1, b"", values, numbers, rejected, read_bytes=read_bytes)


def _fingerprint(folder: Path, info, pieces: list) -> str:
    """Over what names, describes and counts the rows, and both ends of each file: it never reads all data."""
    found = hashlib.sha256(repr((info.name, info.config_name, info.version)).encode())
    for path in [folder / "features.json", *sorted(folder.glob("*.labels.txt"))]:
        found.update(path.read_bytes())
    for piece in pieces:
        path = Path(piece.filename)
        size = path.stat().st_size
        found.update(repr((path.name, piece.skip, piece.take, piece.examples_in_shard, size)).encode())
        with path.open("rb") as file:
            found.update(file.read(END_BYTES))
            file.seek(max(0, size - END_BYTES))
            found.update(file.read())
    return found.hexdigest()
