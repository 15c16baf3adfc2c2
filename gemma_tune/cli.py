"""The command line: the same engine as the page. Exit codes: 0 done, 1 the run failed, 2 something to mend first."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from gemma_tune.errors import GemmaTuneError

EXIT_OK, EXIT_FAILED, EXIT_MEND, EXIT_STOPPED = 0, 1, 2, 3
POLL_SECONDS = 0.5
BAR_CHARACTERS = 24
ROWS_NAMED = 5  # of a finding


def main(argv: list[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    try:
        code = arguments.call(arguments)
    except GemmaTuneError as error:
        for fault in error.faults:
            print(f"✗ {fault}", file=sys.stderr)
        code = EXIT_MEND
    except BrokenPipeError:
        code = EXIT_OK
    raise SystemExit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gemma-tune", description="Fine-tune a Gemma, watch it, compare it."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, call: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help)
        added.set_defaults(call=call)
        return added

    ui = command("ui", _ui, "Open the page in the browser.")
    ui.add_argument("--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
    ui.add_argument("--port", type=int, default=int(os.environ.get("GRADIO_SERVER_PORT", 7860)))
    for name, call, help in (
        ("train", _train, "Start a run and show it until it ends; Ctrl-C leaves it running."),
        ("check", _check, "Check configuration and data; nothing is started."),
        (
            "forecast",
            _forecast,
            "Memory, time and disk before anything is loaded; exit code 0 where it fits, 2 where not.",
        ),
    ):
        added = command(name, call, help)
        added.add_argument("config", help="a YAML file, such as configs/pocket-lora.yaml")
        added.add_argument("overrides", nargs="*", metavar="section.name=value")
    command("models", _models, "List the models of the catalogue.")
    command("runs", _runs, "List all runs, newest first.")
    for name, call, help in (
        ("watch", _watch, "Show a run until it ends."),
        ("resume", _resume, "Go on from the last complete checkpoint, and show it until it ends."),
        ("stop", _stop, "Finish the step, save, and end."),
        ("chat", _chat, "Ask base and tuned the same questions."),
    ):
        command(name, call, help).add_argument(
            "run", nargs="?", default="latest", help="id, its beginning, or latest"
        )
    commands.choices["stop"].add_argument("--now", action="store_true", help="end at once, without saving")
    chat = commands.choices["chat"]
    chat.add_argument("--temperature", type=float, default=0.0)
    chat.add_argument("--max-new-tokens", type=int, default=256)
    chat.add_argument("--seed", type=int, default=0)
    chat.add_argument("--system", default="", help="a system text")
    return parser


def _ui(arguments: argparse.Namespace) -> int:
    from gemma_tune.server import serve

    serve(arguments.host, arguments.port)
    return EXIT_OK


def _train(arguments: argparse.Namespace) -> int:
    from gemma_tune import data
    from gemma_tune.errors import DataError
    from gemma_tune.runs import engine

    config = _load(arguments)
    report = data.check(config, _token(), _reading)
    _print_report(report)
    if report.faults:
        raise DataError(*report.faults)
    run_id = engine.start(config, _token())
    print(f"Run {run_id}")
    return _follow(run_id)


def _check(arguments: argparse.Namespace) -> int:
    from gemma_tune import data

    report = data.check(_load(arguments), _token(), _reading)
    _print_report(report)
    for fault in report.faults:
        print(f"✗ {fault}", file=sys.stderr)
    if not report.faults:
        print("✓ Ready to train.")
    return EXIT_MEND if report.faults else EXIT_OK


def _forecast(arguments: argparse.Namespace) -> int:
    from gemma_tune import data, listing, outlook

    config = _load(arguments)
    report = data.check(config, _token(), _reading)
    found = outlook.forecast_of(config, report)
    for line in listing.forecast(config, found, outlook.device_of(config).name, report):
        print(line)
    if not found.fits:
        for line in listing.ways(outlook.ways(config, report)):
            print(line)
    return EXIT_OK if found.fits else EXIT_MEND


def _models(_: argparse.Namespace) -> int:
    from gemma_tune import listing

    for line in listing.models():
        print(line)
    return EXIT_OK


def _load(arguments: argparse.Namespace):
    from gemma_tune.config import load

    config = load(arguments.config, arguments.overrides)
    _allow(config)
    return config


def _allow(config) -> None:
    """Who owns the shell may read what they name: its files join the allowed roots of this process and its worker."""
    named = [config.data.source, config.data.validation_source, config.model.id]
    named += [one.source for one in config.data.mix]
    roots = os.environ.get("GEMMA_TUNE_ROOTS", "").split(os.pathsep)
    roots += [str(Path(name).resolve()) for name in named if name and Path(name).exists()]
    os.environ["GEMMA_TUNE_ROOTS"] = os.pathsep.join(root for root in roots if root)


def _reading(phase: str, done: int, total: int | None) -> None:
    """How far the check is, on a terminal."""
    if sys.stderr.isatty():
        share = f" {done / total:.0%}" if total else ""
        print(
            f"\r\033[K{phase}{share}" if phase != "looking" else "\r\033[K",
            end="",
            file=sys.stderr,
            flush=True,
        )


def _print_report(report) -> None:
    """Counts, then every rejected row, the findings and the warnings: nothing is left out silently."""
    schema = report.prepared.schema
    print(
        f"{report.rows_read:,} rows read as {schema.format}: {report.rows_accepted:,} accepted, "
        f"{report.rows_rejected:,} left out; {report.train_rows:,} to train on, {report.validation_rows:,} to check with"
    )
    print(f"{schema.why} ({schema.confidence:.0%} sure)")
    print(
        f"{report.total_tokens:,} tokens, {report.supervised_tokens:,} of them learned; {report.cut_rows:,} rows "
        f"are cut; {report.total_steps:,} steps, {report.steps_per_epoch:,} per epoch"
    )
    for row in report.prepared.store.rejected():
        place = ", ".join(filter(None, (f"{row.file} row {row.number}".strip(), row.place)))
        print(f"  {place}: {row.rule} Found: {row.value!r}. {row.way_out}")
    for fixes, count in report.fixable.items():
        print(f"  {count:,} of them can be mended: data.fixes=[{fixes.replace(' + ', ',')}]")
    for finding in report.findings:
        count = f"{finding.count:,} {'row' if finding.count == 1 else 'rows'}: " if finding.count else ""
        rows = ", ".join(f"{one.file} {one.number}".strip() for one in finding.examples[:ROWS_NAMED])
        print(
            f"{'!' if finding.tone == 'warm' else '·'} {finding.title}: {count}{finding.words}{f' Rows {rows}.' if rows else ''}"
        )
    for warning in report.warnings:
        print(f"! {warning}")


def _runs(_: argparse.Namespace) -> int:
    from gemma_tune.runs import engine
    from gemma_tune.runs.folder import list_runs

    folders = list_runs()
    if not folders:
        print("No runs yet. Start one: gemma-tune train configs/pocket-lora.yaml")
    for folder in folders:
        engine.reconcile(folder.id)
        state = engine.read_state(folder.id)
        loss = f"loss {state.loss:.3f}" if state.loss is not None else ""
        print(f"{folder.id:45} {state.status:10} step {state.step}/{state.max_steps or '?'}  {loss}")
    return EXIT_OK


def _watch(arguments: argparse.Namespace) -> int:
    return _follow(_find(arguments.run))


def _resume(arguments: argparse.Namespace) -> int:
    from gemma_tune.runs import engine
    from gemma_tune.runs.folder import find_run

    run_id = _find(arguments.run)
    _allow(find_run(run_id).config())
    engine.resume(run_id, _token())
    return _follow(run_id)


def _stop(arguments: argparse.Namespace) -> int:
    from gemma_tune.runs import engine

    run_id = _find(arguments.run)
    engine.stop(run_id, now=arguments.now)
    print(f"Asked {run_id} to stop.")
    return _follow(run_id, quiet=True) and EXIT_OK


def _follow(run_id: str, *, quiet: bool = False) -> int:
    """Show a progress line until the run ends; Ctrl-C stops the showing, not the run."""
    from gemma_tune.runs.follower import follower

    following = follower(run_id)
    try:
        while True:
            state, _ = following.snapshot()
            if not quiet:
                _progress(state)
            if state.is_over:
                break
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        print(f"\nThe run goes on. See it again: gemma-tune watch {run_id}")
        return EXIT_OK
    _print_end(state)
    return {"finished": EXIT_OK, "stopped": EXIT_STOPPED}.get(state.status, EXIT_FAILED)


def _progress(state) -> None:
    done = round(BAR_CHARACTERS * state.progress)
    bar = "█" * done + "·" * (BAR_CHARACTERS - done)
    loss = f" loss {state.loss:.3f}" if state.loss is not None else ""
    evaluated = f" eval {state.eval_loss:.3f}" if state.eval_loss is not None else ""
    speed = f" {state.tokens_per_second:,.0f} tokens/s" if state.tokens_per_second else ""
    left = f" {state.remaining_seconds:,.0f} s left" if state.is_live and state.remaining_seconds else ""
    phase = state.phase if state.is_live and state.phase else state.status
    line = f"{bar} {phase:10} {state.step}/{state.max_steps or '?'}{loss}{evaluated}{speed}{left}"
    if sys.stdout.isatty():
        print(f"\r\033[K{line}", end="", flush=True)
    elif line != getattr(_progress, "last", None):
        _progress.last = line
        print(line, flush=True)


def _print_end(state) -> None:
    print()
    if state.report:
        base, tuned = state.report.get("base_exact_match"), state.report.get("tuned_exact_match")
        if tuned is not None:
            print(
                f"Exact answers on {state.report['rows']} held-out rows: base {base:.0%}, tuned {tuned:.0%}"
            )
    for fault in state.faults or ():
        print(f"✗ {fault['where']}: {fault['rule']} {fault['way_out']}", file=sys.stderr)
    words = " ".join(
        part for part in (state.status.capitalize() + ".", state.message or "", state.way_out or "") if part
    )
    print(words, file=sys.stdout if state.status in ("finished", "stopped") else sys.stderr)


def _chat(arguments: argparse.Namespace) -> int:
    from gemma_tune.runs.chat import ChatSession
    from gemma_tune.runs.folder import find_run

    sampling = {
        "temperature": arguments.temperature,
        "top_p": 0.95,
        "top_k": 64,
        "max_new_tokens": arguments.max_new_tokens,
        "seed": arguments.seed,
    }
    run_id = _find(arguments.run)
    _allow(find_run(run_id).config())
    session = ChatSession(run_id, token=_token())
    print("Loading the model…", flush=True)
    session.start()
    try:
        session.wait_ready()
        print("Ask both. An empty line ends.")
        while question := _question():
            before = [{"role": "system", "content": arguments.system}] if arguments.system else []
            answers = {"base": "", "tuned": ""}
            for piece in session.ask([*before, {"role": "user", "content": question}], sampling):
                if "text" in piece:
                    answers[piece["column"]] += piece["text"]
            for column, text in answers.items():
                print(f"{column:>6}: {text.strip()}")
    finally:
        session.close()
    return EXIT_OK


def _question() -> str:
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        return ""


def _find(run: str) -> str:
    from gemma_tune.runs import engine
    from gemma_tune.runs.folder import find_run

    run_id = find_run(run).id
    engine.reconcile(run_id)
    return run_id


def _token() -> str | None:
    return os.environ.get("HF_TOKEN") or None
