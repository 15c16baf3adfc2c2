"""Every schema that is understood, how it is recognised, and its way into the normal form.

A new schema is an entry in `FORMATS` and a function in `converters.py`. Nothing is dropped silently.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from gemma_tune.data.converters import CONVERTERS
from gemma_tune.data.rows import Rejected, Row, RowFault, Schema, Table
from gemma_tune.data.turns import looks_like_turns
from gemma_tune.errors import DataError, Fault, shown

SAMPLE_ROWS = 50
REASONS_SHOWN = 3
COLUMNS_SHOWN = 12


@dataclass(frozen=True)
class Format:
    needs: dict[str, tuple[str, ...]]  # our field -> the column names it is known by, best first
    may: dict[str, tuple[str, ...]]


_SYSTEM = ("system", "system_prompt")
FORMATS: dict[str, Format] = {
    "preference": Format(
        {"chosen": ("chosen", "preferred"), "rejected": ("rejected", "dispreferred")},
        {"prompt": ("prompt", "question", "instruction", "conversations", "messages"), "system": _SYSTEM},
    ),
    "messages": Format(
        {"messages": ("messages", "conversation", "conversations", "chat", "dialogue")}, {"system": _SYSTEM}
    ),
    "sharegpt": Format(
        {"conversations": ("conversations", "conversation", "messages", "dialogue")}, {"system": _SYSTEM}
    ),
    "alpaca": Format(
        {"instruction": ("instruction",), "output": ("output", "response", "answer", "completion")},
        {"input": ("input", "context"), "system": _SYSTEM, "history": ("history",)},
    ),
    "prompt_completion": Format(
        {
            "prompt": ("prompt", "question", "query", "problem", "user", "human", "input", "source"),
            "completion": (
                "completion", "answer", "response", "output", "reply", "solution", "assistant", "target",
            ),
        },
        {"system": _SYSTEM},
    ),
}  # fmt: skip


def recognise(table: Table, format: str = "auto", columns: Mapping[str, str] | None = None) -> Schema:
    """The schema of a table, or of the format and columns given. DataError with every fault at once."""
    if not table.rows:
        raise DataError(*all_rejected(table, table.rejected))
    columns = {ours: theirs for ours, theirs in (columns or {}).items() if theirs}
    names = [format] if format != "auto" else [name for name in FORMATS if _has_fields(name, columns)]
    if faults := _mapping_faults(table, names, columns):
        raise DataError(*faults)
    found = [schema for name in names if (schema := _fit(name, table, columns))]
    if not found:
        raise DataError(_no_fit(table, names))
    return max(found, key=lambda schema: schema.confidence)  # the first of equals


def convert(table: Table, schema: Schema) -> tuple[list[Row], list[Rejected]]:
    """Every row in the normal form, or its reason; both in the order of the table."""
    converter = CONVERTERS[schema.format]
    rows, rejected = [], []
    for number, record in table.rows:
        fields = {ours: record.get(theirs) for ours, theirs in schema.columns.items()}
        try:
            messages, other = converter(fields, schema.columns)
        except RowFault as fault:
            rejected.append(fault.rejected(number))
        else:
            rows.append(Row(number, messages, other))
    return rows, rejected


def all_rejected(table: Table, rejected: list[Rejected]) -> list[Fault]:
    """That no row is left, and the first reasons."""
    rule = f"None of the {len(rejected)} rows can be used."
    way_out = "The first reasons follow. Mend the rows, or map other columns (data.columns)."
    first = [one.as_fault(table.source) for one in rejected[:REASONS_SHOWN]]
    return [Fault(table.source, "", rule, way_out), *first]


def _has_fields(name: str, columns: Mapping[str, str]) -> bool:
    return set(columns) <= {*FORMATS[name].needs, *FORMATS[name].may}


def _mapping_faults(table: Table, names: list[str], columns: Mapping[str, str]) -> list[Fault]:
    """Columns mapped by hand that are not there, or fields that no schema has."""
    faults = []
    known = sorted({ours for name in names or FORMATS for ours in (*FORMATS[name].needs, *FORMATS[name].may)})
    for ours, theirs in columns.items():
        where = f"data.columns.{ours}"
        if ours not in known:
            faults.append(Fault(where, theirs, "There is no such field.", f"Fields are {', '.join(known)}."))
        elif theirs not in table.columns:
            faults.append(Fault(where, theirs, "The data have no such column.", _near(theirs, table.columns)))
    if columns and not names and not faults:
        faults.append(
            Fault("data.columns", ", ".join(columns), "No schema has these fields together.", _overview())
        )
    return faults


def _fit(name: str, table: Table, columns: Mapping[str, str]) -> Schema | None:
    """The schema with its columns and how sure it is; None where a needed column is missing or of another kind."""
    form = FORMATS[name]
    chosen: dict[str, str] = {}
    guesses = 0
    for ours, aliases in {**form.needs, **form.may}.items():
        theirs = columns.get(ours) or _by_name(aliases, table.columns, set(chosen.values()))
        if ours not in columns and ours in ("messages", "conversations"):
            theirs = _turn_column(table, "role" if ours == "messages" else "from", theirs)
        if theirs:
            chosen[ours] = theirs
            if ours in form.needs and ours not in columns and theirs != ours:
                guesses += 1 if theirs.strip().lower() in aliases else 3
        elif ours in form.needs:
            return None
    share = _share_filled(table, [chosen[ours] for ours in form.needs])
    because = ", ".join(ours if ours == theirs else f"{theirs} as {ours}" for ours, theirs in chosen.items())
    how = "mapped by hand" if columns else "recognised by its columns"
    unused = [column for column in table.columns if column not in chosen.values()]
    why = f"{how}: {because}." + (f" Not used: {', '.join(unused[:COLUMNS_SHOWN])}." if unused else "")
    # Turns and pairs are sure signs; a pair of plain text columns may mean something else.
    sure = 1.0 if columns or name != "prompt_completion" else 0.9
    return Schema(name, chosen, why[0].upper() + why[1:], max(0.05, round(sure * share - 0.1 * guesses, 2)))


def _by_name(aliases: tuple[str, ...], columns: list[str], taken: set[str]) -> str | None:
    """The column with the best known name, in any case of letters."""
    lower = {column.strip().lower(): column for column in reversed(columns) if column not in taken}
    return next((lower[alias] for alias in aliases if alias in lower), None)


def _turn_column(table: Table, spelling: str, named: str | None) -> str | None:
    """The column whose cells are lists of turns in that spelling, the named one first."""
    candidates = [named, *table.columns] if named else table.columns
    sample = [record for _, record in table.rows[:SAMPLE_ROWS]]
    for column in candidates:
        if any(looks_like_turns(record.get(column)) == spelling for record in sample):
            return column
    cells = [record.get(named) for record in sample] if named else []
    broken = any(isinstance(cell, list) for cell in cells) and not any(map(looks_like_turns, cells))
    return named if broken else None  # so that each row gets its own reason


def _share_filled(table: Table, columns: list[str]) -> float:
    sample = [record for _, record in table.rows[:SAMPLE_ROWS]]
    filled_rows = sum(all(record.get(column) is not None for column in columns) for record in sample)
    return filled_rows / len(sample) if sample else 1.0


def _no_fit(table: Table, names: list[str]) -> Fault:
    """What is missing for the schema wanted, or for the one that lacks least."""

    def missing(name: str) -> list[str]:
        taken: set[str] = set()
        return [
            ours
            for ours, aliases in FORMATS[name].needs.items()
            if not _by_name(aliases, table.columns, taken)
        ]

    names = names or list(FORMATS)
    nearest = min(names, key=lambda name: len(missing(name)) / len(FORMATS[name].needs))
    lacks = missing(nearest)
    columns = shown(", ".join(table.columns))
    if not lacks:
        return Fault(
            table.source, columns, f"No row holds a list of turns in the column for the schema {nearest}.",
            'A cell looks like [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}].',
        )  # fmt: skip
    if len(names) == 1 or len(lacks) < len(FORMATS[nearest].needs):
        lacking = " and ".join(lacks)
        return Fault(
            table.source, columns, f"The column {lacking} is missing for the schema {nearest}.",
            f"Add it, or map the column that holds it: data.columns.{lacks[0]}.",
        )  # fmt: skip
    return Fault(table.source, columns, "No known schema fits these columns.", _overview())


def _overview() -> str:
    kinds = "; ".join(f"{name}: {' + '.join(form.needs)}" for name, form in FORMATS.items())
    return f"Map the columns by hand (data.columns), or name them so ({kinds})."


def _near(name: str, columns: list[str]) -> str:
    near = difflib.get_close_matches(name, columns, n=1)
    return (
        f"Did you mean {near[0]}? " if near else ""
    ) + f"There are: {', '.join(columns[:COLUMNS_SHOWN])}{', …' if len(columns) > COLUMNS_SHOWN else ''}."
