"""What is offered is what was tried: the record of docs/support.md, its rules, and a diagonal of the matrix itself."""

from typing import get_args

import pytest

from benchmarks import support_cell as matrix
from benchmarks.support import PAGE
from benchmarks.support_table import FAILS, REFUSED, WORKS, Cell, read, render
from gemma_tune import catalog, config, data, support
from gemma_tune.errors import ConfigError
from gemma_tune.objectives import OBJECTIVES
from gemma_tune.workers import arguments, modeling

# Every family, every method and every objective at least once.
DIAGONAL = [
    Cell("Gemma", "SFT", "DoRA"),
    Cell("Gemma 2", "Text", "full"),
    Cell("Gemma 2", "Reward model", "QLoRA nf4"),
    Cell("Gemma 3, text", "SFT", "QLoRA int8"),
    Cell("Gemma 3, text", "SFT", "LoftQ"),
    Cell("Gemma 3, multimodal", "DPO", "LoRA"),
    Cell("Gemma 3, multimodal", "SFT, images", "QLoRA nf4"),
    Cell("FunctionGemma", "SFT", "rsLoRA"),
    Cell("Gemma 3n, text", "ORPO", "full"),
    Cell("Gemma 3n, multimodal", "KTO", "LoRA"),
    Cell("Gemma 4, text", "SFT", "PiSSA"),
    Cell("Gemma 4, multimodal", "GRPO", "LoRA"),
    Cell("Gemma 4, multimodal", "SFT, images", "full"),
    Cell("Gemma 4, experts", "SFT", "OLoRA"),
    Cell("Gemma 4, unified", "SFT", "gaussian"),
    Cell("Gemma 4, unified", "SFT, images", "LoRA"),
    Cell("Gemma 4, unified", "Reward model", "LoRA"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Rows, and room for the tiny models."""
    return matrix.write_rows(tmp_path_factory.mktemp("support"))


def refused(cell: Cell) -> str:
    """What the page and the data check say of a cell on a machine without a GPU."""
    model_type, _ = matrix.FAMILIES[cell.family]
    images = cell.objective == "SFT, images"
    wanted = matrix.config_of(cell, "pocket", matrix.ROOT)
    found = support.fault_of(wanted, model_type, has_gpu=False, images=images)
    return found.rule if found else ""


@pytest.mark.training
@pytest.mark.parametrize("cell", DIAGONAL, ids=str)
def test_a_cell_trains_and_reloads_or_is_refused_as_the_page_says(cell, place):
    model = place / cell.family
    outcome = matrix.run_cell(cell, model if model.exists() else matrix.build(cell.family, model), place)
    assert outcome.kind == (REFUSED if refused(cell) else WORKS), f"{cell}: {outcome.reason}"
    assert outcome.reason == refused(cell)


@pytest.mark.training
def test_a_cell_whose_training_changes_nothing_fails(place, gemma3, monkeypatch):
    monkeypatch.setattr(matrix, "COMMON", (*matrix.COMMON, "train.learning_rate=1e-12"))
    outcome = matrix.run_cell(Cell("Gemma 3, text", "SFT", "LoRA"), gemma3, place)
    assert outcome.kind == FAILS and "those of the base" in outcome.reason


def test_the_diagonal_meets_every_family_method_and_objective():
    for part, known in (
        ("family", matrix.FAMILIES),
        ("objective", matrix.OBJECTIVES),
        ("method", matrix.METHODS),
    ):
        assert {getattr(cell, part) for cell in DIAGONAL} == set(known)


# ---- the record ------------------------------------------------------------------------------------------------------
def recorded():
    return read(PAGE.read_text(encoding="utf-8"))


def test_the_record_holds_every_cell_of_the_matrix_and_none_fails():
    results = recorded()
    assert set(results) == set(matrix.cells())
    assert not {str(cell): one.reason for cell, one in results.items() if one.kind == FAILS}


def test_what_is_refused_is_what_the_record_refuses_for_the_same_reason():
    for cell, outcome in recorded().items():
        assert outcome.reason == refused(cell), cell
        assert (outcome.kind == REFUSED) == bool(outcome.reason), cell


def test_a_page_is_read_back_as_it_was_written():
    results = recorded()
    assert read(render(results, minutes=1)) == results


# ---- what is offered -------------------------------------------------------------------------------------------------
def offered(setting: str) -> set:
    return set(get_args(config.field_of(setting).annotation)) or {True, False}


def test_whatever_the_form_offers_stands_in_the_matrix():
    tried = [matrix.config_of(cell, "pocket", matrix.ROOT) for cell in matrix.cells()]
    for setting in (
        "method.type", "method.quantization", "method.init_lora_weights", "method.use_dora", "method.use_rslora",
        "objective.type",
    ):  # fmt: skip
        assert {config.flat(one)[setting] for one in tried} == offered(setting), setting
    assert {one.objective.type for one in tried} == set(OBJECTIVES)
    types = {model_type.removesuffix("_text") for model_type, _ in matrix.FAMILIES.values()}
    assert types == {model_type.removesuffix("_text") for model_type in catalog.MODEL_TYPES}


# ---- everybody says the same -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("model_type", catalog.MODEL_TYPES)
def test_a_reward_model_is_refused_exactly_where_transformers_has_none(model_type):
    has_head = bool(modeling.CLASSES[model_type].scores)
    assert has_head == (support.refusal(model_type, "reward") == "")


def test_the_data_check_refuses_what_the_page_does_not_offer(gemma3n, place):
    asked = matrix.config_of(Cell("Gemma 3n, text", "Reward model", "LoRA"), gemma3n, place)
    (told,) = [fault for fault in data.check(asked).faults if fault.where == "objective.type"]
    assert told == support.fault("gemma3n_text", "reward")
    fine = matrix.config_of(Cell("Gemma 3n, text", "DPO", "LoRA"), gemma3n, place)
    assert not data.check(fine).faults


@pytest.mark.parametrize(
    ("settings", "gpu", "rule"),
    [
        ({"init_lora_weights": "loftq"}, False, "on a GPU only"),
        ({"init_lora_weights": "loftq"}, True, ""),
        ({"init_lora_weights": "loftq"}, None, ""),  # not known yet
        ({"init_lora_weights": "pissa", "use_dora": True}, True, "DoRA's magnitudes"),
        ({"method_type": "full", "init_lora_weights": "loftq"}, False, ""),
        ({"method_type": "qlora", "init_lora_weights": "olora"}, True, "unquantized weights"),
    ],
)
def test_starts_of_an_adapter_are_refused_where_they_cannot_be_made(settings, gpu, rule):
    told = support.refusal("gemma3_text", **settings, has_gpu=gpu)
    assert rule in told and bool(told) == bool(rule)


def test_words_are_those_of_the_configuration_and_of_the_worker():
    with pytest.raises(ConfigError) as caught:
        config.parse({"method": {"type": "qlora", "init_lora_weights": "pissa"}})
    assert caught.value.faults == (support.fault("gemma2", method_type="qlora", init_lora_weights="pissa"),)
    values = {"method": {"use_dora": True, "init_lora_weights": "pissa"}}
    dora = config.RunConfig.model_validate(values)  # the worker refuses what nobody has looked at before, too
    with pytest.raises(ConfigError) as caught:
        config.parse(values)
    assert caught.value.faults == (support.fault_of(dora, "gemma2"),)
    with pytest.raises(ConfigError) as caught:
        arguments.lora_config(dora, ["q_proj"])
    assert caught.value.faults == (support.fault_of(dora, "gemma2"),)
