"""Learning from rewards: rollouts and steps beside TRL's own, in one process.

A model of the quickstart's shape with random weights, or `--model FOLDER`, answers 32 prompts 8 times each, once with TRL's
`GRPOTrainer` and once with our sampler, which also returns log-probabilities. Then both trainers take a step of 64 answers
(sampling, rewards, loss, gradients), and compute the gradients of the same 64 answers, which must agree. A twentieth of the
vocabulary ends an answer, so that lengths differ as they do in practice. Both ways take turns; the median of the rounds counts, in CPU
seconds, since everything runs in one thread.

    python benchmarks/alignment.py
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import harness
import torch
from datasets import Dataset, disable_progress_bars
from trl import GRPOConfig, GRPOTrainer

from chatgpt_hf import load_builtin, load_model, load_tokenizer
from chatgpt_hf.chat_templates import encode_chat_prompt
from chatgpt_hf.data.conversations import conversation_key
from chatgpt_hf.inference.cpu.packed_linear import packed_copy
from chatgpt_hf.inference.sampler import sample_completions
from chatgpt_hf.training.grpo_arguments import GRPOArguments
from chatgpt_hf.training.rollouts import GroupTrainer

# How far two gradients may differ, relative to their norm.
TOLERANCE = 1e-4


def cpu_timed(call: Callable[[], Any]) -> harness.Timed[Any]:
    """The result of a call, and the CPU seconds of this process."""
    begun = time.process_time()
    result = call()
    return harness.Timed(result, time.process_time() - begun)


def chance(completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """A reward that a quarter of the answers get, so that a tenth of the groups have no gradient."""
    return [float(sum(ids) % 4 == 0) for ids in completion_ids]


class Setting:
    """A model, prompts, and a trainer of each kind on them."""

    def __init__(self, folder: str, prompts: int, length: int) -> None:
        self.tokenizer, self.length = load_tokenizer(folder), length
        questions = load_builtin("builtin:python-qa")["train"].select(range(prompts))["messages"]
        rows = [messages[:1] for messages in questions]
        self.rows = Dataset.from_dict({"prompt": rows})
        self.ids = [encode_chat_prompt(self.tokenizer, messages) for messages in rows]
        self.ends = load_model(folder).generation_config.eos_token_id
        self.ends = [self.ends] if isinstance(self.ends, int) else list(self.ends)
        if folder.startswith(tempfile.gettempdir()):
            self.ends += range(100, 100 + len(self.tokenizer) // 20)
        # Without the forward pass that TRL gives to a trainer's model.
        self.plain = load_model(folder)
        self.trainers = {"TRL": self._trainer(folder, GRPOTrainer, GRPOConfig)}
        self.trainers["ours"] = ours = self._trainer(folder, GroupTrainer, GRPOArguments)
        ours.prompt_ids = {conversation_key(row): ids for row, ids in zip(rows, self.ids, strict=True)}

    def _trainer(self, folder: str, kind: Any, arguments: Any) -> Any:
        model = load_model(folder)
        model.generation_config.eos_token_id = self.ends
        options = arguments(
            output_dir=tempfile.gettempdir(),
            per_device_train_batch_size=64,
            num_generations=8,
            max_completion_length=self.length,
            learning_rate=1e-4,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = kind(
            model=model,
            reward_funcs=[chance],
            args=options,
            train_dataset=self.rows,
            processing_class=self.tokenizer,
        )
        trainer.eos_token_ids = self.ends
        trainer.current_gradient_accumulation_steps = 1
        trainer.model.train()
        return trainer


def rollouts_of_trl(setting: Setting) -> list[list[int]]:
    """The answers of TRL's trainer."""
    prompts = [ids for ids in setting.ids for _ in range(8)]
    return setting.trainers["TRL"]._generate_single_turn(prompts, None, {}, 8)[0]


def rollouts_of_ours(setting: Setting) -> list[list[int]]:
    """The answers of our sampler, with the time to pack the weights."""
    found = sample_completions(
        packed_copy(setting.plain),
        setting.ids,
        samples=8,
        max_new_tokens=setting.length,
        end_ids=setting.ends,
        generator=torch.Generator().manual_seed(int(torch.randint(2**31, ()))),
    )
    return [sample.ids for samples in found for sample in samples]


def step(setting: Setting, name: str) -> None:
    """One step of 64 answers: sampling, rewards, loss and gradients."""
    trainer = setting.trainers[name]
    rows = [setting.rows[index] for index in range(8) for _ in range(8)]
    trainer.training_step(trainer.model, rows, None)
    trainer.model.zero_grad()


def gradient_difference(setting: Setting) -> float:
    """How far the gradients of both trainers differ for the same answers, relative to their norm."""
    rows = [setting.rows[index] for index in range(8) for _ in range(8)]
    # Several times, so that some group has no gradient.
    batches = [setting.trainers["ours"]._generate_and_score_completions(rows) for _ in range(3)]
    found = {}
    for name, trainer in setting.trainers.items():
        for inputs in batches:
            trainer.compute_loss(trainer.model, dict(inputs)).backward()
        found[name] = torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()])
        trainer.model.zero_grad()
    return float((found["ours"] - found["TRL"]).norm() / found["TRL"].norm())


def main() -> None:
    options = harness.parser(__doc__, rounds=5, threads=1)
    options.add_argument("--model", help="a chat model's folder (default: random weights of the quickstart's shape)")
    options.add_argument("--prompts", type=int, default=32, help="prompts of a rollout (default: %(default)s)")
    options.add_argument("--length", type=int, default=64, help="longest answer, in tokens (default: %(default)s)")
    args = options.parse_args()
    harness.prepare(args.threads)
    disable_progress_bars()
    torch.manual_seed(0)
    setting = Setting(args.model or harness.random_model(), args.prompts, args.length)

    ways = {"TRL": rollouts_of_trl, "ours": rollouts_of_ours}
    load = os.getloadavg()[0]
    rollouts = harness.in_turn(
        {name: partial(cpu_timed, partial(way, setting)) for name, way in ways.items()}, args.rounds, warm_up=True
    )
    steps = harness.in_turn(
        {name: partial(cpu_timed, partial(step, setting, name)) for name in ways}, args.rounds, warm_up=True
    )
    difference = gradient_difference(setting)

    # Answers differ from round to round, so it is tokens that are compared.
    speeds = {
        name: [sum(map(len, timed.result)) / timed.seconds for timed in rounds] for name, rounds in rollouts.items()
    }
    speed = {name: statistics.median(values) for name, values in speeds.items()}
    seconds = {name: harness.median_seconds(rounds) for name, rounds in steps.items()}
    lengths = {name: sum(map(len, rounds[-1].result)) / len(rounds[-1].result) for name, rounds in rollouts.items()}
    print(f"{args.prompts} prompts x 8 answers of up to {args.length} tokens, load {load:.1f} at the beginning\n")
    print(harness.markdown_head("", "tokens/CPU second", "mean length", "CPU seconds of a step of 64"))
    for name in ways:
        print(harness.markdown_row(name, f"{speed[name]:,.0f}", f"{lengths[name]:.1f}", f"{seconds[name]:.2f}"))
    ratios = {
        "rollout tokens per second, ours/TRL": speed["ours"] / speed["TRL"],
        "CPU seconds of a step, TRL/ours": seconds["TRL"] / seconds["ours"],
        "equal gradients": float(difference < TOLERANCE),
    }
    print(
        harness.markdown_row(
            "ours/TRL", f"{speed['ours'] / speed['TRL']:.2f}", "", f"{seconds['ours'] / seconds['TRL']:.2f}"
        )
    )
    print(f"\nGradients of the same answers differ by {difference:.1e}")
    harness.write_json(
        args.json,
        ratios,
        speeds=speeds,
        step_seconds={name: [timed.seconds for timed in rounds] for name, rounds in steps.items()},
        gradient_difference=difference,
        load=load,
    )


if __name__ == "__main__":
    main()
