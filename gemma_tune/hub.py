"""Models on the Hugging Face Hub or in a local folder, and the paths that a setting may name.

What fails ends as an error of ours with the page to open; every request gives up after a few seconds. No tokens are
kept here: one is passed in, or `huggingface_hub` finds the user's own.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path

from gemma_tune import catalog, hub_adapters, hub_client, hub_errors
from gemma_tune.errors import AccessError, ConfigError, ModelError
from gemma_tune.hub_config import check_model_config, context_tokens, read_config
from gemma_tune.hub_errors import hub_error, hub_failures, offline

__all__ = [
    "ModelFacts",
    "allowed_roots",
    "check_path",
    "dataset_files",
    "examples_folder",
    "home",
    "hub_error",
    "hub_failures",
    "inspect_model",
    "tokenizer_folder",
]

TIMEOUT_SECONDS = 5.0
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json")
IMAGE_FILES = ("processor_config.json", "preprocessor_config.json")  # either says how a model reads images
_MODEL_ID = re.compile(r"(?=.{3,96}$)[A-Za-z0-9][\w.-]*/[\w.-]+")  # the Hub allows 96 characters


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before anything of its weights is loaded. None: unknown."""

    id: str
    revision: str  # a commit where the Hub or its cache told it
    path: str | None  # the folder, where the model is local or wholly in the cache
    on_disk: bool
    model_type: str
    parameters: int | None
    context_tokens: int | None
    gated: bool | None
    licence: str
    bytes_on_disk: int | None  # of the weights; what a download costs where they are not on disk
    card: catalog.ModelCard | None
    adapter: str | None = None  # the folder of a LoRA adapter on top; everything else is told of its base


def home() -> Path:
    """Where runs and uploads live: GEMMA_TUNE_HOME, the disk of a Space, or ~/.gemma-tune."""
    if named := os.environ.get("GEMMA_TUNE_HOME"):
        return Path(named).expanduser().resolve()
    disk = Path("/data")
    if os.environ.get("SPACE_ID") and disk.is_dir() and os.access(disk, os.W_OK):
        return disk / "gemma-tune"
    return Path.home() / ".gemma-tune"


def examples_folder() -> Path:
    """The built-in data sets; it exists in a checkout of the repository only."""
    return Path(__file__).resolve().parent.parent / "examples"


def allowed_roots() -> list[Path]:
    """Folders under which a setting may name a path; GEMMA_TUNE_ROOTS adds to them."""
    from huggingface_hub import constants

    roots = [home(), Path(__file__).parent, examples_folder(), Path.cwd(), Path(constants.HF_HUB_CACHE)]
    added = [root for root in os.environ.get("GEMMA_TUNE_ROOTS", "").split(os.pathsep) if root]
    resolved = [root.expanduser().resolve() for root in [*roots, *map(Path, added)]]
    return [root for root in resolved if root != Path(root.anchor)]  # a server started in / opens nothing


def check_path(path: str | Path, where: str) -> Path:
    """The path resolved, links included. ConfigError where it lies under none of the allowed roots."""
    try:
        resolved = Path(path).expanduser().resolve()
        resolved.exists()  # a name that is too long is told here
    except (OSError, RuntimeError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError.at(
            where, str(path), f"This is not a path: {why}.", "Name a file or folder."
        ) from None
    if any(resolved.is_relative_to(root) for root in allowed_roots()):
        return resolved
    raise ConfigError.at(
        where, str(resolved), "The path lies outside the folders that may be read.",
        "Upload the file, or start with its folder in GEMMA_TUNE_ROOTS.",
    )  # fmt: skip


def inspect_model(model_id: str, revision: str = "main", token: str | None = None) -> ModelFacts:
    """What is known of a model. A model wholly on disk is looked up there, without a request.

    An adapter's folder, and run:ID of a run that trained one, are told as their base with `adapter` set.
    """
    model_id, revision, adapter = _base(model_id, revision)
    folder = local_folder(model_id)
    if folder is None:
        folder = _cached_folder(model_id, revision)
        if folder is None or not _is_complete(folder):
            return replace(_hub_facts(model_id, revision, token), adapter=adapter)
        revision = folder.name  # the cache names a snapshot after its commit
    elif model_id == catalog.POCKET_ID and not folder.is_dir():
        raise ModelError.at(
            model_id, str(folder), "Pocket Gemma is not in this installation.",
            "Make it with python -m gemma_tune.pocket.make.",
        )  # fmt: skip
    facts = _folder_facts(model_id, folder)
    return replace(facts, revision=revision, adapter=adapter)


def _base(model_id: str, revision: str) -> tuple[str, str, str | None]:
    """The id and revision of a whole model, and the folder of the adapter that the id names on top of it.

    Of adapters that were trained one after the other the last holds what all have learned.
    """
    adapter, met = None, set()
    while (folder := local_folder(model_id)) and hub_adapters.is_adapter(folder):
        if folder in met:
            raise ModelError.at("model.id", model_id, "This adapter names itself as its base.", "Choose another model.")  # fmt: skip
        met.add(folder)
        adapter = adapter or str(folder)
        model_id, revision = hub_adapters.base_of(folder)
    return model_id, revision, adapter


def is_on_disk(model_id: str, revision: str = "main") -> bool:
    """Whether nothing would have to be downloaded. Asks no network; an id that names nothing is not on disk."""
    try:
        model_id, revision, _ = _base(model_id, revision)
        folder = local_folder(model_id) or _cached_folder(model_id, revision)
    except (ConfigError, ModelError):
        return False
    return folder is not None and _is_complete(folder)


def config_path(model_id: str, revision: str = "main") -> Path | None:
    """The config.json of a model, or of an adapter's base, where it lies on this disk. Asks no network."""
    try:
        model_id, revision, _ = _base(model_id, revision)
        folder = local_folder(model_id) or _cached_folder(model_id, revision)
    except (ConfigError, ModelError):
        return None
    path = folder / "config.json" if folder else None
    return path if path and path.is_file() else None


def tokenizer_folder(model_id: str, revision: str = "main", token: str | None = None) -> Path:
    """A folder with the tokenizer's files, and what says how images are read; downloads nothing else."""
    local = local_folder(model_id)
    folder = local or _cached_folder(model_id, revision)
    whole = folder and all((folder / name).is_file() for name in TOKENIZER_FILES[:2])
    if whole and (local or not _lacks_image_files(folder)):
        return folder
    if folder and hub_adapters.is_adapter(folder):  # saved without one: its base has it
        return tokenizer_folder(*_base(model_id, revision)[:2], token)
    if local:
        raise ModelError.at(
            model_id, str(folder), "The folder has no tokenizer.json and tokenizer_config.json.",
            "Name the folder that holds the whole model.",
        )  # fmt: skip
    try:
        return _tokenizer_download(model_id, revision, token)
    except ModelError:
        if whole:  # enough for text
            return folder
        raise


def _lacks_image_files(folder: Path) -> bool:
    """Whether a model that sees was kept without them, as it was before images were read here."""
    sees = read_config(folder / "config.json", str(folder)).get("vision_config")
    return bool(sees) and not any((folder / name).is_file() for name in IMAGE_FILES)


def _tokenizer_download(model_id: str, revision: str, token: str | None) -> Path:
    info = _model_info(model_id, revision, token)
    names = {file.rfilename for file in info.siblings or []}
    paths = [
        _download(model_id, name, info.sha, token)
        for name in (*TOKENIZER_FILES, *IMAGE_FILES, "config.json")
        if name in names
    ]
    if not paths or "tokenizer.json" not in names:
        raise ModelError.at(
            model_id, None, "The repository has no tokenizer.json.", f"See {hub_errors.page(model_id)}."
        )
    return paths[0].parent


def local_folder(model_id: str) -> Path | None:
    """The folder that an id names: Pocket Gemma's, a run's result, or a path; None for an id of the Hub."""
    if model_id == catalog.POCKET_ID:
        return Path(catalog.local_path(model_id))
    if model_id.startswith(hub_adapters.RUN_PREFIX):
        return hub_adapters.run_model(home() / "runs", model_id)
    looks_local = model_id.startswith(("/", "./", "../", "~"))
    if looks_local or (not _MODEL_ID.fullmatch(model_id)) or Path(model_id).is_dir():
        folder = check_path(model_id, "model.id")
        if not folder.is_dir():
            raise ModelError.at(
                "model.id", model_id, "This is neither a folder nor an id of the Hub.",
                "Write an id as OWNER/NAME, for instance google/gemma-3-1b-it, or choose pocket.",
            )  # fmt: skip
        return folder
    return None


def dataset_files(repo: str, token: str | None = None) -> tuple[str, list[str]]:
    """(commit, file names) of a data set on the Hub that may be read with this token; one or two quick requests."""
    where = f"hub:{repo}"
    try:
        _refuse_offline()
        info = _api(token).dataset_info(repo, timeout=TIMEOUT_SECONDS)
        if info.gated:  # its description is public, its files are not
            _api(token).auth_check(repo, repo_type="dataset")
    except hub_failures() as error:
        raise hub_error(error, where, repo, "dataset") from None
    return info.sha, [file.rfilename for file in info.siblings or []]


def _folder_facts(model_id: str, folder: Path) -> ModelFacts:
    config = read_config(folder / "config.json", model_id)
    model_type = check_model_config(config, model_id)
    weights = _weight_files(folder)
    if not weights:
        raise _no_safetensors(model_id)
    card = catalog.MODELS.get(model_id)
    return ModelFacts(
        id=model_id,
        revision="",
        path=str(folder),
        on_disk=True,
        model_type=model_type,
        parameters=_count_parameters(weights),
        context_tokens=context_tokens(config),
        gated=card.gated if card else None,
        licence=card.licence if card else "unknown",
        bytes_on_disk=sum(path.stat().st_size for path in weights),
        card=card,
    )


def _hub_facts(model_id: str, revision: str, token: str | None) -> ModelFacts:
    info = _model_info(model_id, revision, token)
    files = {file.rfilename: file.size for file in info.siblings or []}
    weights = {name: size for name, size in files.items() if name.endswith(".safetensors")}
    model_type = (info.config or {}).get("model_type")
    if model_type:  # known without access: a model of another kind should not ask for a licence first
        check_model_config(info.config, model_id)
    if not weights:
        raise _no_safetensors(model_id)
    config = read_config(_download(model_id, "config.json", info.sha, token), model_id)
    card = catalog.MODELS.get(model_id)
    sizes = [size for size in weights.values() if size]
    licence = (info.card_data.get("license") if info.card_data else None) or (
        card.licence if card else "unknown"
    )
    return ModelFacts(
        id=model_id,
        revision=info.sha or revision,
        path=None,
        on_disk=False,
        model_type=check_model_config(config, model_id),
        parameters=info.safetensors.total if info.safetensors else card.parameters if card else None,
        context_tokens=context_tokens(config),
        gated=bool(info.gated) if info.gated is not None else None,
        licence=licence,
        bytes_on_disk=sum(sizes) if sizes else None,
        card=card,
    )


def _model_info(model_id: str, revision: str, token: str | None):
    try:
        _refuse_offline()
        return _api(token).model_info(
            model_id, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS
        )
    except hub_failures() as error:
        raise hub_error(error, model_id, model_id, "model") from None


def _download(model_id: str, name: str, revision: str | None, token: str | None) -> Path:
    try:
        return Path(
            _api(token).hf_hub_download(model_id, name, revision=revision, etag_timeout=TIMEOUT_SECONDS)
        )
    except hub_failures() as error:
        raise hub_error(error, model_id, model_id, "model") from None


def _api(token: str | None):
    from huggingface_hub import HfApi

    hub_client.give_up_early()
    if token and (not (token.isascii() and token.isprintable()) or " " in token):
        raise AccessError.at(  # not even sent: the error of a header that cannot be sent would show it
            "token", "not a token", "A token is one word that begins with hf_.", f"Copy one at {hub_errors.TOKENS_PAGE}."
        )  # fmt: skip
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)


def _refuse_offline() -> None:
    if offline():
        from huggingface_hub.errors import OfflineModeIsEnabled

        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")


def _cached_folder(model_id: str, revision: str) -> Path | None:
    """The snapshot of a Hub model in the cache, where it holds at least the config."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(
            model_id, "config.json", cache_dir=constants.HF_HUB_CACHE, revision=revision
        )
    except HFValidationError:  # told where the Hub is asked
        return None
    return Path(found).parent if isinstance(found, str) else None


def _is_complete(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() and bool(_weight_files(folder))


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors of a model; none where one of the shards of its index is missing."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(read_config(index, str(folder)).get("weight_map", {}).values()))
        shards = [folder / Path(name).name for name in names]
        return shards if all(path.is_file() for path in shards) else []
    return sorted(folder.glob("*.safetensors"))


def _count_parameters(weights: list[Path]) -> int | None:
    """From the headers of the safetensors (8 bytes of length, then JSON), so nothing large is read."""
    total = 0
    for path in weights:
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(min(length, 100_000_000)))
        except (OSError, ValueError, struct.error):
            return None
        total += sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return total


def _no_safetensors(model_id: str) -> ModelError:
    return ModelError.at(
        model_id, None, "It has no whole set of *.safetensors, and other weight files may carry code.",
        "Save it with Transformers (save_pretrained writes safetensors), or choose a model that has them.",
    )  # fmt: skip
