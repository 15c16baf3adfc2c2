"""The benchmark's own arithmetic: which side a requirement is judged by, and what its table says."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks import speed_sides, speed_table

TITLES = {"270m": "Gemma 3 270M"}


def turn(
    side: str, tokens: float, peak_mb: float, *, losses=(12.5, 12.3), method="lora", malloc="tcmalloc"
) -> dict:
    return {
        "shape": "270m", "method": method, "malloc": malloc, "side": side, "repeat": 0, "tokens_per_cpu_second": tokens,
        "peak_mb": peak_mb, "first_step_cpu_seconds": 40.0, "losses": list(losses),
    }  # fmt: skip


def verdicts(results: list[dict]) -> dict[str, tuple[str, str]]:
    """Rule -> (measured, verdict) of the rendered table."""
    rows = [
        line.strip("| ").split(" | ") for line in speed_table.section("here", results, TITLES).splitlines()
    ]
    return {row[0]: (row[1], row[2]) for row in rows if row[-1] in ("met", "**missed**")}


def test_speed_and_memory_must_be_reached_by_the_same_side():
    apart = [turn("trl", 10, 1000), turn("ours-fastest", 60, 500), turn("ours-smallest", 30, 300)]
    found = verdicts(apart)
    assert found["LoRA: 5.0 × plain TRL"] == ("6.00 × at 0.50 × its memory", "met")
    assert found["LoRA: 4.0 × plain TRL at no more than 0.4 × its memory"][1] == "**missed**"
    together = verdicts([*apart, turn("ours", 41, 390)])
    assert together["LoRA: 4.0 × plain TRL at no more than 0.4 × its memory"] == (
        "4.10 × at 0.39 × its memory",
        "met",
    )


def test_a_median_outweighs_one_slow_turn():
    found = verdicts([turn("trl", 10, 1000), *(turn("ours-fastest", tokens, 500) for tokens in (51, 52, 5))])
    assert found["LoRA: 5.0 × plain TRL"] == ("5.10 × at 0.50 × its memory", "met")


def test_another_loss_curve_is_told():
    found = verdicts([turn("trl", 10, 1000), turn("ours", 50, 300, losses=(12.5, 12.32))])
    assert found["LoRA: losses within 0.001 of plain TRL's"] == ("1.6e-03", "**missed**")


def test_peers_as_installed_are_those_with_the_systems_allocator():
    results = [turn("trl", 5, 1000, malloc="glibc"), turn("ours-fastest", 50, 400, malloc="as-installed")]
    assert verdicts(results)["LoRA: 5.0 × plain TRL"] == ("10.00 × at 0.40 × its memory", "met")


def test_the_section_is_replaced_and_the_rest_of_the_page_stays():
    page = speed_table.with_section("# Measured\n\ntext\n", "old\n")
    again = speed_table.with_section(page + "## Later\n", "new\n")
    assert again == f"# Measured\n\ntext\n\n{speed_table.BEGIN}\nnew\n{speed_table.END}\n## Later\n"


def test_a_side_can_run_in_an_environment_without_this_project(tmp_path: Path):
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"side": "nobody"}))
    bare = [sys.executable, "-I", "-S", speed_sides.__file__, str(job)]
    assert "KeyError: 'nobody'" in subprocess.run(bare, capture_output=True, text=True, check=False).stderr
