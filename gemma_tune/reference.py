"""docs/settings.md, written from `config.py`: `python -m gemma_tune.reference > docs/settings.md`."""

from __future__ import annotations

import sys

from gemma_tune.config import range_text, settings

HEAD = """# Every setting

Written by `python -m gemma_tune.reference` from `gemma_tune/config.py`; a test keeps it so. Names are those of
Transformers, PEFT and TRL. In a YAML file: `train: {learning_rate: 1e-4}`; on the command line:
`train.learning_rate=1e-4`.
"""


def page() -> str:
    """The page as Markdown, one table per section."""
    lines, section = [HEAD], ""
    for dotted, info in settings():
        extra = info.json_schema_extra
        if dotted.split(".")[0] != section:
            section = dotted.split(".")[0]
            lines.append(
                f"\n## {section}\n\n| setting | default | allowed | what it does |\n| --- | --- | --- | --- |"
            )
        unit = f" ({extra['unit']})" if extra["unit"] else ""
        only = f" Only for {_condition(extra['only'])}." if extra["only"] else ""
        default = f"`{info.default}`" if info.default != "" else "empty"
        lines.append(f"| `{dotted}` | {default}{unit} | {range_text(dotted)} | {info.description}{only} |")
    return "\n".join(lines) + "\n"


def _condition(only: dict[str, tuple]) -> str:
    return ", ".join(
        f"{name.partition('.')[2]} {' or '.join(map(str, values))}" for name, values in only.items()
    )


if __name__ == "__main__":
    sys.stdout.write(page())
