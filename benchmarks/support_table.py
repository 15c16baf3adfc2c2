"""The page of `benchmarks.support`: written from outcomes, and read back into them."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from importlib.metadata import version

import psutil

WORKS, REFUSED, FAILS = "works", "refused", "fails"
SIGNS = {WORKS: "✓", REFUSED: "—", FAILS: "✗"}
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes")
NOTE = re.compile(r"(?m)^(\d+)\. (.+)$")


@dataclass(frozen=True)
class Cell:
    """One training of the matrix, by its titles in the tables."""

    family: str
    objective: str
    method: str

    def __str__(self) -> str:
        return f"{self.family} | {self.objective} | {self.method}"


@dataclass(frozen=True)
class Outcome:
    kind: str  # WORKS, REFUSED or FAILS
    reason: str = ""


Results = dict[Cell, Outcome]


def summary(results: Results, minutes: float) -> str:
    """Counts, and every cell that fails."""
    kinds = [outcome.kind for outcome in results.values()]
    told = ", ".join(
        f"{kinds.count(kind)} {word}"
        for kind, word in zip(SIGNS, ("work", "are refused", "fail"), strict=True)
    )
    broken = [f"{cell}: {outcome.reason}" for cell, outcome in results.items() if outcome.kind == FAILS]
    return "\n".join([f"Of {len(kinds)} cells {told}; {minutes:.0f} minutes.", *broken])


def render(results: Results, minutes: float) -> str:
    notes = list(dict.fromkeys(outcome.reason for outcome in results.values() if outcome.reason))
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    memory = psutil.virtual_memory().total / 2**30
    lines = [
        "# What trains with what",
        "",
        "Made by `python -m benchmarks.support --write`; do not edit. Each cell is a run of the product on a tiny random "
        "model of the family's architecture: the form's defaults, two optimizer steps, a validation after each, the result "
        "saved and loaded anew. ✓: the losses are numbers, the model answers otherwise than before, and what was saved "
        "answers as what was trained. —: refused before the training, with the reason below; the page does not offer it.",
        "",
        f"{summary(results, minutes).splitlines()[0]} Machine: {platform.processor() or platform.machine()}, "
        f"{psutil.cpu_count()} cores, {memory:.0f} GiB, no GPU; Python {platform.python_version()}, {versions}.",
        "",
    ]
    for objective in dict.fromkeys(cell.objective for cell in results):
        lines += [*_table(objective, results, notes), ""]
    return "\n".join([*lines, *(f"{number}. {note}" for number, note in enumerate(notes, 1)), ""])


def _table(objective: str, results: Results, notes: list[str]) -> list[str]:
    own = [cell for cell in results if cell.objective == objective]
    methods = list(dict.fromkeys(cell.method for cell in own))
    lines = [f"## {objective}", "", f"| model | {' | '.join(methods)} |", "|---|" + ":-:|" * len(methods)]
    for family in dict.fromkeys(cell.family for cell in own):
        signs = [_sign(results[Cell(family, objective, method)], notes) for method in methods]
        lines.append(f"| {family} | {' | '.join(signs)} |")
    return lines


def _sign(outcome: Outcome, notes: list[str]) -> str:
    number = f" {notes.index(outcome.reason) + 1}" if outcome.reason else ""
    return SIGNS[outcome.kind] + number


def read(page: str) -> Results:
    """What `render` was given."""
    notes = dict(NOTE.findall(page))
    kinds = {sign: kind for kind, sign in SIGNS.items()}
    results: Results = {}
    for part in page.split("\n## ")[1:]:
        objective, _, head, _, *rows = part.splitlines()
        methods = _columns(head)[1:]
        for row in (row for row in rows if row.startswith("| ")):
            family, *signs = _columns(row)
            for method, sign in zip(methods, signs, strict=True):
                mark, _, number = sign.partition(" ")
                results[Cell(family, objective, method)] = Outcome(kinds[mark], notes.get(number, ""))
    return results


def _columns(row: str) -> list[str]:
    return row.strip("| ").split(" | ")
