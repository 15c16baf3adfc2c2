"""The promise of the first minute: a run on the built-in model visibly changes its answers, and says so truthfully."""

import time
from pathlib import Path

import pytest

from gemma_tune.config import load
from gemma_tune.runs import engine

pytestmark = pytest.mark.training
ROOT = Path(__file__).parent.parent
RUN_SECONDS = 90


def finished(config):
    """Run it through the whole engine; (state at the end, seconds from start to end)."""
    run_id = engine.start(config)
    deadline = time.monotonic() + 4 * RUN_SECONDS
    while not (state := engine.reconcile(run_id)).is_over:
        assert time.monotonic() < deadline, f"{state.status} at step {state.step}"
        time.sleep(0.2)
    assert state.status == "finished", (state.message, state.log_tail[-10:])
    return state, state.ended_time - state.created_time


@pytest.mark.parametrize(
    ("preset", "example"),
    [
        ("pocket-lora", "pocket-json"),
        ("pocket-lora", "pocket-orders"),
        ("pocket-lora", "pocket-polite"),
        ("pocket-full", "pocket-orders"),
    ],
)
def test_a_run_lifts_exact_match_on_held_out_rows_from_under_20_to_over_80_percent(
    tmp_path, monkeypatch, preset, example
):
    monkeypatch.setenv("GEMMA_TUNE_HOME", str(tmp_path))
    state, seconds = finished(load(ROOT / "configs" / f"{preset}.yaml", [f"data.source=example:{example}"]))
    print(
        f"{preset} {example}: {state.report['base_exact_match']:.0%} to {state.report['tuned_exact_match']:.0%}, {seconds:.0f} s"
    )
    assert state.report["rows"] >= 60
    assert state.report["base_exact_match"] < 0.2
    assert state.report["tuned_exact_match"] > 0.8
    assert state.report["tuned_loss"] < state.report["base_loss"]
    assert seconds <= RUN_SECONDS
