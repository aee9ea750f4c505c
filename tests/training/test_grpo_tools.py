"""Answers in which the model calls a calculator: what the tool wrote is read, and nothing is learned from it."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trl import GRPOTrainer

from chatgpt_hf import ChatGPTConfig, ChatGPTForCausalLM, train_tokenizer
from chatgpt_hf.chat_templates import encode_chat_prompt, encode_conversation
from chatgpt_hf.errors import ChatGPTError
from chatgpt_hf.inference.tools import Tools
from chatgpt_hf.tokenization_chatgpt import IM_END, load_tokenizer
from chatgpt_hf.training.grpo import LOSSES, GRPORun
from chatgpt_hf.training.grpo_arguments import GRPOArguments, PromptArguments
from chatgpt_hf.training.preference_arguments import RewardModelArguments
from chatgpt_hf.training.rollouts import RLOO, scored_tokens

from .watched import Training, Watched

TYPES = (RewardModelArguments, PromptArguments, GRPOArguments)
SUMS = [(12, 7), (30, 45), (8, 91), (61, 20)]


def conversation(a: int, b: int) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": f"{a}+{b}"}}}
    return [
        {"role": "user", "content": f"{a}+{b}="},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "calculator", "content": str(a + b)},
        {"role": "assistant", "content": str(a + b)},
    ]


@pytest.fixture(scope="module")
def calling_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned some sums with calls of the calculator, in seconds."""
    folder = tmp_path_factory.mktemp("calling")
    texts = [json.dumps(conversation(*pair)) for pair in SUMS]
    tokenizer = train_tokenizer(texts, 300, max_digits=1, show_progress=False)
    end = tokenizer.convert_tokens_to_ids(IM_END)
    # A template that says less about tools than ours, for the sake of time.
    begin, _, rest = tokenizer.chat_template.partition("{{- 'Functions that")
    tokenizer.chat_template = begin + "{{- tools[0].function.name -}}" + rest[rest.index("{{- '</tools>") :]
    schemas = Tools(["calculator"], tokenizer, [end]).schemas
    rows = [encode_conversation(tokenizer, conversation(*pair), tools=schemas) for pair in SUMS]
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows])
    labels = torch.full_like(ids, -100)
    for row, label, own in zip(rows, labels, ids, strict=True):
        mask = torch.tensor(row["assistant_masks"]).bool()
        label[: len(mask)][mask] = own[: len(mask)][mask]
    torch.manual_seed(0)
    model = ChatGPTForCausalLM(
        ChatGPTConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=256,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        loss = model(ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.generation_config.eos_token_id = [end, tokenizer.eos_token_id]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def options(calling_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments of a training that takes a second; tests may append arguments."""
    files = tmp_path_factory.mktemp("sums")
    rows = [{"question": f"{a}+{b}=", "answer": str(a + b)} for a, b in SUMS]
    (files / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (files / "rewards.py").write_text(
        "seen = []\n"
        "def varied(completions, completion_ids, **columns):\n"
        "    seen.extend(zip(completions, completion_ids))\n"
        "    return [len(ids) % 5 + index % 2 for index, ids in enumerate(completion_ids)]\n",
        encoding="utf-8",
    )
    text = f"""--model_name_or_path {calling_folder} --dataset {files}/sums.jsonl --rewards {files}/rewards.py:varied
        --tools calculator --max_completion_length 64 --num_generations 4 --per_device_train_batch_size 8 --max_steps 1
        --learning_rate 1e-3 --test_fraction 0 --evaluate_prompts 0 --logging_steps 1 --save_strategy no --disable_tqdm true"""
    return text.split()


class WatchedRun(Watched, GRPORun):
    """A run whose trainer can be looked at."""


training = Training(TYPES, WatchedRun)
pytestmark = pytest.mark.usefixtures("without_report")


def first_batch(options: list[str], folder: Path, *more: object) -> tuple[Any, dict[str, Any]]:
    watched = training.start(options, folder, *more)
    watched.trainer.model.train()
    watched.trainer.current_gradient_accumulation_steps = 1
    return watched, watched.trainer._prepare_inputs(next(iter(watched.trainer.get_train_dataloader())))


def test_what_the_tool_wrote_is_read_and_not_learned(options: list[str], tmp_path: Path) -> None:
    watched, inputs = first_batch(options, tmp_path / "run", "--temperature", "1.2")
    trainer, tokenizer = watched.trainer, watched.tokenizer
    prompts = {
        tuple(encode_chat_prompt(tokenizer, conversation(*pair)[:1], watched.toolbox.schemas)): pair for pair in SUMS
    }
    seen = {tuple(ids): messages for messages, ids in watched.rewards[0].function.__globals__["seen"]}
    called = 0
    for row in range(8):
        a, b = prompts[tuple(inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()].tolist())]
        ids = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()]
        mask = inputs["tool_mask"][row][: len(ids)]
        *earlier, _ = seen[tuple(ids.tolist())]
        results = [message for message in earlier if message["role"] == "tool"]
        written = "".join(
            f"\n<|im_start|>tool\n{each['content']}<|im_end|>\n<|im_start|>assistant\n" for each in results
        )
        assert tokenizer.decode(ids[mask == 0]) == written
        if earlier == conversation(a, b)[1:3]:
            called += 1
    assert called > 0
    assert (scored_tokens(inputs) < inputs["completion_mask"].sum(1)).any()
    # The log-probabilities of the sampler are those that the training computes.
    for prompt in list(prompts)[:2]:
        for sample in trainer.sample([list(prompt)] * 2):
            row = torch.tensor([[*prompt, *sample.ids]])
            with torch.no_grad():
                log_probs, *_ = trainer._get_per_token_logps_and_entropies(
                    trainer.model, row, torch.ones_like(row), len(sample.ids)
                )
            expected = log_probs[0].where(torch.tensor(sample.tool_mask).bool(), 0.0)
            torch.testing.assert_close(torch.tensor(sample.log_probs), expected, rtol=0, atol=1e-5)
    # The loss and its gradient are TRL's, which leaves these tokens out.
    for name in LOSSES:
        if name == RLOO:
            continue
        trainer.loss_type = name
        trainer.importance_sampling_level = "sequence" if name == "luspo" else "token"
        found = []
        for loss in (trainer.compute_loss, lambda *given: GRPOTrainer.compute_loss(trainer, *given)):
            trainer.model.zero_grad()
            loss(trainer.model, inputs).backward()
            found.append(torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()]))
        assert found[1].abs().max() > 1e-6
        torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6, msg=name)


def test_a_run(options: list[str], tmp_path: Path) -> None:
    more = ["--rewards", "exact", "--evaluate_prompts", "2", "--save_strategy", "steps", "--save_steps", "1"]
    folder = tmp_path / "run"
    figures = training.run(options, folder, *more).figures
    assert figures["trained_greedy_reward_before"] == 1
    assert figures["trained_tool_calls_before"] > 0
    data = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    assert data["tools"] == ["calculator"]
    change = ["--max_tool_calling_iterations", 2]
    training.check_unchanged([*options, *more], folder, [(change, "--max_tool_calling_iterations was None and is 2")])


def test_endless_calls_get_no_reward(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that calls a tool in every turn is cut before the end mark of the call that is one too many."""
    monkeypatch.setattr(
        Tools, "_message", lambda self, turn: {"role": "assistant", "content": "", "tool_calls": [CALL]}
    )
    monkeypatch.setattr(Tools, "_response_template", lambda self: None)
    watched, inputs = first_batch(
        options, tmp_path / "run", "--max_tool_calling_iterations", 2, "--rewards", '{"name": "length", "most": 999}'
    )
    ends = set(watched.ends)
    for row in range(8):
        ids = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()].tolist()
        assert ids[-1] not in ends
    assert not inputs["live"].any()


CALL = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": "1+1"}}}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--tools search", "The tool 'search' is unknown: choose from calculator"),
        ("--tools calculator calculator", "The tool calculator is named twice"),
        ("--loss_type rloo", "--tools does not work with --loss_type rloo"),
        ("--max_tool_calling_iterations 0", "--max_tool_calling_iterations is 0: give 1 or more"),
        ("--use_transformers_continuous_batching true", "leave --use_transformers_continuous_batching out"),
    ],
)
def test_contradictions_are_refused(more: str, words: str, options: list[str], tmp_path: Path) -> None:
    with pytest.raises(ChatGPTError, match=re.escape(words)):
        training.run(options, tmp_path / "run", *more.split())
    assert not (tmp_path / "run").exists()


def test_bad_input(options: list[str], tmp_path: Path, calling_folder: Path, refused: Callable[..., str]) -> None:
    without = [each for each in options if each not in ("--tools", "calculator")]
    message = refused("grpo", *without, "--max_tool_calling_iterations", 2, "--output_dir", tmp_path / "new")
    assert message.startswith("--max_tool_calling_iterations does nothing without --tools: leave it out.")
    tokenizer = load_tokenizer(calling_folder)
    own = tokenizer.chat_template
    tokenizer.chat_template = own.replace("elif not (tools", "elif message.role != 'tool' and not (tools")
    for file in calling_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tokenizer.save_pretrained(tmp_path)
    message = refused("grpo", *options, "--model_name_or_path", tmp_path, "--output_dir", tmp_path / "new")
    assert message.startswith("The chat template does not show tool messages, so the model could not use calculator")
    tokenizer.chat_template = own.replace("'tool'", "'nobody'")
    tokenizer.save_pretrained(tmp_path)
    message = refused("grpo", *options, "--model_name_or_path", tmp_path, "--output_dir", tmp_path / "new")
    assert message.startswith("the chat template refuses the conversation: Unknown role 'tool'")
    assert not (tmp_path / "new").exists()


def test_samples_with_tools(
    calling_folder: Path, tmp_path: Path, cli: Callable[..., Any], refused: Callable[..., str]
) -> None:
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "samples.jsonl"
    rows = [{"messages": conversation(*pair)[:1], "answer": str(sum(pair))} for pair in SUMS[:2]]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "1+1="}]), encoding="utf-8")
    command = ("generate", calling_folder, "--prompts", prompts, "--output", output, "--max_new_tokens", 64)
    more = ("--samples", 2, "--temperature", 0.1, "--tools", "calculator")
    assert "line 3: it has a prompt, and --tools are for answers to messages" in refused(*command, *more)
    answers = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert len(answers) == 4
    for answer in answers:
        assert answer["tool_messages"] == conversation(*SUMS[answer["line"] - 1])[1:3]
        assert answer["completion"] == answer["answer"]
        assert answer["finish_reason"] == "stop"
        assert -1 < answer["mean_log_prob"] <= 0
    message = refused("pairs", output, "--rewards", "exact", "--output", tmp_path / "pairs.jsonl")
    assert "samples.jsonl calls tools before it answers, and rows made of it would leave the calls out" in message
    assert "--tools is for --samples: leave it out" in cli(*command, "--tools", "calculator").err
