"""Models on two and three processes of this machine (gloo), beside the same models in one."""

import json
import os
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, load_tokenizer
from chatgpt_hf.errors import ConfigError
from chatgpt_hf.inference.tensor_parallel import check_plan, run_shared

Cli = Callable[..., Any]
GREEDY = ["--temperature", "0", "--max_new_tokens", "12"]
# SmolLM2-135M's: heads, their size, and the gated layers; two of them, and a small vocabulary.
SMOLLM2 = {
    **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 2, "num_attention_heads": 9},
    **{
        "num_key_value_heads": 3,
        "gated_mlp": True,
        "hidden_act": "silu",
        "qk_norm": False,
        "tie_word_embeddings": True,
    },
}
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "sliding": {**SMALL, "qk_norm": True, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt2": {
        **{
            **SMALL,
            "num_key_value_heads": 4,
            "position_embedding_type": "learned",
            "norm_type": "layernorm",
            "norm_bias": True,
        },
        **{"attention_bias": True, "mlp_bias": True, "gated_mlp": False, "hidden_act": "gelu_new", "qk_norm": False},
    },
    "short-range": {**SMALL, "conv_kernel_size": 3, "ngram_vocab_sizes": [50], "tie_word_embeddings": False},
}


class Processes:
    """Runs one job in several processes that know each other as torchrun's do."""

    def __init__(self, server: Any, folder: Path, free_port: Callable[[], int]) -> None:
        self._server, self._folder, self._free_port = server, folder, free_port

    def start(self, size: int = 2, code: str = "", arguments: list[str] | None = None) -> list[int]:
        """Starts the processes; returns their ids, the first one's first."""
        port, pids = self._free_port(), []
        for rank in range(size):
            known = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": size,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
            setting = f"import os; os.environ.update({ {name: str(value) for name, value in known.items()} })\n"
            job: dict[str, Any] = {"code": setting + code} | ({"arguments": arguments} if arguments else {})
            streams = ["/dev/null", str(self._folder / f"out-{rank}"), str(self._folder / f"err-{rank}")]
            pids.append(self._server.ask(**job, folder=str(self._folder), streams=streams))
        return pids

    def wait(self, pids: list[int]) -> list[int]:
        """Waits for all; returns their exit codes."""
        return [self._server.ask(wait=pid) for pid in pids]

    def run(self, size: int = 2, **job: Any) -> list[int]:
        return self.wait(self.start(size, **job))

    def out(self, rank: int = 0) -> str:
        return (self._folder / f"out-{rank}").read_text(encoding="utf-8")

    def err(self, rank: int = 0) -> str:
        return (self._folder / f"err-{rank}").read_text(encoding="utf-8")


@pytest.fixture
def processes(fork_server: Any, tmp_path: Path, free_port: Callable[[], int]) -> Processes:
    return Processes(fork_server, tmp_path, free_port)


def save(folder: Path, base: Path, **fields: Any) -> str:
    """Saves an untrained model with the tokenizer of `base`; its greedy texts are not all one token."""
    tokenizer = load_tokenizer(base)
    torch.manual_seed(0)
    config = ChatGPTConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **fields,
    )
    model = ChatGPTForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def smollm2(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("smollm2"), base_folder, **SMOLLM2)


@pytest.fixture(scope="module")
def small(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("small"), base_folder, **SMALL)


COMPARING = """
import torch
from chatgpt_hf.checkpoints import load_model
from chatgpt_hf.inference.cache import PrefixCache
from chatgpt_hf.inference.loading import load_language_model
from chatgpt_hf.inference.sampler import sample_completions
from chatgpt_hf.inference.tensor_parallel import run_shared
from transformers import AutoModelForCausalLM

def work():
    ids = torch.randint(3, 200, (2, 20), generator=torch.Generator().manual_seed(0))
    greedy = {"do_sample": False, "max_new_tokens": 8}
    for folder in FOLDERS:
        shared, whole = load_language_model(folder), load_model(folder, AutoModelForCausalLM).eval()
        with torch.no_grad():
            expected = whole(ids).logits
        part = dict(shared.named_parameters())["model.layers.0.mlp.up_proj.weight"].to_local()
        assert 2 * len(part) == whole.config.intermediate_size, part.shape
        for _ in range(2):
            difference = (shared(ids).logits - expected).abs().max()
            assert difference < 1e-4, (folder, difference)
        # Rows of a batch, a beginning that is known already, and rows that are repeated and leave.
        assert torch.equal(shared.generate(ids, **greedy), whole.generate(ids, **greedy))
        prefixes = PrefixCache(shared), PrefixCache(whole)
        for end in (20, 15, 18):
            first, second = (prefix.generate(ids[:1, :end], **greedy) for prefix in prefixes)
            assert torch.equal(first, second), (folder, end)
        assert prefixes[0].processed_tokens == prefixes[1].processed_tokens
        options = {"samples": 3, "max_new_tokens": 6, "batch_size": 6, "end_ids": {5, 6, 7, 8, 9, 10}}
        answers = [
            sample_completions(
                model, ids.tolist(), generator=[torch.Generator().manual_seed(row) for row in (1, 2)], **options
            )
            for model in (shared, whole)
        ]
        found, right = ([[answer.ids for answer in group] for group in groups] for groups in answers)
        assert found == right, (folder, found, right)
    try:
        shared(ids, inputs_embeds=torch.zeros(2, 20, 64))
    except ValueError as error:
        assert "exactly one of" in str(error), error
    else:
        raise AssertionError("both were taken")
    # An error in all processes ends none of them.
    assert torch.equal(shared(ids).logits, shared(ids).logits)
    print("equal")

run_shared("auto", work)
"""


def test_shared_models_compute_what_whole_ones_do(
    processes: Processes, base_folder: Path, llama_folder: Path, tmp_path: Path
) -> None:
    folders = [save(tmp_path / name, base_folder, **fields) for name, fields in VARIANTS.items()]
    folders.append(str(llama_folder))
    codes = processes.run(code=f"FOLDERS = {folders}\n{COMPARING}")
    assert codes == [0, 0], processes.err() + processes.err(1)
    assert processes.out().splitlines()[-1] == "equal"
    assert (processes.out(1), processes.err(1)) == ("", "")


STAGES = """
import torch
from chatgpt_hf import ChatGPTForCausalLM
from transformers.distributed import DistributedConfig

ids = torch.randint(3, 200, (1, 12), generator=torch.Generator().manual_seed(0))
whole, stage = (
    ChatGPTForCausalLM.from_pretrained(FOLDER, distributed_config=config).eval()
    for config in (None, DistributedConfig(pp_size=2))
)
names = {name.split(".")[2] for name, _ in stage.named_parameters() if ".layers." in name}
assert names == {os.environ["RANK"]}, names
with torch.no_grad():
    assert torch.equal(stage(ids).logits, whole(ids).logits)
greedy = {"do_sample": False, "max_new_tokens": 8}
assert torch.equal(stage.generate(ids, **greedy), whole.generate(ids, **greedy))
torch.distributed.destroy_process_group()
"""


def test_two_stages_of_a_pipeline_compute_what_one_model_does(processes: Processes, small: str) -> None:
    assert processes.run(code=f"FOLDER = {small!r}\n{STAGES}") == [0, 0], processes.err() + processes.err(1)


@pytest.mark.parametrize(("plan", "size"), [("mlp", 2), ("auto", 3)])
def test_greedy_text_is_that_of_one_process(
    plan: str, size: int, processes: Processes, smollm2: str, cli: Cli
) -> None:
    arguments = ["generate", smollm2, "--prompt", "How are you", *GREEDY]
    alone = cli(*arguments)
    codes = processes.run(size, arguments=[*arguments, "--tp_plan", plan])
    assert codes == [0] * size, processes.err()
    assert processes.out() == alone.out
    assert all(processes.out(rank) + processes.err(rank) == "" for rank in range(1, size))


def test_guesses_do_not_change_the_text(processes: Processes, small: str, cli: Cli) -> None:
    arguments = ["generate", small, "--prompt", "you you you", *GREEDY]
    alone = cli(*arguments)
    assert processes.run(arguments=[*arguments, "--tp_plan", "auto", "--speculate", "auto"]) == [0, 0], processes.err()
    assert processes.out() == alone.out


def test_samples_are_those_of_one_process(processes: Processes, small: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "How are"}\n{"prompt": "I am fine, thank you"}\n')
    arguments = [
        "generate",
        small,
        "--prompts",
        str(tmp_path / "prompts.jsonl"),
        "--samples",
        "3",
        "--max_new_tokens",
        "6",
    ]
    assert cli(*arguments, "--output", tmp_path / "alone.jsonl").code == 0
    shared = str(tmp_path / "shared.jsonl")
    assert processes.run(arguments=[*arguments, "--output", shared, "--tp_plan", "auto"]) == [0, 0], processes.err()
    found, right = (
        {(row["line"], row["sample"]): row["completion_ids"] for row in map(json.loads, file.open(encoding="utf-8"))}
        for file in (Path(shared), tmp_path / "alone.jsonl")
    )
    assert found == right


def test_figures_are_those_of_one_process(processes: Processes, small: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("How are you? I am fine, thank you. " * 20, encoding="utf-8")
    figures = []
    for size, more in ((1, []), (2, ["--tp_plan", "auto"])):
        out = tmp_path / f"figures-{size}"
        arguments = ["evaluate", small, "--corpus", str(tmp_path / "text.txt"), "--out", str(out), *more]
        assert processes.run(size, arguments=arguments) == [0] * size, processes.err()
        figures.append(processes.out())
    assert figures[0] == figures[1]
    assert "bits_per_byte" in figures[0]
    assert processes.err(1) == ""


def test_serve_answers_and_all_processes_end_together(
    processes: Processes, small: str, cli: Cli, free_port: Callable[[], int], wait_until: Any
) -> None:
    port = free_port()
    pids = processes.start(arguments=["serve", small, "--port", str(port), "--tp_plan", "auto"])
    wait_until(lambda: "is served at" in processes.err())
    texts = []
    for _ in range(2):
        body = {"model": small, "prompt": "How are you", "max_tokens": 12, "temperature": 0}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            texts.append(json.load(answer)["choices"][0]["text"])
    alone = cli("generate", small, "--prompt", "How are you", *GREEDY).out
    assert ["How are you" + text for text in texts] == [alone.removesuffix("\n")] * 2
    for pid in reversed(pids):
        os.kill(pid, signal.SIGTERM)
    assert processes.wait(pids) == [0, 0]
    assert processes.err(1) == ""


def test_others_end_when_the_first_is_killed(processes: Processes, small: str) -> None:
    code = f"""
import os, signal
from chatgpt_hf.inference.loading import load_language_model
from chatgpt_hf.inference.tensor_parallel import run_shared
run_shared("auto", lambda: (load_language_model({small!r}), os.kill(os.getpid(), signal.SIGKILL)))
"""
    assert processes.run(code=code) == [-signal.SIGKILL, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--tp_plan", "auto"],
            "9 attention heads and 3 heads of keys and values do not divide among 2 processes: start 3",
        ),
        (["--tp_plan", "auto", "--quantize", "int8"], "--quantize does not work with --tp_plan"),
        (["--tp_plan", "rows"], "--tp_plan rows is unknown; choose from auto, mlp"),
    ],
)
def test_all_processes_end_alike(options: list[str], message: str, processes: Processes, smollm2: str) -> None:
    assert processes.run(arguments=["generate", smollm2, "--prompt", "How", *options]) == [2, 2]
    assert message in processes.err()
    assert processes.err().count("error:") == 1


def test_a_broken_part_is_named(processes: Processes, small: str, tmp_path: Path) -> None:
    model = ChatGPTForCausalLM.from_pretrained(small)
    with torch.no_grad():
        # In the second process's rows.
        model.model.layers[1].mlp.up_proj.weight[-1, 0] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    load_tokenizer(small).save_pretrained(tmp_path / "broken")
    assert processes.run(arguments=["generate", str(tmp_path / "broken"), "--prompt", "How", "--tp_plan", "auto"]) == [
        2,
        2,
    ]
    assert "Process 1 could not load its part" in processes.err()
    assert "NaN" in processes.err()
    assert processes.err(1) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "MODEL", "--tp_plan", "auto"], "this is a single one: start several with `torchrun"),
        (["generate", "MODEL", "--compile", "--tp_plan", "auto"], "--compile does not work with --tp_plan"),
        (["generate", "MODEL", "--speculate", "1", "--tp_plan", "auto"], "--speculate 1 does not work with --tp_plan"),
        (["serve", "MODEL", "--continuous_batching", "--tp_plan", "auto"], "--continuous_batching does not work with"),
        (["evaluate", "MODEL", "--dataset", "x.csv", "--tp_plan", "auto"], "--dataset does not work with --tp_plan"),
        (
            ["generate", "MODEL", "--prompts", "PROMPTS", "--output", "o.jsonl", "--tp_plan", "auto"],
            "continuous batching, which does not work with --tp_plan: give --samples 1",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(
    arguments: list[str], message: str, small: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "How"}\n')
    places = {"MODEL": small, "PROMPTS": str(prompts)}
    assert message in refused(*(places.get(word, word) for word in arguments))


def test_a_model_without_a_plan_is_refused(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ConfigError, match="GPT2LMHeadModel has no tensor-parallel plan"):
        check_plan(tmp_path / "gpt2", "auto", 2)


def test_a_head_count_without_a_divisor_leaves_the_feed_forward_layers(base_folder: Path, tmp_path: Path) -> None:
    folder = save(tmp_path / "one", base_folder, **{**SMALL, "num_key_value_heads": 1})
    with pytest.raises(ConfigError, match="among 2 processes: give --tp_plan mlp"):
        check_plan(folder, "auto", 2)
    whole = check_plan(folder, "mlp", 2)
    assert set(whole.values()) == {"replicate"}
    assert "model.layers.*.self_attn.o_proj" in whole
    assert not any("mlp" in name for name in whole)


def test_one_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ConfigError, match="this is a single one"):
        run_shared("auto", lambda: None)
