"""Memory, time and disk of a run before anything of it is loaded: from its settings and its model's shape. No torch.

What is forecast is what our own trainers do (`workers`): `footprint` counts the memory of one process, this module says
what that process is asked for, and how long the whole takes. `docs/forecast.md` compares it with measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from gemma_tune.config import RunConfig
from gemma_tune.footprint import FLOAT, Footprint, Share, Work
from gemma_tune.geometry import Geometry
from gemma_tune.schedule import steps_per_epoch, total_steps

LIBRARIES_BYTES = {
    "cpu": 525_000_000,
    "cuda": 800_000_000,
}  # what a worker holds before a model: imports; CUDA context
WASTE = {"cpu": 0.0, "cuda": 0.06}  # of the rest: what the allocator holds beside it
FLOPS_PER_CORE = 30e9  # float32, where nothing better is known
LAUNCH_SECONDS = 4e-4  # for the kernels of one layer, one pass: what small batches on a GPU wait for
SPEED_SHARE = (0.25, 0.55)  # of the peak arithmetic that training reaches
PEAK_FLOPS = {  # dense bfloat16, NVIDIA's data sheets; a GPU's name holds one of these
    "B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12,
    "RTX 5090": 210e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "RTX A6000": 155e12,
}  # fmt: skip
PAIRS = ("dpo", "orpo", "reward")  # both answers of a row are read side by side
TOKEN_CACHE_BYTES = 5  # on disk, per token: id and mask


@dataclass(frozen=True)
class Device:
    """One of `count` equal devices; the CPU is one. `flops`: floating-point operations per second, None: by its name."""

    kind: str  # "cpu" or "cuda"
    name: str
    count: int
    memory_bytes: int
    free_bytes: int
    flops: float | None = None
    cores: int = 1
    bfloat16: bool = True  # computed in hardware
    allocator: str = "system"  # of a worker on the CPU: "tcmalloc" where it is installed (`runs.launch`)


@dataclass(frozen=True)
class Lengths:
    """Of the training rows, in tokens uncut. `longest_rows`: lengths of the longest ones, falling; as many as are known."""

    rows: int
    total_tokens: int
    longest: int
    learned_share: float = 1.0
    longest_rows: tuple[int, ...] = ()
    tower_parameters: int = 0  # of a model that is loaded whole, since the rows hold images
    image_numbers: int = 0  # that live at once while the images of one row are looked at (`sight`)
    left_out: int = 0  # of the rows, since nothing that is learned is within the maximum length

    @property
    def mean(self) -> float:
        return self.total_tokens / max(self.rows, 1)


@dataclass(frozen=True)
class Forecast:
    """Bytes are of one device at its fullest moment; `parts` add up to `peak_bytes`. None: unknown."""

    parts: dict[str, int]
    available_bytes: int
    steps: int | None
    seconds: float | None
    seconds_range: tuple[float, float] | None
    disk_bytes: int
    trained_parameters: int
    batch_tokens: int  # of the largest micro-batch

    @property
    def peak_bytes(self) -> int:
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.available_bytes


def forecast(
    config: RunConfig, geometry: Geometry, device: Device, lengths: Lengths | None = None
) -> Forecast:
    """`lengths` None: every row is taken to be as long as allowed, and time and steps are known with max_steps only."""
    processes = config.devices.processes
    footprint = Footprint(geometry, work_of(config, geometry, device, lengths), share_of(config, processes))
    parts = dict(footprint.parts())
    parts["overhead"] = round(LIBRARIES_BYTES[device.kind] + WASTE[device.kind] * sum(parts.values()))
    steps = steps_of(config, lengths)
    seconds = _seconds(config, geometry, device, lengths, steps) if steps is not None else None
    share = (
        config.devices.num_processes if device.kind == "cpu" else 1
    )  # processes on one host share its memory
    return Forecast(
        parts=parts,
        available_bytes=device.free_bytes // share,
        steps=steps,
        seconds=math.sqrt(seconds[0] * seconds[1]) if seconds else None,
        seconds_range=seconds,
        disk_bytes=_disk_bytes(config, footprint, lengths),
        trained_parameters=footprint.trained_parameters,
        batch_tokens=footprint.work.tokens,
    )


# ---- what one process is asked for -----------------------------------------------------------------------------------
def work_of(config: RunConfig, geometry: Geometry, device: Device, lengths: Lengths | None) -> Work:
    """The micro-batch of the longest rows, as our trainer of the objective computes it."""
    method, goal, train = config.method, config.objective, config.train
    rows = _batch(config, lengths)
    longest, tokens = max(rows), sum(rows)
    learned_share = lengths.learned_share if lengths else 1.0
    if goal.type == "sft" and not train.assistant_only_loss:
        learned_share = 1.0
    seen = lengths.image_numbers if lengths else 0
    answers = (
        train.per_device_train_batch_size * train.gradient_accumulation_steps
    )  # GRPO writes those of a step at once
    return Work(
        tokens=tokens,
        longest=longest,
        learned=max(math.ceil(tokens * learned_share), 1),
        method=method.type,
        rank=method.r,
        targets=method.target_modules,
        dora=method.use_dora,
        weight_bytes=_weight_bytes(config, device),
        quantization=method.quantization if method.type == "qlora" else "",
        double_quantization=method.bnb_4bit_use_double_quant,
        bfloat16=train.bf16 == "on" or (train.bf16 == "auto" and device.bfloat16),
        optimizer=train.optim,
        checkpointing=train.activation_checkpointing,
        selective=train.selective_checkpointing,
        accumulates=train.gradient_accumulation_steps > 1,
        score_pairs=sum(row * row for row in rows) if _eager(config, geometry) else 0,
        head=_head(config),
        joins_tables=_joins_tables(config, device),
        device=device.kind,
        pins=device.kind == "cpu" and device.allocator == "system",
        validation_tokens=config.eval.per_device_eval_batch_size * longest if config.eval.eval_steps else 0,
        cache_tokens=answers * longest if goal.type == "grpo" else 0,
        tower_parameters=lengths.tower_parameters if lengths else 0,
        image_numbers=seen * len(rows),
        validation_image_numbers=seen * config.eval.per_device_eval_batch_size
        if config.eval.eval_steps
        else 0,
    )


def _batch(config: RunConfig, lengths: Lengths | None) -> list[int]:
    """The tokens of each row of the largest micro-batch, with what pads it."""
    train, goal = config.train, config.objective
    rows, limit = train.per_device_train_batch_size, train.max_length
    longest = min(lengths.longest, limit) if lengths else limit
    if goal.type == "grpo":
        return [longest + goal.max_completion_length] * rows
    if goal.type != "sft":
        return [longest] * rows * (2 if goal.type in PAIRS else 1)
    if train.packing:
        return [limit] * rows
    if not train.padding_free or not lengths or lengths.tower_parameters:
        return [longest] * rows
    known = [min(tokens, limit) for tokens in lengths.longest_rows[:rows]]
    missing = max(min(rows, lengths.rows) - len(known), 0)
    return known + missing * [known[-1] if known else longest]


def _weight_bytes(config: RunConfig, device: Device) -> int:
    if config.model.dtype == "auto":
        return 2 if device.kind == "cuda" and device.bfloat16 else 4
    return 4 if config.model.dtype == "float32" else 2


def _eager(config: RunConfig, geometry: Geometry) -> bool:
    """Whether attention writes down its scores: asked for, or for want of a fused one that soft-caps (Gemma 2)."""
    asked = config.model.attn_implementation
    return asked == "eager" or (asked == "auto" and geometry.generation == "gemma2")


def _head(config: RunConfig) -> str:
    goal = config.objective.type
    if goal == "sft":
        return "fused" if config.train.fused_linear_cross_entropy else "chunked"
    return {"reward": "none", "orpo": "whole", "grpo": "whole"}.get(goal, "chunked")


def _joins_tables(config: RunConfig, device: Device) -> bool:
    alone = config.devices.processes == 1 and not config.train.torch_compile
    plain = device.kind == "cpu" and _weight_bytes(config, device) == FLOAT
    return alone and plain and _head(config) == "fused"


def share_of(config: RunConfig, processes: int) -> Share:
    kind, stage = config.devices.distributed_type, config.devices.zero_stage
    if processes == 1:
        return Share()
    if kind == "ddp":
        return Share(buckets=True)
    if kind == "fsdp":
        return Share(processes, processes, processes)
    return Share(
        weights=processes if stage >= 3 else 1,
        gradients=processes if stage >= 2 else 1,
        optimizer=processes,
        masters=True,
    )


# ---- how long, and how much on disk ----------------------------------------------------------------------------------
def steps_of(config: RunConfig, lengths: Lengths | None) -> int | None:
    """Optimizer steps of the run; None where neither rows nor max_steps are known."""
    if config.train.max_steps > 0:
        return config.train.max_steps
    if not lengths:
        return None
    per_epoch = steps_per_epoch(lengths.rows - lengths.left_out, lengths.total_tokens, config)
    return max(total_steps(per_epoch, config), 1)


def flops_of(device: Device) -> float | None:
    """Peak arithmetic of one device; None for a GPU that is not in the table."""
    if device.flops is not None:
        return device.flops
    if device.kind == "cpu":
        return device.cores * FLOPS_PER_CORE
    return next((flops for name, flops in PEAK_FLOPS.items() if name in device.name), None)


def _seconds(
    config: RunConfig, geometry: Geometry, device: Device, lengths: Lengths | None, steps: int
) -> tuple[float, float] | None:
    """From fast to slow, of training alone: loading, validations and the report come on top."""
    flops = flops_of(device)
    if flops is None:
        return None
    train, goal = config.train, config.objective
    mean = min(lengths.mean if lengths else train.max_length, train.max_length)
    rows = train.per_device_train_batch_size * train.gradient_accumulation_steps
    tokens = (
        steps
        * rows
        * config.devices.num_processes
        * (train.max_length if goal.type == "sft" and train.packing else mean)
    )
    tokens *= 2 if goal.type in PAIRS else 1
    passes = 2 + (2 if config.method.type != "full" else 4) + 2 * _computed_again(config, geometry)
    if goal.type in ("dpo", "kto", "grpo"):
        passes += 2  # of the reference
    learned = lengths.learned_share if lengths else 1.0
    head = 3 * 2 * geometry.embedding_parameters * learned
    width = sum(layer.heads * layer.head_dim * min(mean, layer.window or mean) for layer in geometry.layers)
    work = tokens * (passes * (geometry.active_parameters + width) + head)
    if goal.type == "grpo":
        written = steps * rows * goal.max_completion_length
        work += written * 2 * (geometry.active_parameters + geometry.embedding_parameters)
    processes = config.devices.num_processes if device.kind == "cuda" else 1  # on a CPU they share its cores
    launches = 0.0
    if device.kind == "cuda":
        batches = steps * train.gradient_accumulation_steps
        launches = batches * len(geometry.layers) * passes / 2 * LAUNCH_SECONDS
    fast, slow = (work / (flops * share * processes) for share in reversed(SPEED_SHARE))
    return max(fast, launches), max(slow, 2 * launches)


def _computed_again(config: RunConfig, geometry: Geometry) -> float:
    """The share of the layers' products that gradient checkpointing computes a second time."""
    if not config.train.activation_checkpointing:
        return 0.0
    if not config.train.selective_checkpointing:
        return 1.0

    def products(shapes: Mapping[str, tuple[int, int]]) -> int:
        return sum(inputs * outputs for inputs, outputs in shapes.values())

    kept = sum(products(geometry.kept_linears(layer)) for layer in geometry.layers)
    return 1 - kept / sum(products(geometry.linears(layer)) for layer in geometry.layers)


def _disk_bytes(config: RunConfig, footprint: Footprint, lengths: Lengths | None) -> int:
    """Checkpoints (one more than are kept, for a moment), the result, and the tokens."""
    trained = footprint.trained_parameters
    result = trained * footprint.work.trained_bytes
    state = Footprint(footprint.geometry, footprint.work).optimizer()
    checkpoints = (config.output.save_total_limit + 1) * (result + state)
    return round(checkpoints + result + TOKEN_CACHE_BYTES * (lengths.total_tokens if lengths else 0))
