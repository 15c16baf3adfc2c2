"""Every Gemma × objective × method, trained at tiny size: `python -m benchmarks.support`, `--write` for docs/support.md.

`benchmarks.support_cell` says what a cell is. A process of its own for each family; `--only gemma4` runs some of them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from benchmarks import support_table as table
from benchmarks.support_cell import FAMILIES, ROOT, build, cells, run_cell, write_rows
from benchmarks.support_table import FAILS, Cell, Outcome

PAGE = ROOT / "docs" / "support.md"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write docs/support.md")
    parser.add_argument("--only", default="", help="families whose name or model_type holds this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="families at the same time")
    parser.add_argument("--family", choices=list(FAMILIES), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.family:
        return _run_family(options.family)
    if options.write and options.only:
        parser.error("--write needs every family: leave --only out.")
    began = time.monotonic()
    wanted = list(dict.fromkeys(cell.family for cell in cells(options.only)))
    with ThreadPoolExecutor(options.jobs) as pool:
        parts = pool.map(_start_family, wanted)
    results = {cell: outcome for part in parts for cell, outcome in part.items()}
    minutes = (time.monotonic() - began) / 60
    if options.write:
        PAGE.write_text(table.render(results, minutes), encoding="utf-8")
    print(table.summary(results, minutes))
    return None


def _start_family(family: str) -> dict[Cell, Outcome]:
    """In a process of its own, so that one crash costs one family; with one thread, as many run at a time."""
    with tempfile.TemporaryDirectory(prefix="gemma-support-") as home:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "GEMMA_TUNE_HOME": home, "GEMMA_TUNE_ROOTS": home, "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.support", "--family", family]
        log = Path(home) / "log.txt"
        with log.open("wb") as file:
            code = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=file).returncode
        path = Path(home) / "results.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        told = {Cell(**line["cell"]): Outcome(**line["outcome"]) for line in map(json.loads, lines)}
        if code:
            print(log.read_text(errors="replace")[-3000:])
    lost = Outcome(FAILS, f"The process of this family ended with code {code}.")
    return {cell: told.get(cell, lost) for cell in cells() if cell.family == family}


def _run_family(family: str) -> None:
    """Every cell of a family, one line of JSON each into results.jsonl of the home."""
    home = Path(os.environ["GEMMA_TUNE_HOME"])
    model, rows = build(family, home / "model"), write_rows(home)
    with (home / "results.jsonl").open("w") as file:
        for cell in cells():
            if cell.family == family:
                outcome = run_cell(cell, model, rows)
                file.write(json.dumps({"cell": asdict(cell), "outcome": asdict(outcome)}) + "\n")
                file.flush()


if __name__ == "__main__":
    main()
