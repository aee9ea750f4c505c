"""Training on several processes, whole or sharded, follows one process; each resumes from the checkpoints of the others."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from killable import PATIENCE, needs_forkserver, start
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from chatgpt_hf.errors import ConfigError
from chatgpt_hf.training.arguments import PretrainArguments
from chatgpt_hf.training.run_folder import is_whole_checkpoint
from chatgpt_hf.training.sharding import replicas_of

pytestmark = needs_forkserver

# After an evaluation, FSDP2 leaves some weights gathered.
EVALUATED = {"eval_strategy": "steps", "eval_steps": 3}
BEST = {**EVALUATED, "load_best_model_at_end": True, "metric_for_best_model": "loss"}
SHARDS = {"fsdp": True, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}}


_HSDP = {"REPLICATE": "2", "SHARD": "4"}


def group(folder: Path, processes: int, *trainings: dict[str, Any], **more: Any) -> None:
    """Runs trainings in turn in a group of processes."""
    store: Any = None
    environment = {}
    if processes > 1:
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        size = str(processes)
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": size}
        environment |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "LOCAL_WORLD_SIZE": size}
    common = {"log": str(folder / "log"), "trainings": list(trainings), **more}
    jobs = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        jobs.append({**common, "environment": environment | own})
    started, pipe = start(*jobs, script="sharded.py")
    pipe.close()
    for process in started:
        process.join(PATIENCE)
    assert {process.exitcode for process in started} == {0}, (folder / "log").read_text()[-5000:]
    del store


def training(folder: Path, name: str, rows: int, start: str | None = None, **arguments: Any) -> dict[str, Any]:
    """A training whose process takes `rows` rows in a batch; 8 rows are a step of all."""
    chosen = {"per_device_train_batch_size": rows, **arguments}
    checkpoint = str(folder / start / "checkpoint-3") if start else None
    return {"folder": str(folder / name), "arguments": chosen, "checkpoint": checkpoint}


def facts(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name / "facts.json").read_text())


@pytest.mark.slow
def test_every_topology_follows_one_process_and_resumes_from_any_other(tmp_path: Path) -> None:
    folder = tmp_path
    group(folder, 1, training(folder, "one", 8))
    group(
        folder,
        2,
        training(folder, "ddp", 4),
        training(folder, "fsdp2", 4, **SHARDS, **EVALUATED),
        training(folder, "fsdp2 again", 4, "fsdp2", **SHARDS),
        training(folder, "one to fsdp2", 4, "one", fsdp=True),
        training(folder, "fsdp2 to ddp", 4, "fsdp2"),
        training(folder, "ddp to fsdp2", 4, "ddp", fsdp=True),
    )
    group(
        folder,
        4,
        training(folder, "hsdp", 2, fsdp_replicas=2, **BEST),
        training(folder, "two to four", 2, "fsdp2", **SHARDS),
        owners=str(folder / "owners.json"),
    )
    group(
        folder,
        1,
        training(folder, "hsdp to one", 8, "hsdp"),
        training(folder, "two to one", 4, "fsdp2", gradient_accumulation_steps=2),
    )
    # Muon on owners computes what one process computes.
    assert json.loads((folder / "owners.json").read_text()) == dict.fromkeys(
        ("one process", "ddp", "fsdp2", "hsdp", "columns"), 0.0
    )
    whole = facts(folder, "one")["losses"]
    assert len(whole) == 6
    weights = load_file(folder / "one" / "model.safetensors")
    for path in sorted(folder.glob("*/facts.json")):
        name = path.parent.name
        found = facts(folder, name)
        # The chunked loss holds for the sharded head too, once a batch.
        assert found["head"] >= 3, name
        for step, loss in found["losses"].items():
            assert loss == pytest.approx(whole[step], abs=1e-5), (name, step)
        others = load_file(path.parent / "model.safetensors")
        assert others.keys() == weights.keys(), name
        for key, value in weights.items():
            torch.testing.assert_close(others[key], value, atol=1e-4, rtol=0, msg=f"{name} {key}")
    sharded = {
        name for name in ("ddp", "fsdp2", "hsdp", "fsdp2 to ddp", "one to fsdp2") if facts(folder, name)["sharded"]
    }
    assert sharded == {"fsdp2", "hsdp", "one to fsdp2"}
    # As many processes continue bit for bit.
    for name, value in load_file(folder / "fsdp2" / "model.safetensors").items():
        assert torch.equal(value, load_file(folder / "fsdp2 again" / "model.safetensors")[name]), name
    AutoModelForCausalLM.from_pretrained(folder / "fsdp2")
    # A whole checkpoint holds the files of one process, a divided one folders.
    one, hsdp = ({file.name for file in (folder / name / "checkpoint-3").iterdir()} for name in ("one", "hsdp"))
    assert {name for name in hsdp if not name.startswith("rng_state")} == {
        name for name in one if not name.startswith("rng_state")
    }
    assert is_whole_checkpoint(folder / "fsdp2" / "checkpoint-3")
    assert (folder / "fsdp2" / "checkpoint-3" / "pytorch_model_fsdp_0" / ".metadata").is_file()


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("ddp", {"ACCELERATE_USE_FSDP": None}),
        ("fsdp2", {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}),
        ("hsdp", {"FSDP_VERSION": "2", **{f"PARALLELISM_CONFIG_DP_{k}_SIZE": v for k, v in _HSDP.items()}}),
    ],
)
def test_accelerate_reads_the_files(file: str, expected: dict[str, str | None]) -> None:
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    path = Path(__file__).parents[2] / "recipes" / "accelerate" / f"{file}.yaml"
    options = ["--config_file", str(path), "--num_processes", "8", "script.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(options))
    environment = prepare_multi_gpu_env(arguments)
    assert {name: environment.get(name) for name in expected} == expected


def test_replicas_must_divide_the_processes(tmp_path: Path) -> None:
    arguments = PretrainArguments(output_dir=str(tmp_path), use_cpu=True)
    assert replicas_of(arguments) == 1
    arguments.fsdp_replicas = 2
    with pytest.raises(ConfigError, match="--fsdp_replicas 2 shares 1 processes among 2 copies"):
        replicas_of(arguments)
    with pytest.raises(ValueError, match="--fsdp_replicas is 0: give a whole number from 1"):
        PretrainArguments(output_dir=str(tmp_path), use_cpu=True, fsdp_replicas=0)
    with pytest.raises(ValueError, match="--fsdp shares a model among several processes, and this is a single one"):
        PretrainArguments(output_dir=str(tmp_path), use_cpu=True, fsdp="true")
