"""A tokenizer of Gemma's make, small enough to build in every session."""

import importlib.util
import json
import struct
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, trainers

TEXT = [
    "Who lives in the red house? A cat lives in the red house.",
    "Add 2 and 3. The answer is 5.\n\nWrite a short poem about the sea and the wind.",
    'Return JSON: {"name": "Ann", "age": 7}',
]


def trl_template(name: str) -> str:
    """A template as TRL ships it, read without importing TRL."""
    folder = Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates"
    return (folder / f"{name}.jinja").read_text(encoding="utf-8")


def build_tokenizer(folder: Path, template: str) -> Path:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja with Gemma's control tokens and byte fallback."""
    control = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*control, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator([line for text in TEXT for line in text.split("\n")], trainer)
    raw = json.loads(tokenizer.to_str())
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] in control]
    vocabulary = raw["model"]["vocab"]
    vocabulary.setdefault("\n", len(vocabulary))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    config = {
        "tokenizer_class": "GemmaTokenizer",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "gemma3_text"}', encoding="utf-8")
    (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", 2) + b"{}"
    )  # so that the folder passes as a model
    return folder
