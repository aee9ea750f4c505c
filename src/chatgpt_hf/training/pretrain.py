"""From a corpus to a base model, with stock `Trainer`."""

import json
import logging
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, default_data_collator

from ..checkpoints import check_tokenizer_fits, load_model
from ..configuration_chatgpt import ChatGPTConfig
from ..data.corpus import load_corpus, split_by_hash
from ..data.packing import IGNORE_INDEX, pack_documents, tokenize_corpus
from ..errors import ConfigError, DataError
from ..evaluation.language_modeling import evaluate_language_modeling
from ..modeling_chatgpt import ChatGPTForCausalLM
from ..report import Report
from ..tokenization_chatgpt import load_tokenizer, train_tokenizer
from .arguments import CorpusArguments, ModelArguments, PretrainArguments
from .run import BitsPerByte, check_block_size, check_run, save_results, start_run, train_and_save

logger = logging.getLogger(__name__)


def pretrain(
    model_arguments: ModelArguments,
    architecture: Any,
    corpus_arguments: CorpusArguments,
    arguments: PretrainArguments,
) -> dict[str, Any]:
    """Trains a base model and leaves a plain model folder with its tokenizer and a report.

    Args:
        architecture: `ArchitectureArguments`.

    Returns:
        The run's figures, as in its results.json.

    Raises:
        ChatGPTError: On a corpus, tokenizer, config or folder that cannot be used.
    """
    check_run(arguments)
    splits = load_corpus(corpus_arguments.corpus, text_column=corpus_arguments.text_column)
    if "test" not in splits:
        splits = split_by_hash(splits["train"])
    tokenizer = _tokenizer(corpus_arguments, model_arguments, splits["train"]["text"])
    model = _model(model_arguments, architecture, tokenizer, corpus_arguments.block_size)
    check_tokenizer_fits(model, tokenizer)
    check_block_size(corpus_arguments.block_size, model)
    documents = {name: tokenize_corpus(split, tokenizer) for name, split in splits.items()}
    rows = {
        name: pack_documents(
            split, corpus_arguments.block_size, pad_token_id=tokenizer.pad_token_id, seed=arguments.seed
        )
        for name, split in documents.items()
    }
    held_out_bytes = sum(len(text.encode()) for text in splits["test"]["text"])
    held_out_tokens = sum(label != IGNORE_INDEX for labels in rows["test"]["labels"] for label in labels)
    if not held_out_tokens:
        raise DataError(f"The held-out part of {corpus_arguments.corpus} is empty.")
    train_tokens = sum(len(ids) for ids in documents["train"]["input_ids"])
    used = train_tokens / (len(rows["train"]) * corpus_arguments.block_size)
    logger.info("%d rows of %d tokens, %.1f %% used", len(rows["train"]), corpus_arguments.block_size, 100 * used)

    folder = start_run(model, arguments, model_arguments, architecture, corpus_arguments)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows["train"],
        eval_dataset=rows["test"],
        processing_class=tokenizer,
        data_collator=default_data_collator,
        optimizer_cls_and_kwargs=arguments.optimizer_cls_and_kwargs,
        callbacks=[BitsPerByte(held_out_tokens, held_out_bytes)],
    )
    metrics = train_and_save(trainer, tokenizer, folder)
    held_out = evaluate_language_modeling(model, tokenizer, splits["test"]["text"])
    results = {
        "parameters": model.num_parameters(),
        "train_tokens": train_tokens,
        "share_of_positions_used": used,
        **{name: value for name, value in metrics.items() if name.startswith("train_") or name == "epoch"},
        **{f"held_out_{name}": value for name, value in held_out.as_dict().items()},
    }
    if trainer.is_world_process_zero():
        Report(
            title="Pretraining",
            description="a base model that continues text.",
            data=corpus_arguments.corpus,
            results=results,
            log_history=trainer.state.log_history,
            samples=_samples(model, tokenizer),
        ).write(folder)
        save_results(folder, results)
    return results


def _tokenizer(
    corpus_arguments: CorpusArguments, model_arguments: ModelArguments, texts: Any
) -> PreTrainedTokenizerBase:
    source = corpus_arguments.tokenizer or model_arguments.model_name_or_path
    if source is not None:
        tokenizer = load_tokenizer(source)
        if tokenizer.pad_token_id is None:
            # GPT-2 has none. Padding is masked by position here, so its eos is learned all the same.
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer
    return train_tokenizer(texts, corpus_arguments.vocab_size)


def _model(
    model_arguments: ModelArguments,
    architecture: Any,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
) -> PreTrainedModel:
    chosen = {name: value for name, value in vars(architecture).items() if value is not None}
    if model_arguments.model_name_or_path is not None:
        if chosen or model_arguments.depth is not None:
            first = next(iter(chosen), "depth")
            raise ConfigError(
                f"--{first} shapes a new model and --model_name_or_path names one that exists: give one of the two."
            )
        return load_model(
            model_arguments.model_name_or_path,
            ChatGPTForCausalLM,
            attn_implementation=model_arguments.attn_implementation,
        )
    fixed = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": block_size,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "attn_implementation": model_arguments.attn_implementation,
    }
    try:
        if isinstance(chosen.get("rope_parameters"), str):
            chosen["rope_parameters"] = json.loads(chosen["rope_parameters"])
        if model_arguments.depth is not None:
            config = ChatGPTConfig.from_depth(model_arguments.depth, **{**fixed, **chosen})
        else:
            config = ChatGPTConfig(**{**fixed, **chosen})
    except Exception as error:
        raise ConfigError(f"No model has this shape: {error}") from error
    return ChatGPTForCausalLM(config)


def _samples(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Three continuations of nothing, sampled, for the report."""
    start = tokenizer.pad({"input_ids": [[tokenizer.bos_token_id]] * 3}, return_tensors="pt").to(model.device)
    model.eval()
    length = min(100, model.config.max_position_embeddings - 1)
    output = model.generate(**start, max_new_tokens=length, do_sample=True, temperature=0.8, top_k=50)
    return tokenizer.batch_decode(output, skip_special_tokens=True)
