"""Tiny random Gemmas with a tokenizer of their own: the smallest real thing that trains in seconds."""

import json
from pathlib import Path

import torch
from data.tiny_tokenizer import build_family, trl_template
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3nConfig,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    Gemma4Config,
    Gemma4ForCausalLM,
    Gemma4ForConditionalGeneration,
    Gemma4ImageProcessorPil,
    Gemma4TextConfig,
    Gemma4UnifiedConfig,
    Gemma4UnifiedForConditionalGeneration,
    Gemma4UnifiedTextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GenerationConfig,
)

from gemma_tune.pocket.tokenizer import train_tokenizer

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "sliding_window": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
DEEP_SHAPE = SHAPE | {  # every linear layer a multiple of 64, as nf4 wants it on a CPU
    "num_hidden_layers": 4,
    "head_dim": 64,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
IMAGE_TOKENS_3 = {
    "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>",
}  # fmt: skip
IMAGE_TOKENS_4 = {"boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|image|>"}
COLOURS = ["red", "blue", "green", "yellow", "grey", "pink"]
THINGS = ["boat", "hat", "door", "cup", "tree", "bird", "stone", "lamp"]


def conversations() -> list[list[dict]]:
    return [
        [
            {"role": "user", "content": f"What colour is the {thing} number {number}?"},
            {
                "role": "assistant",
                "content": f"The {thing} is {COLOURS[(number + len(thing)) % len(COLOURS)]}.",
            },
        ]
        for number in range(8)
        for thing in THINGS
    ]


def tokenizer():
    return train_tokenizer(turn["content"] for talk in conversations() for turn in talk)


def save_gemma(folder: Path) -> Path:
    """The first Gemma: every layer sees the whole text."""
    tokens = tokenizer()
    shape = {name: value for name, value in SHAPE.items() if name != "sliding_window"}
    return _save(folder, GemmaForCausalLM, GemmaConfig(vocab_size=len(tokens), **shape), tokens)


def save_gemma3(folder: Path) -> Path:
    tokens = tokenizer()
    return _save(folder, Gemma3ForCausalLM, Gemma3TextConfig(vocab_size=len(tokens), **SHAPE), tokens)


def save_gemma2(folder: Path) -> Path:
    tokens = tokenizer()
    return _save(folder, Gemma2ForCausalLM, Gemma2Config(vocab_size=len(tokens), **SHAPE), tokens)


def save_gemma3n(folder: Path) -> Path:
    tokens = tokenizer()
    return _save(folder, Gemma3nForCausalLM, _gemma3n_config(len(tokens)), tokens)


def save_gemma4(folder: Path) -> Path:
    """As E2B: embeddings per layer, the last two layers share keys and values and have a wider MLP."""
    tokens = family_tokenizer(folder, "gemma4")
    return _save(folder, Gemma4ForCausalLM, _gemma4_config(len(tokens)), tokens)


def save_gemma4_moe(folder: Path) -> Path:
    """As 26B-A4B: 4 experts of which 2 answer, keys that are values in global layers."""
    tokens = family_tokenizer(folder, "gemma4")
    config = Gemma4TextConfig(
        vocab_size=len(tokens),
        global_head_dim=128,
        hidden_size_per_layer_input=0,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=64,
        attention_k_eq_v=True,
        num_global_key_value_heads=1,
        **DEEP_SHAPE,
    )
    return _save(folder, Gemma4ForCausalLM, config, tokens)


def save_gemma4_unified(folder: Path) -> Path:
    """As 12B: a multimodal type whose file holds nothing but the language part."""
    tokens = family_tokenizer(folder, "gemma4")
    text = Gemma4UnifiedTextConfig(vocab_size=len(tokens), global_head_dim=128, **DEEP_SHAPE)
    config = Gemma4UnifiedConfig(text_config=text.to_dict())
    return _save(folder, Gemma4UnifiedForConditionalGeneration, config, tokens)


def save_function_gemma(folder: Path) -> Path:
    """A Gemma 3 text model whose template knows tools."""
    tokens = family_tokenizer(folder, "functiongemma")
    return _save(folder, Gemma3ForCausalLM, Gemma3TextConfig(vocab_size=len(tokens), **SHAPE), tokens)


def save_multimodal_gemma3(folder: Path) -> Path:
    """Four tokens for an image, one for each of its patches."""
    tokens = with_images(tokenizer(), IMAGE_TOKENS_3, trl_template("gemma3"))
    ids = tokens.get_vocab()
    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(
        text_config=SHAPE | {"vocab_size": len(tokens)},
        vision_config=vision,
        mm_tokens_per_image=4,
        boi_token_index=ids[IMAGE_TOKENS_3["boi_token"]],
        eoi_token_index=ids[IMAGE_TOKENS_3["eoi_token"]],
        image_token_index=ids[IMAGE_TOKENS_3["image_token"]],
    )
    _save(folder, Gemma3ForConditionalGeneration, config, tokens)
    processor = {"do_pan_and_scan": None, "image_seq_length": 4, "size": {"height": 28, "width": 28}}
    Gemma3ImageProcessorPil(**processor).save_pretrained(folder)
    told = {"processor_class": "Gemma3Processor", "image_seq_length": 4}
    (folder / "processor_config.json").write_text(json.dumps(told))
    return folder


def save_multimodal_gemma4(folder: Path) -> Path:
    """With a vision tower of clipped linear layers; up to 70 tokens for an image, one for each 2 × 2 patches of 4 × 4 pixels."""
    tokens = with_images(family_tokenizer(folder, "gemma4"), IMAGE_TOKENS_4)
    ids = tokens.get_vocab()
    vision = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "position_embedding_size": 144,
        "use_clipped_linears": True,
        "patch_size": 4,
        "pooling_kernel_size": 2,
    }
    config = Gemma4Config(
        text_config=_gemma4_config(len(tokens)).to_dict(),
        vision_config=vision,
        boi_token_id=ids[IMAGE_TOKENS_4["boi_token"]],
        eoi_token_id=ids[IMAGE_TOKENS_4["eoi_token"]],
        image_token_id=ids[IMAGE_TOKENS_4["image_token"]],
    )
    _save(folder, Gemma4ForConditionalGeneration, config, tokens)
    Gemma4ImageProcessorPil(patch_size=4, max_soft_tokens=70, pooling_kernel_size=2).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.vision_tower.patch_embedder.input_proj.weight"] *= (
        20  # else a patch's place drowns its colour
    )
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def with_images(tokens, marks: dict[str, str], template: str = ""):
    """A tokenizer that also knows the tokens of images, by the names that Transformers' processors read."""
    tokens.add_special_tokens(
        {"extra_special_tokens": list(marks.values())}, replace_extra_special_tokens=False
    )
    for name, token in marks.items():
        tokens._set_model_specific_special_tokens({name: token})
    tokens.chat_template = template or tokens.chat_template
    return tokens


def save_multimodal_gemma3n(folder: Path) -> Path:
    """The file of the whole model, made from the language part: its vision tower cannot be built without timm."""
    save_gemma3n(folder)
    weights = load_file(folder / "model.safetensors")
    named = {name.replace("model.", "model.language_model.", 1): one for name, one in weights.items()}
    named["model.vision_tower.timm_model.conv_stem.conv.weight"] = torch.zeros(4, 3, 3, 3)
    save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
    config = Gemma3nConfig(text_config=_gemma3n_config(len(tokenizer())).to_dict())
    config.save_pretrained(folder)
    return folder


def family_tokenizer(folder: Path, family: str):
    """With the template and the control tokens of "gemma4" or "functiongemma"."""
    build_family(folder, family, (turn["content"] for talk in conversations() for turn in talk))
    return AutoTokenizer.from_pretrained(folder)


def _gemma4_config(vocabulary: int) -> Gemma4TextConfig:
    return Gemma4TextConfig(
        vocab_size=vocabulary,
        vocab_size_per_layer_input=vocabulary,
        hidden_size_per_layer_input=64,
        num_kv_shared_layers=2,
        use_double_wide_mlp=True,
        global_head_dim=128,
        **DEEP_SHAPE,
    )


def _gemma3n_config(vocabulary: int) -> Gemma3nTextConfig:
    return Gemma3nTextConfig(
        vocab_size=vocabulary,
        vocab_size_per_layer_input=vocabulary,
        hidden_size_per_layer_input=64,
        num_kv_shared_layers=2,
        laurel_rank=64,
        altup_num_inputs=2,
        **DEEP_SHAPE,
    )


def _save(folder: Path, kind: type, config, tokens) -> Path:
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)  # answers that differ from prompt to prompt
    marks = tokens.get_vocab()
    end = marks["<turn|>" if "<turn|>" in marks else "<end_of_turn>"]
    model.generation_config = GenerationConfig(bos_token_id=2, eos_token_id=[1, end], pad_token_id=0)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder
