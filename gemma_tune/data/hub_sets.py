"""Data sets of the Hugging Face Hub through the `datasets` library, which is imported when first needed.

Sets that need code of their own to load are refused.
"""

from __future__ import annotations

import hashlib
import re
from itertools import islice

from gemma_tune import hub
from gemma_tune.data.rows import Table
from gemma_tune.errors import DataError

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def hub_choices(repo: str, token: str | None = None) -> dict[str, list[str]]:
    """Subset → its splits, as the repository has them. Costs a few requests."""
    return _choices(repo, _inspect(repo, token), token)


def read_hub(repo: str, subset: str, split: str, token: str | None, limit: int | None) -> Table:
    """At most `limit` rows, which are then streamed instead of downloading the set."""
    commit = _inspect(repo, token)
    choices = _choices(repo, commit, token)
    subset = _chosen_subset(repo, subset, choices)
    if split not in choices[subset]:
        raise DataError.at(
            "data.split", split, f"{repo} has no such split.", f"There are: {', '.join(choices[subset])}."
        )
    import datasets

    where = f"hub:{repo}"
    try:
        found = datasets.load_dataset(
            repo, subset, split=split, revision=commit, token=token, streaming=limit is not None
        )
        rows = [(number, dict(row)) for number, row in enumerate(islice(found, limit), 1)]
    except _failures() as error:
        raise hub.hub_error(error, where, repo, "dataset") from None
    if not rows:
        raise DataError.at(where, f"{subset}, {split}", "The split holds no row.", "Choose another split.")
    columns = list(dict.fromkeys(column for _, row in rows for column in row))
    identity = f"{repo}@{commit}/{subset}/{split}"
    return Table(columns, rows, [], hashlib.sha256(identity.encode()).hexdigest(), where)


def _choices(repo: str, commit: str, token: str | None) -> dict[str, list[str]]:
    import datasets

    found = {}
    try:
        for subset in datasets.get_dataset_config_names(repo, revision=commit, token=token):
            found[subset] = datasets.get_dataset_split_names(repo, subset, revision=commit, token=token)
    except _failures() as error:
        raise hub.hub_error(error, f"hub:{repo}", repo, "dataset") from None
    return found


def _failures() -> tuple[type[Exception], ...]:
    """What `datasets` raises for a repository or a file of it that it cannot read, beside the Hub's own."""
    from datasets.exceptions import DatasetsError

    return *hub.hub_failures(), DatasetsError, ValueError, RuntimeError


def _chosen_subset(repo: str, subset: str, choices: dict[str, list[str]]) -> str:
    if subset in choices:
        return subset
    if not subset and len(choices) == 1:
        return next(iter(choices))
    if not subset and "default" in choices:
        return "default"
    rule = f"{repo} has no such subset." if subset else f"{repo} has several subsets; one must be chosen."
    raise DataError.at("data.subset", subset, rule, f"There are: {', '.join(choices)}.")


def _inspect(repo: str, token: str | None) -> str:
    """The commit of a set that may be loaded here; every fault of access comes from this one quick request."""
    where = f"hub:{repo}"
    if not _REPO.fullmatch(repo):
        raise DataError.at(
            where, repo, "A data set of the Hub is written hub:OWNER/NAME.", "hub:tatsu-lab/alpaca, for instance."
        )  # fmt: skip
    commit, names = hub.dataset_files(repo, token)
    scripts = [name for name in names if name == f"{repo.split('/')[1]}.py"]
    readable = [name for name in names if name.endswith((".parquet", ".json", ".jsonl", ".csv", ".arrow", ".gz", ".zst", ".zip", ".txt", ".tsv"))]  # fmt: skip
    if scripts and not readable:
        raise DataError.at(
            where, scripts[0], "The set is loaded by a script of its own, which would run foreign code here.",
            f"Open https://huggingface.co/datasets/{repo}/tree/refs%2Fconvert%2Fparquet, download the Parquet files, "
            "and upload them as JSONL or CSV.",
        )  # fmt: skip
    return commit
