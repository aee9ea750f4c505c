"""Task-adaptive pretraining: a base model reads the texts of a task before it learns the task."""

import copy
import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from transformers import set_seed

from ..cache import MODELS, TEXTS, WRITTEN_NAME, building, cache_root, checksum, in_use, writing
from ..checkpoints import load_model, sample_of
from ..data.prepare import tokenizer_fingerprint
from ..errors import CheckpointError
from ..files import read_yaml
from ..parsing import parse_json, read_file
from ..tasks.arguments import TaskArguments
from ..tokenization_chatgpt import load_tokenizer, train_tokenizer
from .arguments import ArchitectureArguments, CorpusArguments, FinetuneArguments, ModelArguments, PretrainArguments
from .pretrain import pretrain
from .run import resumes
from .run_folder import RECIPE_NAME, RESULTS_NAME
from .vocabulary import transfer_vocabulary

FOLDER_NAME = "adapted"
_ONE_HELD_OUT_IN = 20


def adapt(
    name_or_path: str,
    texts: Sequence[str],
    task: TaskArguments,
    arguments: FinetuneArguments,
    *,
    from_scratch: bool = False,
) -> str:
    """Trains language modeling on the training texts only (Gururangan et al. 2020, section 4).

    Calls `pretrain` with the folder `adapted` inside the folder of the task's run. Resumes like any other run, and is
    not repeated if it is finished.

    Args:
        texts: Texts of the training rows; none of the rows for evaluation.
        from_scratch: Give the model new weights first, so that it has read nothing but the texts.

    Returns:
        The folder with the adapted model.
    """
    # Not by hash: the task's rows may have been split by the same hash, which would then hold out none of these.
    held_out = texts[::_ONE_HELD_OUT_IN]
    read = [text for index, text in enumerate(texts) if index % _ONE_HELD_OUT_IN] or held_out
    file, eval_file = _file(read), _file(held_out)
    if finished := _finished(arguments):
        _check_same(finished, file, eval_file, task, arguments)
        return str(finished)
    folder = Path(arguments.output_dir) / FOLDER_NAME
    with ExitStack() as stack:
        stack.enter_context(in_use(file, eval_file))
        if task.adapt_vocab_size is not None or from_scratch:
            name_or_path = _changed(
                read, task.adapt_vocab_size, name_or_path, arguments.seed if from_scratch else None
            )
            stack.enter_context(in_use(Path(name_or_path) / WRITTEN_NAME))
        pretrain(
            # The task's training starts from these weights, so they are not rounded in between.
            ModelArguments(model_name_or_path=name_or_path, save_dtype="float32"),
            ArchitectureArguments(),
            CorpusArguments(corpus=[str(file)], eval_corpus=str(eval_file), block_size=_block_size(task)),
            PretrainArguments(
                output_dir=str(folder),
                num_train_epochs=task.adapt_epochs,
                optim="muon",
                learning_rate=task.adapt_learning_rate,
                per_device_train_batch_size=8,
                eval_strategy="no",
                save_steps=100,
                save_total_limit=1,
                use_cpu=arguments.use_cpu,
                # The processes are those of the task's training.
                fsdp=arguments.fsdp,
                fsdp_config=copy.deepcopy(arguments.fsdp_config),
                fsdp_replicas=arguments.fsdp_replicas,
                ddp_backend=arguments.ddp_backend,
                bf16=arguments.bf16,
                seed=arguments.seed,
                # A checkpoint that is named is one of the task.
                resume_from_checkpoint="true" if resumes(arguments) else None,
            ),
        )
    return str(folder)


def _finished(arguments: FinetuneArguments) -> Path | None:
    """The finished adaptation of the run that is resumed; a checkpoint that is named may be in another run's folder."""
    if not resumes(arguments):
        return None
    folders = [
        run / FOLDER_NAME
        for run in (Path(arguments.output_dir), Path(str(arguments.resume_from_checkpoint)).parent)
        if (run / FOLDER_NAME / RESULTS_NAME).is_file()
    ]
    return folders[0] if folders else None


def _check_same(folder: Path, file: Path, eval_file: Path, task: TaskArguments, arguments: FinetuneArguments) -> None:
    """Raises `CheckpointError` if a finished adaptation has read other texts, or read them otherwise."""
    recipe = read_yaml(folder / RECIPE_NAME)
    defaults = {"block_size": CorpusArguments().block_size, "num_train_epochs": 3.0, "seed": 42}
    files = {"corpus": Path(recipe["corpus"][0]).name, "eval_corpus": Path(recipe["eval_corpus"]).name}
    before = {**defaults, **recipe, **files}
    now = {
        "corpus": ("the file of texts", file.name),
        "eval_corpus": ("the file of held-out texts", eval_file.name),
        "num_train_epochs": ("--adapt_epochs", task.adapt_epochs),
        "learning_rate": ("--adapt_learning_rate", task.adapt_learning_rate),
        "block_size": ("the length of a row", _block_size(task)),
        "seed": ("--seed", arguments.seed),
    }
    differing = [
        f"{title} was {before[name]} and is {value}" for name, (title, value) in now.items() if before[name] != value
    ]
    if differing:
        raise CheckpointError(
            f"{folder} was adapted to other data: {'; '.join(differing)}. Resume with the original data, or start a new run."
        )


def _block_size(task: TaskArguments) -> int:
    return max(task.max_length, 128)


def _file(texts: Sequence[str]) -> Path:
    """Writes texts into a file that is named after their content: a run's data record includes the file's name."""
    content = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts).encode()
    file = cache_root() / TEXTS / f"{hashlib.blake2b(content, digest_size=16).hexdigest()}.jsonl"
    if not _holds(file, content):
        with building(file.parent):
            # Another process may have written it while this one waited.
            if not _holds(file, content):
                with writing(file.parent) as temporary:
                    (temporary / file.name).write_bytes(content)
    return file


def _holds(file: Path, content: bytes) -> bool:
    try:
        return file.read_bytes() == content
    except OSError:
        return False


def _changed(texts: Sequence[str], vocab_size: int | None, name_or_path: str, seed: int | None) -> str:
    """Saves the model with a tokenizer trained on the texts, or with new weights from a seed; returns the folder."""
    model, tokenizer = load_model(name_or_path), load_tokenizer(name_or_path)
    key = json.dumps([_file(texts).name, vocab_size, seed, sample_of(model), tokenizer_fingerprint(tokenizer)])
    folder = cache_root() / MODELS / hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    if _is_whole(folder):
        return str(folder)
    with building(folder):
        if _is_whole(folder):
            return str(folder)
        if vocab_size is not None:
            new = train_tokenizer(texts, vocab_size)
            transfer_vocabulary(model, tokenizer, new)
            tokenizer = new
        if seed is not None:
            set_seed(seed)
            model = type(model)(model.config)
        with writing(folder) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
            record = {path.name: checksum(path) for path in temporary.iterdir()}
            (temporary / WRITTEN_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return str(folder)


def _is_whole(folder: Path) -> bool:
    """True if the files of a cached model are those that were written."""
    try:
        record = parse_json(read_file(folder / WRITTEN_NAME))
        return all(checksum(folder / name) == expected for name, expected in record.items())
    except (OSError, ValueError, AttributeError):
        return False
