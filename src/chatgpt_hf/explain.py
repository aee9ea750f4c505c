"""Writes a page that explains a text, or a chat model's answer."""

from collections.abc import Callable, Collection
from pathlib import Path

from transformers import PreTrainedModel

from .errors import ConfigError
from .inference.cpu.layers import PackedLinear
from .inference.loading import load_language_model
from .inference.session import ChatSession
from .interpretability.budget import estimate, sentence
from .interpretability.explanation import PARTS, Texts, check_parts, corpus_texts, explain
from .interpretability.page import check_page_file, write_page
from .interpretability.passage import passage_of_answer, passage_of_text
from .tokenization_chatgpt import check_text, load_tokenizer


def write_explanation(
    name_or_path: str,
    file: str | Path,
    *,
    text: str | None = None,
    prompt: str | None = None,
    corpus: str = "builtin:python-docs",
    without: Collection[str] = (),
    report: Callable[[str], None] = lambda sentence: None,
) -> Path:
    """Explains a text, or the answer to a prompt, on a page.

    Args:
        name_or_path: Folder or Hub id of a causal language model; for a prompt, of a chat model.
        file: The page; an existing file is replaced.
        text, prompt: Give one of the two.
        corpus: See `load_corpus`; a tuned lens learns from it, and the effects of parts are measured on it.
        without: Names in `interpretability.explanation.PARTS` to leave out; the corpus is not read if nothing needs it.
        report: Called with a sentence about how long this will take, and with the name of each step.

    Raises:
        ConfigError: If not exactly one of text and prompt is given, the model is quantized, or there is no part with a name in
            `without`.
        CheckpointError: If there is no model, or it is incomplete.
        TokenizerError: If there is a prompt but no chat template.
        DataError: If the text is empty, not UTF-8 or longer than the model's context, or the corpus is too short.
        OutputError: If the page cannot be written.
    """
    if (text is None) == (prompt is None):
        raise ConfigError("Give either --text or --prompt: a text, or a message whose answer is explained.")
    check_parts(without)
    check_page_file(file)
    check_text("--text", text or "")
    check_text("--prompt", prompt or "")
    model, tokenizer = _load(name_or_path), load_tokenizer(name_or_path)
    if prompt is not None:
        session = ChatSession(model, tokenizer, do_sample=False)
        session.reply(prompt)
        passage = passage_of_answer(model, tokenizer, session.ending.prompt_ids, session.ending.answer_ids)
    else:
        passage = passage_of_text(model, tokenizer, text or "")
    wanted = [part for part in PARTS if part not in without]
    texts = (
        corpus_texts(model, tokenizer, corpus) if {"tuned_lens", "ablation"} & set(wanted) else Texts(corpus, (), ())
    )
    durations = estimate(
        model,
        len(passage.ids),
        lens_tokens=sum(map(len, texts.lens_rows)),
        ablation_tokens=sum(map(len, texts.ablation_rows)),
        parts=wanted,
    )
    report(sentence(durations))
    name = Path(name_or_path).name
    explanation = explain(
        model, tokenizer, passage, name=name, texts=texts, without=without, report=report, progress=True
    )
    return write_page(explanation, tokenizer, file)


def explain_last_answer(session: ChatSession, file: str | Path) -> Path:
    """Explains the last answer of a conversation on a page, without the sections that need other texts.

    Raises:
        ConfigError: If there is no answer yet, the last answer was read from a file, moderation changed or ended it (the
            page would show the withheld text), the model is quantized, or the session was given a packed model.
        OutputError: If the page cannot be written.
    """
    ending = session.ending
    last = session.messages[-1] if session.messages else {"role": "system"}
    if last["role"] != "assistant" or not ending.answer_ids:
        raise ConfigError(
            "The model has not answered in this session, so there is nothing to explain: ask first, or /regenerate."
        )
    whole = str(session.tokenizer.decode(ending.answer_ids, skip_special_tokens=True)).strip()
    if session.moderation is not None and last["content"] != whole:
        raise ConfigError("Moderation changed the last answer, and a page about it would show the withheld text.")
    check_page_file(file)
    # A model loaded for inference gives no gradients, so the stored weights are loaded again.
    source = session.name_or_path
    if source is None:
        model = session.model
        _check_gradients(model, "The session's model")
    else:
        model = _load(source)
    passage = passage_of_answer(model, session.tokenizer, ending.prompt_ids, ending.answer_ids)
    name = Path(source or session.model.name_or_path).name or "the model"
    return write_page(explain(model, session.tokenizer, passage, name=name), session.tokenizer, file)


def _load(name_or_path: str) -> PreTrainedModel:
    model = load_language_model(name_or_path)
    _check_gradients(model, name_or_path)
    # Half precision is too coarse for gradients and integrals.
    return model.float()


def _check_gradients(model: PreTrainedModel, name: str) -> None:
    if any(isinstance(module, PackedLinear) for module in model.modules()):
        raise ConfigError(
            f"{name} is packed for inference and gives no gradients: create the session by ChatSession.from_pretrained, or "
            "with a model as from_pretrained loads it."
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise ConfigError(
            f"{name} is quantized, so its weights have no gradients: explain the model it was quantized from."
        )
