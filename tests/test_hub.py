"""Model look-up, on local folders and against a small server that speaks the Hub's API. No network is used."""

import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data.fake_hub import COMMIT, VALID_TOKEN, serve

from gemma_tune import hub
from gemma_tune.errors import AccessError, ConfigError, ModelError

CONFIG = {"model_type": "gemma3_text", "max_position_embeddings": 512}


def safetensors(**shapes: list[int]) -> bytes:
    header = json.dumps(
        {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in shapes.items()}
    ).encode()
    return struct.pack("<Q", len(header)) + header


def model_files(config: dict = CONFIG) -> dict[str, bytes]:
    return {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b"{}",
        "model.safetensors": safetensors(a=[3, 4], b=[5]),
        "model.gguf": b"large",
    }


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GEMMA_TUNE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def model(folder):
    """Writes a model folder and gives its path."""

    def write(config: dict = CONFIG, without: str = "") -> str:
        for name, data in model_files(config).items():
            if name != without:
                (folder / name).write_bytes(data)
        return str(folder)

    return write


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """The server as the Hub, with an empty cache and no token of the user's."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with serve() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def fault_of(kind: type, *arguments, call=hub.inspect_model):
    with pytest.raises(kind) as caught:
        call(*arguments)
    assert type(caught.value) is kind
    (fault,) = caught.value.faults
    assert fault.rule and fault.way_out
    return fault


# ── local folders ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_local_folder_is_read_without_loading_it(model):
    facts = hub.inspect_model(model())
    assert facts.path == model() and facts.on_disk and facts.card is None
    assert (facts.model_type, facts.parameters, facts.context_tokens) == ("gemma3_text", 17, 512)
    assert facts.bytes_on_disk == len(model_files()["model.safetensors"])
    assert hub.tokenizer_folder(model()) == Path(model())


@pytest.mark.parametrize(
    ("config", "value", "rule"),
    [
        ({"model_type": "llama"}, "llama", "not a Gemma model"),
        ({}, "no model_type", "not a Gemma model"),
        ({**CONFIG, "auto_map": {"AutoModel": "x.Y"}}, "auto_map", "names code to run"),
        ({**CONFIG, "text_config": {"auto_map": {}}}, "text_config.auto_map", "names code to run"),
        ({**CONFIG, "a": [{"_attn_implementation_internal": "x/y"}]}, "a._attn_implementation_internal", "private field"),
        ({**CONFIG, "_experts_implementation_internal": "x/y"}, "_experts_implementation_internal", "private field"),
    ],
)  # fmt: skip
def test_a_model_that_is_no_plain_gemma_is_refused(model, config, value, rule):
    fault = fault_of(ModelError, model(config))
    assert fault.value == value and rule in fault.rule


def test_a_model_without_safetensors_is_refused(model, folder):
    path = model(without="model.safetensors")
    assert "no whole set of *.safetensors" in fault_of(ModelError, path).rule
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "may carry code" in fault_of(ModelError, path).rule


def test_a_missing_shard_makes_the_weights_incomplete(model, folder):
    path = model()
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1.safetensors").write_bytes(safetensors(a=[2]))
    assert "no whole set" in fault_of(ModelError, path).rule
    (folder / "model-2.safetensors").write_bytes(safetensors(b=[3]))
    assert hub.inspect_model(path).parameters == 5


def test_a_folder_without_or_with_a_broken_config_is_refused(model, folder):
    assert "no config.json" in fault_of(ModelError, model(without="config.json")).rule
    (folder / "config.json").write_text("{")
    assert "cannot be read" in fault_of(ModelError, str(folder)).rule


def test_what_is_neither_folder_nor_id_is_refused(folder):
    assert "neither a folder nor an id" in fault_of(ModelError, str(folder / "none")).rule
    assert "outside" in fault_of(ConfigError, "/etc").rule
    assert "neither" in fault_of(ModelError, "gemma-3-1b-it").rule
    for strange in (f"me/{'x' * 300}", "me/\0", "🐈"):
        with pytest.raises((ConfigError, ModelError)):
            hub.inspect_model(strange)
    assert "outside" in fault_of(ConfigError, "../../../../etc").rule


@pytest.mark.skipif(
    not (Path(hub.__file__).parent / "pocket/model/model.safetensors").is_file(), reason="not made yet"
)
def test_pocket_gemma_is_on_disk():
    facts = hub.inspect_model("pocket")
    assert facts.on_disk and facts.gated is False and facts.card.label == "Pocket Gemma"
    assert 1e6 < facts.parameters <= 4e6 and facts.bytes_on_disk <= 8e6
    assert (hub.tokenizer_folder("pocket") / "chat_template.jinja").is_file()


def test_roots_are_the_projects_and_those_of_the_environment(folder, monkeypatch):
    monkeypatch.setenv("GEMMA_TUNE_ROOTS", os.pathsep.join(["/srv/models", ""]))
    assert hub.check_path("/srv/models/a", "x") == Path("/srv/models/a")
    assert hub.check_path(hub.examples_folder() / "a", "x")
    assert folder in hub.allowed_roots() and Path("/") not in hub.allowed_roots()
    monkeypatch.chdir("/")
    assert Path("/") not in hub.allowed_roots()
    assert "not a path" in fault_of(ConfigError, "a\0b", "x", call=hub.check_path).rule


def test_home_is_named_by_the_environment_or_lies_under_the_users(monkeypatch):
    monkeypatch.setenv("GEMMA_TUNE_HOME", "/tmp/a/../b")
    assert hub.home() == Path("/tmp/b")
    monkeypatch.delenv("GEMMA_TUNE_HOME")
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert hub.home() == Path.home() / ".gemma-tune"


# ── the Hub ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_model_of_the_hub_is_described_without_its_weights(fake):
    fake.add("models/me/gemma", model_files(), safetensors={"total": 17, "parameters": {"F32": 17}})
    facts = hub.inspect_model("me/gemma")
    assert (facts.id, facts.revision, facts.path, facts.on_disk) == ("me/gemma", COMMIT, None, False)
    assert (facts.model_type, facts.parameters, facts.context_tokens) == ("gemma3_text", 17, 512)
    assert (facts.gated, facts.licence) == (False, "gemma")
    assert facts.bytes_on_disk == len(model_files()["model.safetensors"])
    assert not any("safetensors" in request for request in fake.requests)


def test_only_the_tokenizer_is_downloaded_and_then_found_without_a_request(fake):
    fake.add("models/me/gemma", model_files())
    folder = hub.tokenizer_folder("me/gemma", COMMIT)
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    asked = len(fake.requests)
    assert hub.tokenizer_folder("me/gemma", COMMIT) == folder and len(fake.requests) == asked


def test_what_says_how_images_are_read_comes_with_the_tokenizer_also_where_an_older_download_lacks_it(fake):
    files = model_files()
    seeing = json.loads(files["config.json"]) | {"model_type": "gemma3", "vision_config": {"hidden_size": 8}}
    files["config.json"] = json.dumps(seeing).encode()
    fake.add("models/me/gemma", files)
    folder = hub.tokenizer_folder("me/gemma", COMMIT)
    fake.add("models/me/gemma", files | {"preprocessor_config.json": b"{}", "processor_config.json": b"{}"})
    assert hub.tokenizer_folder("me/gemma", COMMIT) == folder
    assert {"preprocessor_config.json", "processor_config.json"} <= {path.name for path in folder.iterdir()}
    asked = len(fake.requests)
    assert hub.tokenizer_folder("me/gemma", COMMIT) == folder and len(fake.requests) == asked


def test_text_can_be_read_without_a_network_by_a_model_that_sees(fake):
    files = model_files()
    seeing = json.loads(files["config.json"]) | {"model_type": "gemma3", "vision_config": {"hidden_size": 8}}
    fake.add("models/me/gemma", files | {"config.json": json.dumps(seeing).encode()})
    folder = hub.tokenizer_folder("me/gemma", COMMIT)
    fake.status = 503
    assert hub.tokenizer_folder("me/gemma", COMMIT) == folder


def test_a_model_wholly_in_the_cache_needs_no_network(fake, monkeypatch):
    from huggingface_hub import snapshot_download

    fake.add("models/me/gemma", model_files())
    path = snapshot_download("me/gemma", endpoint=fake.url, cache_dir=_cache())
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    facts = hub.inspect_model("me/gemma")
    assert facts.on_disk and facts.path == path and facts.revision == COMMIT


def _cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def test_what_is_on_disk_is_known_without_a_request(fake, model):
    assert hub.is_on_disk(model()) and not hub.is_on_disk("me/gemma") and not hub.is_on_disk("/etc")
    assert fake.requests == []


def test_an_id_that_the_hub_does_not_allow_is_told(fake):
    assert "not an id of the Hub" in fault_of(ModelError, "me/two--dashes").rule


def test_an_id_that_does_not_exist_says_where_to_look(fake):
    for token in (None, VALID_TOKEN):
        fault = fault_of(ModelError, "me/nothing", "main", token)
        assert fault.where == "me/nothing" and "no such model, or it is private" in fault.rule
        assert "https://huggingface.co/me/nothing" in fault.way_out


def test_a_revision_that_does_not_exist_is_named(fake):
    fake.add("models/me/gemma", model_files())
    assert "no such revision" in fault_of(ModelError, "me/gemma", "other").rule


def test_a_gated_model_tells_no_token_from_bad_token_from_licence(fake):
    fake.add("models/google/gemma-3-1b-it", model_files(), gated="manual")
    arguments = ("google/gemma-3-1b-it", "main")
    fault = fault_of(AccessError, *arguments)
    assert fault.value == "no token" and "gated" in fault.rule
    assert "https://huggingface.co/google/gemma-3-1b-it" in fault.way_out
    assert "https://huggingface.co/settings/tokens" in fault.way_out
    fault = fault_of(AccessError, *arguments, "hf_mistyped")
    assert (
        fault.value == "the token is not valid" and "https://huggingface.co/settings/tokens" in fault.way_out
    )
    assert "hf_mistyped" not in str(fault)
    fault = fault_of(AccessError, *arguments, VALID_TOKEN)
    assert fault.value == "licence not accepted"
    assert "https://huggingface.co/google/gemma-3-1b-it" in fault.way_out
    assert fault_of(AccessError, *arguments, call=hub.tokenizer_folder).value == "no token"
    fake.accepted = True
    facts = hub.inspect_model(*arguments, VALID_TOKEN)
    assert facts.gated and facts.card.label == "Gemma 3 1B"


def test_a_model_of_the_hub_that_is_not_gemma_is_refused_before_its_licence(fake):
    fake.add(
        "models/me/llama", model_files({"model_type": "llama"}), gated="auto", config={"model_type": "llama"}
    )
    fault = fault_of(ModelError, "me/llama")
    assert fault.value == "llama" and "not a Gemma model" in fault.rule
    fake.add("models/me/code", model_files({**CONFIG, "auto_map": {}}))
    assert "names code" in fault_of(ModelError, "me/code").rule
    files = model_files()
    del files["model.safetensors"]
    fake.add("models/me/bin", {**files, "pytorch_model.bin": b"x"})
    assert "no whole set of *.safetensors" in fault_of(ModelError, "me/bin").rule
    fake.add("models/me/none", {"model.safetensors": b"x"})
    assert "lacks this file" in fault_of(ModelError, "me/none").rule


def test_too_many_requests_and_trouble_of_the_server_are_told_apart(fake):
    fake.status = 429
    fault = fault_of(ModelError, "me/gemma")
    assert "too many requests" in fault.rule and "7 seconds" in fault.way_out
    fake.status = 503
    assert "trouble answering" in fault_of(ModelError, "me/gemma").rule


@pytest.mark.parametrize(("status", "value"), [(404, "404"), (403, "403"), (200, "not JSON")])
def test_an_answer_that_is_not_the_hubs_is_told(fake, status, value):
    fake.status, fake.body = status, b"<html>log in to this network</html>"
    fault = fault_of(ModelError, "me/gemma")
    assert fault.value == value and "does not speak as the Hub does" in fault.rule
    assert fake.url in fault.rule and "proxy" in fault.way_out


def test_no_network_is_told_at_once(fake, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing listens
    begun = time.monotonic()
    for call in (hub.inspect_model, hub.tokenizer_folder):
        fault = fault_of(ModelError, "google/gemma-3-1b-it", call=call)
        assert "cannot be reached" in fault.rule and "Pocket Gemma" in fault.way_out
    assert time.monotonic() - begun < 5


def test_a_server_that_stalls_is_given_up(fake, monkeypatch):
    monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.3)
    fake.add("models/me/gemma", model_files(), stall=3)
    begun = time.monotonic()
    assert "cannot be reached" in fault_of(ModelError, "me/gemma").rule
    assert time.monotonic() - begun < 2.5


@pytest.mark.parametrize(
    ("trouble", "rule", "told"),
    [
        ({"stall_at": 1}, "cannot be reached", "timed out"),
        ({"break_at": 1}, "cannot be reached", "closed connection"),
        ({"file_status": 429, "retry_after": 33}, "too many requests", "33 seconds"),
        ({"file_status": 503}, "trouble answering", "503"),
    ],
)
def test_a_download_that_stalls_breaks_off_or_is_refused_is_told(fake, monkeypatch, trouble, rule, told):
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)  # between the tries of the library
    fake.add("models/me/gemma", model_files(), **trouble)
    for call in (hub.inspect_model, hub.tokenizer_folder):
        fault = fault_of(ModelError, "me/gemma", call=call)
        assert rule in fault.rule and told in str(fault)


def test_a_private_model_needs_the_token_of_its_account(fake):
    fake.add("models/me/gemma", model_files(), private=True)
    assert "or it is private" in fault_of(ModelError, "me/gemma").rule
    assert hub.inspect_model("me/gemma", "main", VALID_TOKEN).parameters is None


def test_offline_forbids_every_request(fake, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for call in (hub.inspect_model, hub.tokenizer_folder):
        assert "HF_HUB_OFFLINE" in fault_of(ModelError, "me/gemma", call=call).rule
    assert fake.requests == []


def test_importing_the_look_up_loads_no_library():
    code = (
        "import sys, gemma_tune.hub; "
        "print([name for name in ('torch', 'transformers', 'datasets', 'huggingface_hub', 'gradio') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# ── adapters and runs ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def run(folder, model):
    """Writes a run that saved an adapter (of the model folder, where nothing else is said) or a whole model."""

    def write(name: str, base: str = "", whole: bool = False, **adapter: object) -> Path:
        path = folder / "runs" / name
        (path / "model").mkdir(parents=True)
        (path / "config.yaml").write_text(json.dumps({"model": {"id": base or model(), "revision": "main"}}))
        files = model_files() if whole else {"adapter_model.safetensors": safetensors(a=[2])}
        for name, data in files.items():
            (path / "model" / name).write_bytes(data)
        if not whole:
            own = {"peft_type": "LORA", "base_model_name_or_path": "/somewhere/else"}
            (path / "model" / "adapter_config.json").write_text(json.dumps(own | adapter))
        return path

    return write


def test_a_run_that_trained_an_adapter_is_its_base_with_the_adapter(run, model):
    path = run("first")
    facts = hub.inspect_model("run:first")
    assert facts.adapter == str(path / "model")
    assert (facts.id, facts.path, facts.parameters) == (model(), model(), 17)
    assert hub.inspect_model(str(path / "model")) == facts, "the folder says the same"
    assert hub.is_on_disk("run:first")
    assert hub.inspect_model(model()).adapter is None


def test_a_run_that_trained_all_weights_is_a_model_of_its_own(run):
    path = run("whole", whole=True)
    facts = hub.inspect_model("run:whole")
    assert facts.adapter is None and facts.path == str(path / "model") and facts.parameters == 17


def test_a_run_on_a_run_has_the_first_base_and_the_last_adapter(run, model):
    run("first")
    second = run("second", base="run:first")
    assert hub.inspect_model("run:second").path == model()
    assert hub.inspect_model("run:second").adapter == str(second / "model")
    whole = run("whole", base="run:second", whole=True)
    third = run("third", base="run:whole")
    facts = hub.inspect_model("run:third")
    assert (facts.path, facts.adapter) == (str(whole / "model"), str(third / "model"))


def test_the_base_of_a_run_is_the_very_commit_that_it_was_trained_on(fake, run):
    fake.add("models/me/gemma", model_files())
    path = run("first", base="me/gemma")
    (path / "provenance.json").write_text(json.dumps({"model_revision": COMMIT}))
    facts = hub.inspect_model("run:first", "other")
    assert (facts.id, facts.revision, facts.path) == ("me/gemma", COMMIT, None)
    assert facts.adapter == str(path / "model")
    assert not hub.is_on_disk("run:first")


def test_the_tokenizer_of_an_adapter_is_its_own_or_that_of_its_base(run, model):
    path = run("first")
    assert hub.tokenizer_folder("run:first") == Path(model())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / "model" / name).write_text("{}")
    assert hub.tokenizer_folder("run:first") == path / "model"


def test_an_adapter_folder_of_its_own_names_its_base(run, model, folder):
    own = run("first", base_model_name_or_path=model()) / "model"
    elsewhere = own.rename(folder / "adapter")
    facts = hub.inspect_model(str(elsewhere))
    assert (facts.path, facts.adapter) == (model(), str(elsewhere))


@pytest.mark.parametrize(
    ("adapter", "kind", "rule"),
    [
        ({"base_model_name_or_path": "/home/another/model"}, ConfigError, "outside the folders"),
        ({"base_model_name_or_path": None}, ModelError, "names no base_model_name_or_path"),
        ({"peft_type": "LOHA"}, ModelError, "Only LoRA adapters"),
        ({"auto_mapping": {"parent_library": "evil.code"}}, ModelError, "names code to run"),
    ],
)
def test_an_adapter_that_cannot_be_trusted_or_placed_is_refused(run, folder, adapter, kind, rule):
    own = run("first", **adapter) / "model"
    elsewhere = own.rename(folder / "adapter")
    assert rule in fault_of(kind, str(elsewhere)).rule


def test_a_run_that_is_missing_or_has_no_model_is_told(run, folder):
    for name in ("run:none", "run:", "run:../first", "run:first/model"):
        assert "no such run" in fault_of(ModelError, name).rule
    path = run("first")
    (path / "model" / "adapter_model.safetensors").unlink()
    assert "no adapter_model.safetensors" in fault_of(ModelError, "run:first").rule
    (path / "model").rename(folder / "taken")
    assert "saved no model" in fault_of(ModelError, "run:first").rule
    assert not hub.is_on_disk("run:first")


def test_a_run_whose_files_were_edited_is_told(run):
    path = run("first")
    for broken in ("model: {", "model: none", "- a list", "model: {revision: main}"):
        (path / "config.yaml").write_text(broken)
        assert "which model the run began from" in fault_of(ModelError, "run:first").rule
    (path / "config.yaml").write_text("model: {id: x/y}")
    (path / "model" / "adapter_config.json").write_text("[]")
    assert "cannot be read" in fault_of(ModelError, "run:first").rule


def test_adapters_that_stand_on_each_other_are_no_endless_search(run):
    run("first", base="run:second")
    run("second", base="run:first")
    assert "itself as its base" in fault_of(ModelError, "run:first").rule


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "gemma4_assistant"}, "draft model"),
        ({"model_type": "gemma4_unified_assistant"}, "draft model"),
        ({"model_type": "diffusion_gemma"}, "by diffusion"),
        ({"model_type": "embedding_gemma2_text"}, "embedding model"),
        ({**CONFIG, "use_bidirectional_attention": True}, "embedding model"),
        ({"model_type": "t5gemma2"}, "encoder-decoder"),
        ({"model_type": "paligemma"}, "about images"),
    ],
)
def test_a_gemma_of_another_kind_is_refused_with_the_reason(model, config, why):
    assert why in fault_of(ModelError, model(config)).rule
