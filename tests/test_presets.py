from pathlib import Path

import pytest
import yaml

from gemma_tune.catalog import MODELS
from gemma_tune.config import RunConfig, load
from gemma_tune.data.sources import example_names
from gemma_tune.objectives import OBJECTIVES

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


def test_every_objective_and_method_has_a_preset():
    configs = [load(path) for path in PRESETS]
    assert {one.objective.type for one in configs} == set(OBJECTIVES)
    assert {one.method.type for one in configs} == {"lora", "qlora", "full"}


def test_a_preset_names_a_model_of_the_catalogue_and_data_that_are_there():
    for config in map(load, PRESETS):
        assert config.model.id in MODELS
        kind, _, name = config.data.source.partition(":")
        assert kind == "hub" or name in example_names()
