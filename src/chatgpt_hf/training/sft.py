"""From a base model to a chat model, with TRL's `SFTTrainer`; only what the assistant says is learned."""

import json
import logging
import shlex
from typing import Any

from datasets import DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, default_data_collator

from ..checkpoints import (
    BASE_SAMPLE_NAME,
    RECIPE_NAME,
    check_tokenizer_fits,
    extend_vocabulary,
    load_model,
    sample_of,
    write_atomically,
)
from ..data.conversations import load_conversations, share_supervised, show_masks, tokenize_conversations
from ..data.packing import pack_documents
from ..data.sources import parse_sources
from ..errors import ConfigError, TokenizerError
from ..evaluation.answers import AnswersResult, ends_with_an_answer, evaluate_answers
from ..extras import needed_by
from ..modeling_chatgpt import ChatGPTForCausalLM
from ..report import Report, training_facts
from ..tokenization_chatgpt import CHAT_TEMPLATE, IM_END, IM_START, PAD, load_tokenizer
from .adapters import lora_config, quantization
from .arguments import ChatModelArguments, ChatSFTArguments, ConversationArguments
from .run import check_block_size, check_run, push_run, save_results, start_run, train_and_save

with needed_by("Training"):
    from trl import SFTTrainer

logger = logging.getLogger(__name__)

# Conversations of each part that the figures are measured on: the greedy answers to more would take minutes on a laptop.
EVALUATED_CONVERSATIONS = 200


class ModelLossSFTTrainer(SFTTrainer):
    """`SFTTrainer` with the model's own chunked loss, as `Trainer` calls it.

    TRL's fused head also measures entropy and scores, off a GPU, every position in its own way: about 0.86 s a step
    against 0.55 s on two cores, in two quickstart runs at different times. Models without a chunked loss keep TRL's.
    """

    compute_loss = Trainer.compute_loss


def add_chat_template(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Makes a base model's tokenizer, such as GPT-2's, one for chats: special tokens and our template, in place.

    Returns:
        The ids that are new, for which the model has rows now; see `extend_vocabulary`.

    Raises:
        TokenizerError: When the tokenizer has no token to begin documents with.
    """
    if tokenizer.eos_token is None:
        raise TokenizerError("The base model's tokenizer has no eos token: set one before it learns to chat.")
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token
    before = len(tokenizer)
    new = [token for token in (IM_START, IM_END) if token not in tokenizer.get_vocab()]
    tokenizer.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        tokenizer.add_special_tokens({"pad_token": PAD})
    tokenizer.chat_template = CHAT_TEMPLATE
    extend_vocabulary(model, len(tokenizer))
    added = list(range(before, len(tokenizer)))
    logger.info("The tokenizer had no chat template: it gets ChatML and %d tokens for it.", len(added))
    return added


def sft(
    model_arguments: ChatModelArguments,
    conversation_arguments: ConversationArguments,
    arguments: ChatSFTArguments,
) -> dict[str, Any]:
    """Fine-tunes on conversations and leaves a plain model folder that `chatgpt-hf chat` talks to.

    Returns:
        The run's figures, as in its results.json: how many of a trained and of a held-out sample are answered exactly,
        and ROUGE-L.

    Raises:
        ChatGPTError: On data, a model or a folder that cannot be used.
    """
    if model_arguments.model_name_or_path is None:
        raise ConfigError("--model_name_or_path is missing: name the base model to fine-tune.")
    penalty = conversation_arguments.repetition_penalty
    if penalty is not None and not penalty > 0:
        raise ConfigError(f"--repetition_penalty is {penalty}: give a number above 0, where 1 changes nothing.")
    check_run(arguments)
    sources = parse_sources(conversation_arguments.dataset, field="dataset")
    splits = load_conversations(
        sources,
        test_fraction=conversation_arguments.test_fraction,
        seed=arguments.seed,
        skip_invalid=conversation_arguments.skip_invalid,
    )
    tokenizer = load_tokenizer(model_arguments.model_name_or_path)
    model = load_model(
        model_arguments.model_name_or_path,
        attn_implementation=model_arguments.attn_implementation,
        **quantization(model_arguments),
    )
    check_tokenizer_fits(model, tokenizer)
    base_sample = sample_of(model)
    added = add_chat_template(model, tokenizer) if tokenizer.chat_template is None else []
    check_block_size(conversation_arguments.block_size, model)
    if tokenizer.pad_token_id is None:
        # Padding is masked by position here, so eos is learned all the same.
        tokenizer.pad_token = tokenizer.eos_token

    tokenized = tokenize_conversations(
        splits["train"],
        tokenizer,
        max_length=conversation_arguments.block_size,
        long_conversations=conversation_arguments.long_conversations,
    )
    if conversation_arguments.show_masks and arguments.process_index == 0:
        show_masks(tokenized.select(range(min(conversation_arguments.show_masks, len(tokenized)))), tokenizer)
    logger.info("%.1f %% of the tokens are learned", 100 * share_supervised(tokenized))
    rows = pack_documents(
        tokenized,
        conversation_arguments.block_size,
        pad_token_id=tokenizer.pad_token_id,
        split_long=False,
        seed=arguments.seed,
    )
    folder = start_run(model, arguments, model_arguments, conversation_arguments)
    parts = _conversations_to_answer(splits, arguments.seed)
    base_figures: dict[str, float] = {}
    if conversation_arguments.evaluate_base:
        # As it is before it learns anything, with the end marks that it is about to learn and the same penalty.
        set_generation(model, tokenizer, penalty)
        for title, part in parts.items():
            base_figures |= _figures(f"base_{title}", evaluate_answers(model, tokenizer, part))
    # The rows are ready: TRL's own preparation would read message text that looks like a special token as one.
    arguments.dataset_kwargs = {"skip_prepare_dataset": True}
    arguments.remove_unused_columns = False
    adapter = lora_config(model_arguments, model, added=added)
    # TRL's fused head does not read a head that PEFT has wrapped for new tokens (TRL 1.16).
    own_loss = isinstance(model, ChatGPTForCausalLM) or (adapter is not None and added)
    trainer_class = ModelLossSFTTrainer if own_loss else SFTTrainer
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        data_collator=default_data_collator,
        optimizer_cls_and_kwargs=arguments.optimizer_cls_and_kwargs,
        peft_config=adapter,
    )
    set_generation(model, tokenizer, penalty)
    metrics = train_and_save(trainer, tokenizer, folder)
    if adapter is not None and trainer.is_world_process_zero():
        content = json.dumps(base_sample)
        write_atomically(folder / BASE_SAMPLE_NAME, lambda file: file.write_text(content, encoding="utf-8"))

    results: dict[str, Any] = {
        "parameters": model.num_parameters(),
        "share_of_tokens_learned": share_supervised(tokenized),
        **{name: value for name, value in metrics.items() if name.startswith("train_") or name == "epoch"},
        **base_figures,
    }
    samples = []
    for title, part in parts.items():
        answers = evaluate_answers(model, tokenizer, part)
        results |= _figures(title, answers)
        samples += [
            f"({title})\nQ: {s['question']}\nA: {s['answer']}\nReference: {s['reference']}" for s in answers.samples
        ]
    if trainer.is_world_process_zero():
        Report(
            title="Chat fine-tuning",
            description="a chat model that answers questions.",
            data=", ".join(source.source for source in sources),
            results=results,
            log_history=trainer.state.log_history,
            samples=samples,
            chat=True,
            training=training_facts(arguments, trainer.state),
            command=f"chatgpt-hf sft {shlex.quote(str(folder / RECIPE_NAME))} --output_dir NEW",
            datasets=[source.source for source in sources],
            base_model=model_arguments.model_name_or_path,
        ).write(folder)
        save_results(folder, results)
        push_run(arguments, folder)
    return results


def set_generation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, repetition_penalty: float | None = None
) -> None:
    """Lets generation stop where the assistant's turn ends; the document's end is for text that is no conversation.

    Args:
        repetition_penalty: Of all generation from then on; None leaves what the model has.
    """
    if repetition_penalty is not None:
        model.generation_config.repetition_penalty = repetition_penalty
    ends = [tokenizer.convert_tokens_to_ids(IM_END)] if IM_END in tokenizer.get_vocab() else []
    model.generation_config.eos_token_id = [*ends, tokenizer.eos_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id


def _conversations_to_answer(splits: DatasetDict, seed: int) -> dict[str, list[list[dict[str, Any]]]]:
    """A sample of each part that can be answered, by the part's name in the results."""
    parts = {}
    for name, title in (("train", "trained"), ("test", "held_out")):
        if name not in splits:
            continue
        # A conversation that ends with the user is learned from as far as it goes, and has no answer to compare with.
        part = splits[name].filter(ends_with_an_answer, input_columns="messages").shuffle(seed=seed)
        if len(part):
            parts[title] = part.select(range(min(EVALUATED_CONVERSATIONS, len(part))))["messages"]
    return parts


def _figures(title: str, answers: AnswersResult) -> dict[str, float]:
    names = ("exact_match", "rouge_l", "stopped", "well_formed")
    return {f"{title}_{name}": getattr(answers, name) for name in names}
