"""Compares the counts of a run on many GPUs with the model, with each other and with what the commands print."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM
from chatgpt_hf.errors import ConfigError
from chatgpt_hf.training import cluster as cluster_module
from chatgpt_hf.training import plan as plan_module
from chatgpt_hf.training.arguments import (
    ArchitectureArguments,
    CorpusArguments,
    ModelArguments,
    PretrainArguments,
    parse_recipe,
)
from chatgpt_hf.training.cluster import Cluster, RunOnCluster, Shape
from chatgpt_hf.training.optim import orthogonalize
from chatgpt_hf.training.plan import PlanArguments, plan
from chatgpt_hf.training.scaling import memory_bytes

TYPES = (ModelArguments, ArchitectureArguments, CorpusArguments, PlanArguments, PretrainArguments)
CONFIG = ChatGPTConfig(
    vocab_size=300, hidden_size=64, num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=64
)
SMALL = "--depth 2 --vocab_size 300 --block_size 64 --per_device_train_batch_size 2 --gradient_accumulation_steps 1 --max_steps 30"
TABLE = Path(__file__).parents[2] / "docs" / "scaling_table.py"


def make(options: str) -> dict[str, Any]:
    return plan(*parse_recipe(TYPES, None, options.split()))


def run(
    gpus: int, shard: str = "ddp", accumulation: int = 1, *, muon: bool = True, per_node: int = 8, **more: Any
) -> RunOnCluster:
    cluster = Cluster(gpus, per_node, shard, link=100e9, network=10e9)
    return RunOnCluster(cluster, CONFIG, 64, accumulation, muon=muon, **more)


@pytest.mark.parametrize("muon", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_gpu_takes_what_one_process_takes(muon: bool, dtype: torch.dtype) -> None:
    alone = memory_bytes(CONFIG, 3, 64, "muon" if muon else "adamw_torch", dtype)
    memory = run(1, muon=muon, dtype=dtype).memory(3)
    for part in ("weights", "gradients", "optimizer", "loss", "update"):
        assert getattr(memory, part) == getattr(alone, part), part
    assert memory.activations == pytest.approx(alone.activations, rel=0.02)
    assert memory.buckets == memory.gathered == 0


def test_ddp_holds_the_gradients_twice() -> None:
    parameters = ChatGPTForCausalLM(CONFIG).num_parameters()
    memory = run(2).memory(1)
    assert memory.weights == memory.gradients == memory.buckets == 4 * parameters
    kept = memory.weights + memory.gradients + memory.optimizer + memory.buckets
    assert memory.total == kept + max(memory.activations + memory.loss, memory.update)


def test_sharding_divides_what_is_kept() -> None:
    parameters = ChatGPTForCausalLM(CONFIG).num_parameters()
    whole, sharded, nodes = (run(32, shard).memory(1) for shard in ("ddp", "fsdp2", "hsdp"))
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(sharded, part) == pytest.approx(getattr(whole, part) / 32, rel=0.01)
        # The 8 GPUs of each machine share one copy.
        assert getattr(nodes, part) == pytest.approx(getattr(whole, part) / 8, rel=0.01)
    assert whole.gathered == 0 < sharded.gathered == nodes.gathered
    # Reduced once per step, gradients are whole until then.
    waiting, reduced = (run(32, "fsdp2", 4, reduce_each=each).memory(1) for each in (False, True))
    assert waiting.gradients - reduced.gradients == 2 * parameters
    assert reduced.gradients == sharded.gradients


def test_bytes_sent_in_a_step() -> None:
    parameters, hidden = ChatGPTForCausalLM(CONFIG).num_parameters(), Shape.of(CONFIG).hidden
    assert run(1).traffic() == {}
    # A ring sends each gradient once to sum it, and once to spread the sum.
    sent = run(8).traffic()
    assert sent["gradients"]["bytes"] == 2 * 7 / 8 * 4 * parameters
    assert sent["muon"]["bytes"] == 7 / 8 * 4 * hidden
    assert run(8, muon=False).traffic().keys() == {"gradients"}
    once, thrice = (run(8, "fsdp2", count).traffic() for count in (1, 3))
    assert thrice["weights"]["bytes"] == 3 * once["weights"]["bytes"]
    assert thrice["gradients"] == once["gradients"]
    assert run(8, "fsdp2", 3, reduce_each=True).traffic()["gradients"]["bytes"] == 3 * once["gradients"]["bytes"]
    assert once["gradients"]["bytes"] == 7 / 8 * 2 * parameters
    assert once["muon"]["bytes"] == 2 * 7 / 8 * 4 * hidden / 8
    # Between the machines each GPU sends its eighth.
    across = run(32, "hsdp").traffic()["gradients"]["bytes"] - once["gradients"]["bytes"]
    assert across == pytest.approx(2 * 3 / 4 * 2 * parameters / 8, rel=0.01)


def test_machines_are_left_through_all_their_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "HOP_SECONDS", 0)
    inside, outside = (run(gpus, muon=False).traffic()["gradients"] for gpus in (8, 64))
    assert inside["bytes"] / inside["seconds"] == pytest.approx(100e9)
    assert outside["bytes"] / outside["seconds"] == pytest.approx(8 * 10e9)


@pytest.mark.parametrize("shape", [(48, 64), (64, 48), (64, 64)])
def test_operations_of_muon(shape: tuple[int, int]) -> None:
    with FlopCounterMode(display=False) as counter:
        orthogonalize(torch.randn(1, *shape))
    found = run(1)
    found.shape = Shape(0, 0, 0, 0, matrices=type(found.shape.matrices)({shape: 6}))
    assert found.muon_flops(1) == pytest.approx(6 * counter.get_total_flops(), rel=0.05)
    # The busiest of four owners has two of the six.
    assert found.muon_flops(4) == found.muon_flops(1) / 3


@pytest.mark.parametrize("shard", ["ddp", "fsdp2"])
def test_the_largest_micro_batch_just_fits(shard: str) -> None:
    found = run(8, shard)
    for memory in (40e6, 100e6):
        rows = found.largest_batch(memory)
        assert rows >= 1
        assert found.memory(rows).total <= 0.9 * memory < found.memory(rows + 1).total
    assert found.largest_batch(1e6) == 0


def test_checkpointing_keeps_only_the_inputs_of_layers() -> None:
    kept, again = (
        run(8, "fsdp2", checkpointing=checkpointing).memory(4).activations for checkpointing in (False, True)
    )
    assert again < kept / 2
    assert again > 4 * 4 * 64 * CONFIG.hidden_size * 2


def test_a_plan_for_many_gpus() -> None:
    figures = make(f"{SMALL} --gpus 16 --shard hsdp --gpu a100 --mfu 0.5 --price_per_hour 2")
    assert figures["tokens_per_step"] == 16 * 2 * 64
    assert "here" not in figures
    cluster = figures["cluster"]
    assert (cluster["gpu"], cluster["nodes"]) == ("NVIDIA A100 SXM 80 GB", 2)
    least = figures["flops"] / 16 / (312e12 * 0.5)
    overlapped, exposed = (cluster["total_seconds"][name] for name in ("overlapped", "exposed"))
    assert least < overlapped < exposed
    assert cluster["step_seconds"]["exposed"] == cluster["computing_seconds"] + cluster["communication_seconds"]
    assert cluster["dollars"]["exposed"] == pytest.approx(exposed / 3600 * 16 * 2)
    assert cluster["tokens_per_second"]["exposed"] == pytest.approx(figures["tokens"] / exposed)
    assert cluster["memory"]["total"] > 0
    assert make(f"{SMALL} --gpus 16")["cluster"]["dollars"] is None


def test_a_plan_for_processes_of_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "REPETITIONS", 2)
    cluster = make(f"{SMALL} --gpus 2 --gpu here --link_bandwidth 0.5 --optim adamw_torch")["cluster"]
    assert cluster["computing_seconds"] > 0 < cluster["computing_cpu_seconds"]
    sent = cluster["communication"]["gradients"]
    assert sent["seconds"] == pytest.approx(sent["bytes"] / 0.5e9, rel=0.1)


def test_the_dial_divides_rows_among_the_planned_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    tokens = [make(f"--depth 6 --vocab_size 4096 --gpus {gpus}")["tokens_per_step"] for gpus in (1, 4)]
    assert tokens[0] == tokens[1]


def test_the_page_has_the_figures_that_the_command_prints() -> None:
    table = runpy.run_path(str(TABLE))
    page = TABLE.with_name("scaling.md").read_text(encoding="utf-8")
    for gpus, shard in ((8, "ddp"), (64, "hsdp"), (1024, "fsdp2")):
        assert table["make_line"]("1.2 B", gpus, shard) in page


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--gpus 0", "--gpus must be at least 1"),
        ("--gpus 4 --gpus_per_node 0", "--gpus_per_node must be at least 1"),
        ("--gpus 12", "--gpus 12 does not divide into machines of 8"),
        ("--gpus 8 --shard zero3", "--shard zero3 is unknown; choose from ddp, fsdp2, hsdp"),
        ("--gpus 8 --network_bandwidth 0", "--network_bandwidth must be above 0"),
        ("--gpus 8 --price_per_hour -1", "--price_per_hour must be above 0"),
        ("--gpus 8 --link_bandwidth nan", "--link_bandwidth must be above 0"),
        ("--gpus 8 --gpu here", "--gpu here needs --link_bandwidth"),
        ("--gpu here", "--gpu here describes a run on several GPUs"),
        ("--shard fsdp2", "--shard describes a run on several GPUs: give --gpus"),
        ("--price_per_hour 3", "--price_per_hour describes a run on several GPUs"),
    ],
)
def test_clusters_that_cannot_be_are_refused(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(f"{SMALL} {options}")
