"""A base model reads the texts of a task before it learns the task."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ..checkpoints import atomic_folder, load_model, sample_of, write_atomically
from ..data.prepare import cache_root, tokenizer_fingerprint
from ..tokenization_chatgpt import load_tokenizer, train_tokenizer
from .arguments import ArchitectureArguments, CorpusArguments, ModelArguments, PretrainArguments
from .pretrain import pretrain
from .run import RESULTS_NAME, resumes
from .task_arguments import FinetuneArguments, TaskArguments
from .vocabulary import transfer_vocabulary

FOLDER_NAME = "adapted"
_ONE_HELD_OUT_IN = 20


def adapt(name_or_path: str, texts: Sequence[str], task: TaskArguments, arguments: FinetuneArguments) -> str:
    """Language modelling on the training texts alone, task-adaptive pretraining (Gururangan et al. 2020, section 4).

    It is a run of `pretrain` in the folder `adapted` of the run for the task, goes on where it was like any other, and is not
    made again when it is there.

    Args:
        texts: Of the rows to learn from; nothing that is measured on.

    Returns:
        The folder with the adapted model.
    """
    folder = Path(arguments.output_dir) / FOLDER_NAME
    if resumes(arguments) and (folder / RESULTS_NAME).is_file():
        return str(folder)
    # Not by a hash: where that has held out the rows of the task, none of these would be.
    held_out = texts[::_ONE_HELD_OUT_IN]
    read = [text for index, text in enumerate(texts) if index % _ONE_HELD_OUT_IN] or held_out
    file, eval_file = _file(read), _file(held_out)
    if task.adapt_vocab_size is not None:
        name_or_path = _with_words_of(read, task.adapt_vocab_size, name_or_path)
    pretrain(
        ModelArguments(model_name_or_path=name_or_path),
        ArchitectureArguments(),
        CorpusArguments(corpus=[str(file)], eval_corpus=str(eval_file), block_size=max(task.max_length, 128)),
        PretrainArguments(
            output_dir=str(folder),
            num_train_epochs=task.adapt_epochs,
            learning_rate=task.adapt_learning_rate,
            per_device_train_batch_size=8,
            eval_strategy="no",
            save_steps=100,
            save_total_limit=1,
            use_cpu=arguments.use_cpu,
            bf16=arguments.bf16,
            seed=arguments.seed,
            resume_from_checkpoint=arguments.resume_from_checkpoint,
        ),
    )
    return str(folder)


def _file(texts: Sequence[str]) -> Path:
    """A file of texts, kept by their content: the rows of a run are known by their file's name too."""
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    file = cache_root() / "texts" / f"{hashlib.blake2b(lines.encode(), digest_size=16).hexdigest()}.jsonl"
    if not file.is_file():
        write_atomically(file, lambda temporary: temporary.write_text(lines, encoding="utf-8"))
    return file


def _with_words_of(texts: Sequence[str], vocab_size: int, name_or_path: str) -> str:
    """The folder of the model with a tokenizer that was trained on the texts."""
    model, old = load_model(name_or_path), load_tokenizer(name_or_path)
    key = json.dumps([_file(texts).name, vocab_size, sample_of(model), tokenizer_fingerprint(old)])
    folder = cache_root() / "vocabularies" / hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    if not folder.is_dir():
        tokenizer = train_tokenizer(texts, vocab_size)
        transfer_vocabulary(model, old, tokenizer)
        with atomic_folder(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    return str(folder)
