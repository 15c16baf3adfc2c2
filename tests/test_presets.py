from pathlib import Path

import pytest
import yaml

from gemma_tune.config import RunConfig, load

ROOT = Path(__file__).parent.parent
PRESETS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_is_short_valid_and_says_only_what_differs(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 15
    config = load(path)
    default = RunConfig().model_dump()
    for section, values in yaml.safe_load(text).items():
        if section in ("model", "data", "method"):
            continue  # named for the reader even where they are the defaults
        for name, value in values.items():
            assert default[section][name] != value, f"{section}.{name} is the default already"
    assert config.output.name == path.stem


def test_the_presets_on_the_built_in_examples_are_there():
    assert {"pocket-lora", "pocket-full"} <= {path.stem for path in PRESETS}
