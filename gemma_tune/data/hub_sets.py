"""Data sets of the Hugging Face Hub through the `datasets` library, which is imported when first needed.

Sets that need code of their own to load are refused. Images come as the bytes of their files, not decoded; columns of
sound and other media are left out.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, lru_cache

from gemma_tune import hub, hub_client
from gemma_tune.data.hub_images import has_images, is_media, undecoded, with_bytes, with_undecoded_images
from gemma_tune.data.rows import Opened, Records, values_in_chunks
from gemma_tune.errors import DataError

HUB = "hub:"
BATCH_ROWS = 1000
BATCH_ROWS_WITH_IMAGES = 32  # each may weigh megabytes
STREAM_BLOCK_BYTES = 1 << 20  # what is read ahead; fsspec's own 5 MB make a look at the first rows slow
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SPLIT = re.compile(r"([^\[\]]*)(?:\[(-?\d+)?(%)?:(-?\d+)?(%)?\])?")
_DATA = re.compile(r"\.(parquet|arrow|jsonl?|ndjson|csv|tsv|txt|tar|gz|bz2|xz|zst|zip)$")


def hub_choices(repo: str, token: str | None = None) -> dict[str, list[str]]:
    """Subset → its splits, as the repository has them. Costs about ten requests, and no data is downloaded."""
    return _choices(repo, _inspect(repo, token), token)


def hub_size_bytes(repo: str, token: str | None = None) -> int | None:
    """What the data files of all subsets weigh together; None where the Hub does not tell. Costs one request."""
    from huggingface_hub import HfApi

    hub_client.give_up_early()
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    try:
        info = api.dataset_info(repo, files_metadata=True, timeout=hub.TIMEOUT_SECONDS)
    except hub.hub_failures():  # what forbids access is told where the set is opened
        return None
    sizes = [file.size for file in info.siblings or [] if _DATA.search(file.rfilename)]
    return None if None in sizes or not sizes else sum(sizes)


def open_hub(repo: str, subset: str, split: str, token: str | None, *, streaming: bool) -> Opened:
    """One split of a data set, or a part of it as `datasets` writes it: train[:1000], train[10%:20%].

    Every fault of access and choice is raised here; no more is read than names the columns. `streaming` reads on from
    the start without a download of the whole; otherwise the set is downloaded once and read from disk.
    """
    commit = _inspect(repo, token)
    choices = _choices(repo, commit, token)
    subset = _chosen_subset(repo, subset, choices)
    name, part = _chosen_split(repo, split, choices[subset])
    chosen = _Chosen(repo, commit, subset, name, token)
    builder, columns, media, images = _built(chosen)
    notes = []
    if media:
        notes.append(f"Columns of sound, video or other media are left out: {', '.join(media)}.")
    if streaming and not part.is_streamable:
        notes.append(f"This look is at the start of {name}: where {split} lies is known after the download.")
    identity = f"{repo}@{commit}/{subset}/{split.strip()}"
    return Opened(
        chosen.where,
        lambda: _records(chosen, builder, part, columns if media else [], streaming, images),
        lambda: hashlib.sha256(identity.encode()).hexdigest(),
        notes=notes,
        columns=columns,
    )


@dataclass(frozen=True)
class _Chosen:
    repo: str
    commit: str
    subset: str
    split: str
    token: str | None = field(repr=False)

    @property
    def where(self) -> str:
        return f"{HUB}{self.repo}"

    def builder(self, **options):
        return _datasets().load_dataset_builder(
            _path(self.repo), self.subset, revision=self.commit, token=self.token,
            storage_options={"hf": {"block_size": STREAM_BLOCK_BYTES}}, **options,
        )  # fmt: skip


@dataclass(frozen=True)
class _Part:
    """Which rows of a split: from start to before stop, in rows or in percent; negative ones count from its end."""

    start: int | None = None
    stop: int | None = None
    percent: bool = False

    @property
    def is_streamable(self) -> bool:
        """Whether it can be found without the number of all rows."""
        return not self.percent and (self.start or 0) >= 0 and (self.stop or 0) >= 0

    @property
    def is_empty(self) -> bool:
        start, stop = self.start or 0, self.stop
        if stop is None:
            return False
        return stop == 0 or ((start < 0) == (stop < 0) and start >= stop)

    def of(self, count: int) -> range:
        """The numbers of the rows from 0; percents are rounded as `datasets` does."""
        bounds = (self.start, self.stop)
        if self.percent:
            bounds = tuple(None if bound is None else round(bound * count / 100) for bound in bounds)
        return range(count)[slice(*bounds)]


def _built(chosen: _Chosen):
    """(the builder of `datasets`, the columns in order, those of media that are left out, whether others hold images).

    Of JSON, CSV and text without a card only the rows tell the columns; they hold no media.
    """
    try:
        builder = chosen.builder()
        features = builder.info.features
        if features is None and _kind(builder) not in ("json", "csv", "text"):
            with _without_torch():
                stream = builder.as_streaming_dataset(split=chosen.split)
                features = stream.features or stream._resolve_features().features
        media = [name for name, feature in (features or {}).items() if is_media(feature)]
        columns = [name for name in features or {} if name not in media]
        images = any(has_images(features[name]) for name in columns)
        if (media or images) and columns and _kind(builder) == "parquet":
            kept = _datasets().Features({name: undecoded(features[name]) for name in columns})
            builder = chosen.builder(columns=columns, features=kept)  # so that no sound is even requested
    except _failures() as error:
        raise hub.hub_error(error, chosen.where, chosen.repo, "dataset") from None
    if media and not columns:
        rule = "The set holds media only, and no text."
        raise DataError.at(chosen.where, ", ".join(media), rule, "Choose a set with text.")
    return builder, columns, media, images


def _kind(builder) -> str:
    """The format of the files: "parquet", "json", "csv", …; the class itself is one made up for the data set."""
    return type(builder).__module__.rpartition(".")[2]


def _records(
    chosen: _Chosen, builder, part: _Part, kept: list[str], streaming: bool, images: bool
) -> Iterator[Records]:
    """The rows, read anew; only the columns `kept` where any are named."""
    size = BATCH_ROWS_WITH_IMAGES if images else BATCH_ROWS
    empty = True
    try:
        with _without_torch():
            data = _streamed(builder, chosen, part) if streaming else _downloaded(builder, chosen, part)
            data = with_undecoded_images(data) if images else data
            data = data.select_columns(kept) if kept else data  # before any value is decoded
        rows = _rows(data, size)
        if images and _kind(builder) == "imagefolder":
            rows = with_bytes(rows, data.features, chosen.repo, chosen.token)
        for records in values_in_chunks(rows, size=size):
            empty = False
            yield records
    except StopIteration:  # what `datasets` raises for JSON without a row
        pass
    except _failures() as error:
        raise hub.hub_error(error, chosen.where, chosen.repo, "dataset") from None
    if empty:
        raise DataError.at(
            chosen.where, f"{chosen.subset}, {chosen.split}", "There is no row in this part of the split.",
            "Choose another split, or a larger part of it.",
        )  # fmt: skip


def _streamed(builder, chosen: _Chosen, part: _Part):
    _read_in_small_pieces(builder)
    data = builder.as_streaming_dataset(split=chosen.split)
    if not part.is_streamable:
        return data
    data = data.skip(part.start) if part.start else data
    return data.take(part.stop - (part.start or 0)) if part.stop is not None else data


def _read_in_small_pieces(builder) -> None:
    """So that a look at the first rows ends soon: Parquet asks for 32 MB at a time otherwise, JSON for 10."""
    from pyarrow import CacheOptions
    from pyarrow.dataset import ParquetFragmentScanOptions

    if _kind(builder) == "parquet":
        pieces = CacheOptions(range_size_limit=4 * STREAM_BLOCK_BYTES)
        builder.config.fragment_scan_options = ParquetFragmentScanOptions(cache_options=pieces)
    elif _kind(builder) == "json":
        builder.config.chunksize = STREAM_BLOCK_BYTES


def _downloaded(builder, chosen: _Chosen, part: _Part):
    """Memory-mapped from the cache, so that no more than a batch is held."""
    builder.download_and_prepare()
    data = builder.as_dataset(split=chosen.split)
    return data if part == _Part() else data.select(part.of(len(data)) or [])


def _rows(data, size: int) -> Iterator[dict]:
    for batch in data.iter(batch_size=size):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


@lru_cache(maxsize=32)  # a commit never changes, and the page asks for the choices before it opens one
def _choices(repo: str, commit: str, token: str | None) -> dict[str, list[str]]:
    config = _datasets().DownloadConfig(token=token)
    from datasets.load import dataset_module_factory

    try:
        # Not get_dataset_split_names: for every subset it asks all anew, and reads the beginning of its first file.
        module = dataset_module_factory(_path(repo), revision=commit, download_config=config)
    except _failures() as error:
        if error.__suppress_context__ and isinstance(error.__context__, FileNotFoundError):
            # It says only that the cache does not have the set either, and would hide the failure itself.
            error.__context__ = error.__context__.__context__
        raise hub.hub_error(error, f"{HUB}{repo}", repo, "dataset") from None
    configs = module.builder_configs_parameters.builder_configs
    return {config.name: [str(split) for split in config.data_files] for config in configs}


def _path(repo: str) -> str:
    return f"hf://datasets/{repo}"  # the bare id would name a folder here first


def _failures() -> tuple[type[Exception], ...]:
    """What `datasets` raises for a repository or a file of it that it cannot read, beside the Hub's own."""
    from datasets.exceptions import DatasetsError
    from pyarrow import ArrowException

    of_files = (ArrowException, ValueError, TypeError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error)
    return *hub.hub_failures(), DatasetsError, ImportError, *of_files


def _chosen_subset(repo: str, subset: str, choices: dict[str, list[str]]) -> str:
    if subset in choices:
        return subset
    if not subset and len(choices) == 1:
        return next(iter(choices))
    if not subset and "default" in choices:
        return "default"
    rule = f"{repo} has no such subset." if subset else f"{repo} has several subsets; one must be chosen."
    raise DataError.at("data.subset", subset, rule, f"There are: {', '.join(choices)}.")


def _chosen_split(repo: str, split: str, splits: list[str]) -> tuple[str, _Part]:
    found = _SPLIT.fullmatch(split.strip())
    name = found[1] if found else split.partition("[")[0]
    if name not in splits:
        raise DataError.at(
            "data.split", split, f"{repo} has no such split.",
            f"There are: {', '.join(splits)}. A part is written {splits[0]}[:1000] or {splits[0]}[:10%].",
        )  # fmt: skip
    if found is None:
        rule = f"A part of a split is written {name}[FROM:TO]."
    else:
        start, stop = (int(bound) if bound else None for bound in (found[2], found[4]))
        units = {
            bool(unit) for bound, unit in ((start, found[3]), (stop, found[5])) if bound is not None or unit
        }
        part = _Part(start, stop, percent=True in units)
        if len(units) > 1 or (part.percent and None is start is stop):
            rule = "Both ends of a part are numbers of rows, or both are percents."
        elif part.percent and any(abs(bound or 0) > 100 for bound in (start, stop)):
            rule = "A percent is at most 100."
        elif part.is_empty:
            rule = "This part is empty: it ends where it begins, or before."
        else:
            return name, part
    raise DataError.at("data.split", split, rule, f"Write {name}[:1000], {name}[100:200] or {name}[10%:20%].")


def _inspect(repo: str, token: str | None) -> str:
    """The commit of a set that may be loaded here; every fault of access comes from this one quick request."""
    where = f"{HUB}{repo}"
    if not _REPO.fullmatch(repo):
        raise DataError.at(
            where, repo, "A data set of the Hub is written hub:OWNER/NAME.", "hub:tatsu-lab/alpaca, for instance."
        )  # fmt: skip
    commit, names = hub.dataset_files(repo, token)
    script = f"{repo.split('/')[1]}.py"
    if script in names:
        raise DataError.at(
            where, script, "The set is loaded by a script of its own, which would run foreign code here.",
            f"Open https://huggingface.co/datasets/{repo}/tree/refs%2Fconvert%2Fparquet, download the Parquet files, "
            "and use them from this disk.",
        )  # fmt: skip
    return commit


@cache
def _datasets():
    """The library, with its patience taken: twenty tries with 5 to 60 seconds between, around those of huggingface_hub.

    No environment variable sets these, and DownloadConfig.max_retries is read nowhere.
    """
    import datasets

    datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 1
    datasets.config.STREAMING_READ_RETRY_INTERVAL = datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 0
    datasets.config.STREAMING_READ_SERVER_UNAVAILABLE_RETRY_INTERVAL = 0
    datasets.config.STREAMING_READ_RATE_LIMIT_RETRY_INTERVAL = 0
    return datasets


@contextmanager
def _without_torch() -> Iterator[None]:
    """Where torch is not loaded yet, a stream is made without it: the app never holds torch."""
    config = _datasets().config
    config.TORCH_AVAILABLE, here = "torch" in sys.modules, config.TORCH_VERSION != "N/A"
    try:
        yield
    finally:
        config.TORCH_AVAILABLE = here
