"""Every schema that is understood, how it is recognised, and its way into the normal form.

A new schema is an entry in `FORMATS` and a function in `converters.py`. Nothing is dropped silently.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations

from gemma_tune.data.converters import CONVERTERS, Fields, looks_like_label
from gemma_tune.data.images import Images, looks_like_image, without_bytes
from gemma_tune.data.placing import Keep, placed
from gemma_tune.data.rows import MECHANICAL, Rejected, Row, RowFault, Schema, Table, no_object
from gemma_tune.data.turns import looks_like_turns
from gemma_tune.errors import DataError, Fault, shown

SAMPLE_ROWS = 50
REASONS_SHOWN = 3
COLUMNS_SHOWN = 12
FEW_WORDS, FEW_WORDS_FROM_ROWS = 5, 15  # a column of so few different words is a class or a split, no text
PREVIEW_CHARACTERS = 600
HELD_BACK = {
    "validation",
    "valid",
    "val",
    "dev",
    "development",
    "eval",
    "evaluation",
    "test",
    "testing",
    "held_out",
}
LEARNED = {"train", "training", "learn"}


@dataclass(frozen=True)
class Format:
    needs: dict[str, tuple[str, ...]]  # our field -> the column names it is known by, best first
    may: dict[str, tuple[str, ...]]


_SYSTEM = ("system", "system_prompt")
_TOOLS = ("tools", "functions")
_IMAGES = ("images", "image")
_PROMPT = ("prompt", "question", "query", "problem", "user", "human", "input", "source")
_COMPLETION = ("completion", "answer", "response", "output", "reply", "solution", "assistant", "target")
FORMATS: dict[str, Format] = {
    "preference": Format(
        {"chosen": ("chosen", "preferred"), "rejected": ("rejected", "dispreferred")},
        {
            "prompt": ("prompt", "question", "instruction", "conversations", "messages"),
            "system": _SYSTEM,
            "tools": _TOOLS,
            "images": _IMAGES,
        },
    ),
    "messages": Format(
        {"messages": ("messages", "conversation", "conversations", "chat", "dialogue")},
        {"system": _SYSTEM, "tools": _TOOLS, "images": _IMAGES},
    ),
    "sharegpt": Format(
        {"conversations": ("conversations", "conversation", "messages", "dialogue")},
        {"system": _SYSTEM, "tools": _TOOLS, "images": _IMAGES},
    ),
    "alpaca": Format(
        {"instruction": ("instruction",), "output": ("output", "response", "answer", "completion")},
        {"input": ("input", "context"), "system": _SYSTEM, "history": ("history",), "images": _IMAGES},
    ),
    "kto": Format(
        {"completion": _COMPLETION, "label": ("label", "rating", "feedback", "thumbs")},
        {"prompt": _PROMPT, "system": _SYSTEM, "tools": _TOOLS, "images": _IMAGES},
    ),
    "prompt_completion": Format(
        {"prompt": _PROMPT, "completion": _COMPLETION},
        {"system": _SYSTEM, "tools": _TOOLS, "images": _IMAGES},
    ),
    "text": Format({"text": ("text", "content", "document", "body")}, {"images": _IMAGES}),
}
SURE = {
    "prompt_completion": 0.9,
    "kto": 0.95,
    "text": 0.6,
}  # less than 1 where the columns may mean something else


def recognise(table: Table, format: str = "auto", columns: Mapping[str, str] | None = None) -> Schema:
    """The schema of a table, or of the format and columns given. DataError with every fault at once."""
    if not table.rows:
        raise DataError(*all_rejected(table.source, len(table.rejected), table.rejected))
    columns = {ours: theirs for ours, theirs in (columns or {}).items() if theirs}
    names = [format] if format != "auto" else [name for name in FORMATS if _has_fields(name, columns)]
    if faults := _mapping_faults(table, names, columns):
        raise DataError(*faults)
    asked = format != "auto"
    found = [schema for name in names if (schema := _fit(name, table, columns, asked))]
    if not found and format == "auto" and not columns and (guess := _guess(table)):
        return guess
    if not found:
        raise DataError(_no_fit(table, names))
    return max(found, key=lambda schema: schema.confidence)  # the first of equals


def convert(
    table: Table, schema: Schema, fixes: frozenset[str] = frozenset()
) -> tuple[list[Row], list[Rejected]]:
    """Every row of a table in the normal form, or its reason; both in the order of the table. No image is kept."""
    read = reader(schema, fixes, keep=Images(table.origin).keep)
    found = [read(number, record) for number, record in table.rows]
    return (
        [one for one in found if isinstance(one, Row)],
        [one for one in found if isinstance(one, Rejected)],
    )


def reader(
    schema: Schema,
    fixes: frozenset[str] = frozenset(),
    split_column: str = "",
    file: str = "",
    held_back: bool = False,
    keep: Keep | None = None,
) -> Callable[[int, object], Row | Rejected]:
    """(number, record) → the row in the normal form, or its reason with the fixes that would help.

    `held_back`: all rows are for validation, whatever a split column says. `keep`: finds the images that a row names.
    """
    converter, columns = CONVERTERS[schema.format], schema.columns
    images, keep = columns.get("images", ""), keep or Images().keep

    def converted(number: int, record: object, fixes: frozenset[str]) -> Row:
        if not isinstance(record, dict):
            raise no_object(record)
        cells = {ours: record.get(theirs) for ours, theirs in columns.items()}
        back = _is_held_back(record.get(split_column), split_column) if split_column else held_back
        found = placed(converter(Fields(cells, columns, fixes)), cells.get("images"), images, keep)
        return Row(number, **found, file=file, held_back=back)

    def read(number: int, record: object) -> Row | Rejected:
        try:
            return converted(number, record, fixes)
        except RowFault as fault:
            return _with_fixes(fault.rejected(number, file), record)

    def _with_fixes(rejected: Rejected, record: object) -> Rejected:
        for count in range(len(MECHANICAL), 0, -1):  # all of them first: most rows cannot be helped
            for chosen in combinations(MECHANICAL, count):
                try:
                    row = converted(rejected.number, record, fixes | set(chosen))
                except RowFault:
                    continue
                rejected = replace(rejected, fixes=chosen, before=_shortened(record), after=_spoken(row))
                break
            else:
                return rejected
        return rejected

    return read


def _is_held_back(value: object, column: str) -> bool:
    spelled = str(value).strip().lower()
    if spelled in HELD_BACK | LEARNED:
        return spelled in HELD_BACK
    raise RowFault(
        column, "nothing" if value is None else value, "The split column must say on which side the row is.",
        "Write train or validation (also dev, eval or test).",
    )  # fmt: skip


def _shortened(record: object) -> str:
    return json.dumps(without_bytes(record), ensure_ascii=False, default=str)[:PREVIEW_CHARACTERS]


def _spoken(row: Row) -> str:
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in row.messages)[:PREVIEW_CHARACTERS]


def all_rejected(source: str, count: int, rejected: list[Rejected]) -> list[Fault]:
    """That no row is left, and the first reasons."""
    rule = f"None of the {count:,} rows can be used."
    way_out = "The first reasons follow. Mend the rows, or map other columns (data.columns)."
    first = [one.as_fault(source) for one in rejected[:REASONS_SHOWN]]
    return [Fault(source, "", rule, way_out), *first]


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


def _fit(name: str, table: Table, columns: Mapping[str, str], asked: bool) -> Schema | None:
    """The schema with its columns and how sure it is; None where a needed column is missing or of another kind.

    `asked`: whether it was named by hand; then each row may say what is wrong with it.
    """
    form = FORMATS[name]
    chosen: dict[str, str] = {}
    guesses = 0
    for ours, aliases in {**form.needs, **form.may}.items():
        theirs = columns.get(ours) or _by_name(aliases, table.columns, set(chosen.values()))
        if ours not in columns and ours in ("messages", "conversations"):
            theirs = _turn_column(table, "role" if ours == "messages" else "from", theirs)
        if ours == "label" and ours not in columns and not asked and not _are_labels(table, theirs):
            theirs = None
        if ours == "images" and ours not in columns and not _are_images(table, theirs):
            theirs = None
        if theirs:
            chosen[ours] = theirs
            if ours in form.needs and ours not in columns and theirs != ours:
                guesses += 0.2 if theirs.strip().lower() in aliases else 3
        elif ours in form.needs:
            return None
    share = _share_filled(table, [chosen[ours] for ours in form.needs if ours != "label"])
    because = ", ".join(ours if ours == theirs else f"{theirs} as {ours}" for ours, theirs in chosen.items())
    how = "mapped by hand" if columns else "recognised by its columns"
    unused = [column for column in table.columns if column not in chosen.values()]
    why = f"{how}: {because}." + (f" Not used: {', '.join(unused[:COLUMNS_SHOWN])}." if unused else "")
    sure = 1.0 if columns else SURE.get(name, 1.0)
    return Schema(name, chosen, why[0].upper() + why[1:], max(0.05, round(sure * share - 0.1 * guesses, 2)))


def _guess(table: Table) -> Schema | None:
    """Question and answer where no name tells anything and just two columns hold texts; a text where one does."""
    known = {
        alias for form in FORMATS.values() for names in (form.needs | form.may).values() for alias in names
    }
    if (known - {*_IMAGES}) & {column.strip().lower() for column in table.columns}:
        return None
    sample = [record for _, record in table.rows[:SAMPLE_ROWS]]
    images = {
        ours: one
        for ours in ("images",)
        if _are_images(table, one := _by_name(_IMAGES, table.columns, set()))
    }
    texts = [
        column
        for column in table.columns
        if column not in images.values() and _is_text([record.get(column) for record in sample])
    ]
    if len(texts) == 2:
        question, answer = texts
        why = f"A guess, since no column has a known name: {question} as prompt, {answer} as completion, the only two columns of text."
        return Schema("prompt_completion", {"prompt": question, "completion": answer, **images}, why, 0.4)
    if len(texts) == 1:
        why = f"A guess, since no column has a known name: {texts[0]} as text, the only column of text."
        return Schema("text", {"text": texts[0]}, why, 0.3)
    return None


def _is_text(cells: list) -> bool:
    """Whether a column holds texts, not numbers, and not a few words that come again and again."""
    texts = [
        cell for cell in cells if isinstance(cell, str) and not cell.strip().replace(".", "", 1).isdecimal()
    ]
    few = len(cells) >= FEW_WORDS_FROM_ROWS and len(set(texts)) <= FEW_WORDS
    return 5 * len(texts) >= 4 * len(cells) and not few


def _are_images(table: Table, column: str | None) -> bool:
    """Whether any cell of a column names an image; else it is a column like any other."""
    return any(looks_like_image(record.get(column)) for _, record in table.rows)


def _are_labels(table: Table, column: str | None) -> bool:
    """Whether most cells of a column say yes or no; the other rows are then left out with that reason."""
    cells = [record.get(column) for _, record in table.rows[:SAMPLE_ROWS]] if column else []
    return 5 * sum(map(looks_like_label, cells)) >= 4 * len(cells) > 0


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
