"""Tokenizers of Gemma's make, one per family, small enough to build in every session.

The templates of Gemma 2, 3 and 4 are those that TRL ships, read at run time. FunctionGemma's is our own, after its
documented format.
"""

import importlib.util
import json
import struct
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

TEXT = [
    "Who lives in the red house? A cat lives in the red house.",
    "Add 2 and 3. The answer is 5.\n\nWrite a short poem about the sea and the wind.",
    'Return JSON: {"name": "Ann", "age": 7}',
]
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
GEMMA = ("<start_of_turn>", "<end_of_turn>")
GEMMA_4 = (
    "<|turn>", "<turn|>", "<|tool>", "<tool|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>",
    "<|channel>", "<channel|>", '<|"|>',
)  # fmt: skip
FUNCTION_GEMMA = (
    *GEMMA, "<start_function_declaration>", "<end_function_declaration>", "<start_function_call>",
    "<end_function_call>", "<start_function_response>", "<end_function_response>", "<escape>",
)  # fmt: skip

# A call hands over to its function: the answer goes on in the same turn, after the response, without a new header.
FUNCTION_TEMPLATE = """
{%- macro plain(value) -%}
    {%- if value is string %}{{ '<escape>' + value + '<escape>' }}
    {%- elif value is mapping %}{{ '{' }}
        {%- for key, one in value | dictsort %}{{ key }}:{{ plain(one) }}{{ '' if loop.last else ',' }}{% endfor %}
        {{- '}' }}
    {%- elif value is iterable %}{{ '[' }}
        {%- for one in value %}{{ plain(one) }}{{ '' if loop.last else ',' }}{% endfor %}
        {{- ']' }}
    {%- else %}{{ value | tojson }}
    {%- endif %}
{%- endmacro -%}
{{ bos_token }}
{%- set turns = messages -%}
{%- if tools or messages[0]['role'] == 'developer' -%}
    {{ '<start_of_turn>developer\n' }}
    {%- if messages[0]['role'] == 'developer' -%}
        {{ messages[0]['content'] | trim }}
        {%- set turns = messages[1:] -%}
    {%- endif -%}
    {%- for tool in tools or [] -%}
        {%- set function = tool['function'] -%}
        {{ '<start_function_declaration>declaration:' + function['name'] + '{description:' }}
        {{- plain(function['description'] | default('')) }}
        {%- if function['parameters'] is mapping %},parameters:{{ plain(function['parameters']) }}{% endif -%}
        {{ '}<end_function_declaration>' }}
    {%- endfor -%}
    {{ '<end_of_turn>\n' }}
{%- endif -%}
{%- for turn in turns -%}
    {%- set before = turns[loop.index0 - 1]['role'] if loop.index0 else '' -%}
    {%- if turn['role'] == 'assistant' -%}
        {{ '' if before == 'tool' else '<start_of_turn>model\n' }}
        {#- generation -#}
        {{ turn['content'] | trim }}
        {%- for call in turn['tool_calls'] or [] -%}
            {{ '<start_function_call>call:' + call['function']['name'] }}
            {{- plain(call['function']['arguments']) + '<end_function_call>' }}
        {%- endfor -%}
        {{ '<start_function_response>' if turn['tool_calls'] else '<end_of_turn>\n' }}
        {#- endgeneration -#}
    {%- elif turn['role'] == 'tool' -%}
        {{ '<start_function_response>' if before == 'tool' else '' }}
        {{- 'response:' + turn['name'] | default('unknown') + '{value:' + plain(turn['content']) + '}' }}
        {{- '<end_function_response>' }}
    {%- elif turn['role'] == 'user' -%}
        {{ '<start_of_turn>user\n' + turn['content'] | trim + '<end_of_turn>\n' }}
    {%- else -%}
        {{ raise_exception('The role ' + turn['role'] + ' is not known') }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and turns[-1]['role'] != 'tool' %}{{ '<start_of_turn>model\n' }}{% endif -%}
"""
# Marks for TRL, which needs them to find the answers.
FUNCTION_TRAINING_TEMPLATE = FUNCTION_TEMPLATE.replace("{#- generation -#}", "{%- generation -%}").replace(
    "{#- endgeneration -#}", "{%- endgeneration -%}"
)


def trl_template(name: str) -> str:
    """A template as TRL ships it, read without importing TRL."""
    folder = Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates"
    return (folder / f"{name}.jinja").read_text(encoding="utf-8")


def build_family(folder: Path, family: str, text: Iterable[str] = TEXT) -> Path:
    """The tokenizer of "gemma2", "gemma3", "gemma4" or "functiongemma", learned from lines of text."""
    if family == "functiongemma":
        return build_tokenizer(folder, FUNCTION_TEMPLATE, FUNCTION_GEMMA, text)
    name = {"gemma2": "gemma", "gemma4": "gemma4_v5"}.get(family, family)
    return build_tokenizer(folder, trl_template(name), GEMMA_4 if family == "gemma4" else GEMMA, text)


IMAGE_MARKS = {  # what begins an image, stands for a part of it, ends it
    "gemma3": ("<start_of_image>", "<image_soft_token>", "<end_of_image>"),
    "gemma4": ("<|image>", "<|image|>", "<image|>"),
}
IMAGE_SEQ_LENGTH = 4  # of Gemma 3
IMAGE_GRID = {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70}  # of Gemma 4


def build_seeing(folder: Path, family: str) -> Path:
    """As `build_family`, with the tokens of images behind all others, and what says how the model reads them."""
    build_family(folder, family)
    path, marks = folder / "tokenizer.json", IMAGE_MARKS[family]
    raw = json.loads(path.read_text(encoding="utf-8"))
    first = max(raw["model"]["vocab"].values()) + 1
    flags = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    raw["added_tokens"] += [{"id": first + at, "content": mark, **flags} for at, mark in enumerate(marks)]
    path.write_text(json.dumps(raw), encoding="utf-8")
    named = dict(zip(("boi_token", "image_token", "eoi_token"), marks, strict=True))
    _update(folder / "tokenizer_config.json", extra_special_tokens=named)
    _update(folder / "config.json", model_type=family, vision_config={"hidden_size": 8})
    if family == "gemma3":
        _update(
            folder / "processor_config.json",
            image_seq_length=IMAGE_SEQ_LENGTH,
            processor_class="Gemma3Processor",
        )
    of_family = {} if family == "gemma3" else IMAGE_GRID
    kind = f"{family.capitalize()}ImageProcessor"
    _update(folder / "preprocessor_config.json", image_processor_type=kind, **of_family)
    return folder


def _update(path: Path, **values: object) -> None:
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(known | values), encoding="utf-8")


def build_tokenizer(
    folder: Path, template: str, marks: tuple[str, ...] = GEMMA, text: Iterable[str] = TEXT
) -> Path:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja with these control tokens and byte fallback."""
    control = [*SPECIAL, *marks]
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
    tokenizer.train_from_iterator([line for part in text for line in part.split("\n")], trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 2)])
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
