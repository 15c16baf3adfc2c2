"""FSDP2's own mathematics on the CPU, where Accelerate ignores it: `fully_shard` as Accelerate applies it to a Gemma."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

from gemma_tune.workers import selective
from gemma_tune.workers.fused_head import add_fused_head

from .test_distributed import TOLERANCE, free_port

pytestmark = pytest.mark.training

HEADS = ("plain", "trl", "ours", "selective")  # the last: our own, and costly results of the layers are kept
OURS = HEADS[2:]
ROWS, LENGTH, STEPS, PROCESSES = 4, 24, 3, 2


def batch(vocabulary: int) -> torch.Tensor:
    """Rows of one length (ROWS, LENGTH), so that the mean over ranks is the mean over tokens."""
    return torch.randint(8, vocabulary, (ROWS, LENGTH), generator=torch.Generator().manual_seed(3))


def train(model, rows: torch.Tensor, head: str) -> torch.Tensor:
    """The mean loss of each step, (STEPS,)."""
    if head == "trl":
        add_fused_lm_head(model)
    given = {"fused_linear_cross_entropy": True} if head in OURS else {}
    tokens = rows[:, 1:].numel() if head in OURS else 1  # ours is a sum
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(STEPS):
        loss = model(input_ids=rows, labels=rows, **given).loss / tokens
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def load(folder: Path, head: str):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if head in OURS:
        add_fused_head(model)
    if head == "selective":
        model.activation_checkpointing_enable(selective.arguments())
        model.train()
    return model


def rank_losses(rank: int, port: int, folder: Path, out: Path) -> None:
    """What one of PROCESSES ranks computes with each head; rank 0 writes the mean losses."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=PROCESSES
    )
    mesh = init_device_mesh("cpu", (PROCESSES,))
    losses = torch.stack([sharded_losses(rank, mesh, folder, head) for head in HEADS])
    torch.distributed.all_reduce(losses)
    if rank == 0:
        torch.save(losses / PROCESSES, out)
    torch.distributed.destroy_process_group()


def sharded_losses(rank: int, mesh: DeviceMesh, folder: Path, head: str) -> torch.Tensor:
    model = load(folder, head)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return train(model, batch(model.config.vocab_size).chunk(PROCESSES)[rank], head)


def test_a_sharded_gemma_has_the_losses_of_a_whole_one_with_every_head(gemma3, tmp_path):
    whole = []
    for head in HEADS:
        model = load(gemma3, head)
        whole.append(train(model, batch(model.config.vocab_size), head))
    assert whole[0][-1] < whole[0][0] - 0.1
    out = tmp_path / "losses.pt"
    torch.multiprocessing.spawn(rank_losses, (free_port(), gemma3, out), nprocs=PROCESSES)
    difference = (torch.load(out) - torch.stack(whole)).abs().max()
    assert difference < TOLERANCE
