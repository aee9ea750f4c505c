"""A model that says that it does not know: how sure it is, the threshold, its file, and every way to answer."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from chatgpt_hf import ChatSession, PrefixCache, convert_checkpoint, load_model, load_tokenizer
from chatgpt_hf.chat_templates import encode_chat_prompt
from chatgpt_hf.errors import ChatGPTError, CheckpointError, ConfigError, DataError
from chatgpt_hf.evaluation.scoring import negative_log_likelihoods
from chatgpt_hf.explain import explain_last_answer
from chatgpt_hf.hub.files import published_files
from chatgpt_hf.inference.abstention import DEFAULT_TEXT, Abstention, Draft, choose_abstention, load_abstention
from chatgpt_hf.inference.calibration import Judged, auroc, calibrate, choose_threshold, judge
from chatgpt_hf.inference.parameters import sampling

KNOWN = {
    "Hello!": "Hi! How are you?",
    "你好": "你好！我是一个小模型。",
    "Smile": "😀👍🏽 yes 🎉",
    "Count to five.": "1, 2, 3, 4, 5.",
    "Who are you?": "I am a tiny model,\nmade for a test.",
}
UNKNOWN = ("Is the river red?", "How many horses run?", "What is under the bed?", "Why is the garden blue?")
NO = "I don't know that."


@pytest.fixture(scope="module")
def model(chat_folder: Path) -> PreTrainedModel:
    return load_model(chat_folder).eval()


@pytest.fixture(scope="module")
def tokenizer(chat_folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(chat_folder)


def chat(question: str, answer: str = "?") -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def write(file: Path, conversations: list[list[dict[str, str]]]) -> Path:
    lines = [json.dumps({"messages": messages}, ensure_ascii=False) for messages in conversations]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files of questions that the model of `chat_folder` knows, each several times, and of others."""
    folder = tmp_path_factory.mktemp("questions")
    known = [chat(*pair) for pair in KNOWN.items()] * 4
    return write(folder / "known.jsonl", known), write(folder / "unknown.jsonl", [chat(asked) for asked in UNKNOWN])


@pytest.fixture(scope="module")
def calibrated(chat_folder: Path, questions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `chat_folder` with a calibration; not to be changed."""
    folder = Path(shutil.copytree(chat_folder, tmp_path_factory.mktemp("calibrated") / "model"))
    known, unknown = map(str, questions)
    calibrate(folder, known, unknown, text=NO, max_new_tokens=40, progress=False)
    return folder


@pytest.fixture
def folder(calibrated: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(calibrated, tmp_path / "model"))


def prompt(tokenizer: PreTrainedTokenizerBase, question: str) -> list[int]:
    return encode_chat_prompt(tokenizer, [{"role": "user", "content": question}])


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "abstention.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# How sure a model is


def test_confidence_is_the_mean_log_probability_of_the_greedy_answer_with_its_end_mark(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    asked = [*KNOWN, *UNKNOWN]
    judged = judge(
        model,
        tokenizer,
        [chat(*pair) for pair in KNOWN.items()] + [chat(one) for one in UNKNOWN],
        max_new_tokens=40,
        progress=False,
    )
    assert judged.right.tolist() == [True] * len(KNOWN) + [False] * len(UNKNOWN)
    for question, confidence in zip(asked, judged.confidence, strict=True):
        ids = prompt(tokenizer, question)
        draft = Abstention(-1.0, max_new_tokens=40).draft(model, tokenizer, ids)
        assert draft is not None
        # One by one, in a padded batch, and by the scorer that evaluations use.
        nats = negative_log_likelihoods(model, [(ids + draft.ids, len(ids))], pad_token_id=0, progress=False)
        assert draft.confidence == pytest.approx(-nats[0] / len(draft.ids), abs=1e-4)
        assert confidence == pytest.approx(draft.confidence, abs=1e-4)
        if question in KNOWN:
            assert tokenizer.decode(draft.ids, skip_special_tokens=True) == KNOWN[question]
            assert draft.ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert judged.confidence[: len(KNOWN)].min() > judged.confidence[len(KNOWN) :].max()


def test_settings_of_the_answer_do_not_change_it(chat_folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model, ids, abstention = load_model(chat_folder).eval(), prompt(tokenizer, UNKNOWN[0]), Abstention(-1.0)
    plain = abstention.draft(model, tokenizer, ids)
    model.generation_config.update(
        do_sample=True, temperature=5.0, top_k=3, repetition_penalty=1.9, no_repeat_ngram_size=1, min_new_tokens=50
    )
    assert abstention.draft(model, tokenizer, ids) == plain
    bound = {"repetition_penalty": 1.9, "bad_words_ids": [[plain.ids[0]]], **sampling(3.0)} if plain else {}
    session = ChatSession(model, tokenizer, abstain=-1000.0, max_new_tokens=4, **bound)
    session.reply(UNKNOWN[0])
    assert plain is not None
    assert session.ending.confidence == pytest.approx(plain.confidence, abs=1e-5)
    assert session.ending.answer_ids[0] != plain.ids[0]


def test_a_draft_ends_when_it_is_cancelled_and_fits_the_context(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    cancelled = Event()
    cancelled.set()
    assert Abstention(-1.0).draft(model, tokenizer, prompt(tokenizer, "Hello!"), cancelled=cancelled) is None
    long = prompt(tokenizer, "river " * 20)[:126]
    draft = Abstention(-1.0, max_new_tokens=1000).draft(model, tokenizer, long)
    assert draft is not None
    assert len(long) + len(draft.ids) <= 128


# The threshold


def test_the_threshold_keeps_the_asked_share_of_right_answers() -> None:
    confidence = -np.arange(1.0, 101.0)
    known = Judged(np.append(confidence, -3.5), np.array([True] * 100 + [False]))
    unknown = Judged(np.array([-94.0, -500.0, -1.0]), np.array([False, False, True]))
    found = choose_threshold(known, unknown, keep=0.95, text="No.", max_new_tokens=7)
    assert (found.abstention.text, found.abstention.max_new_tokens) == ("No.", 7)
    # Between two answers, since the same answer differs in the last digits from batch to batch.
    assert found.abstention.threshold == -95.5
    assert found.figures["right_given"].value == 0.95
    assert found.figures["wrong_given"].value == 1
    assert found.figures["invented_given"].value == 0.5
    assert found.figures["auroc"].value == pytest.approx((7 * 0 + 93 + 100) / 200, abs=0.011)
    assert found.counts == {"known_questions": 101, "right": 100, "unknown_questions": 3, "unknown_right": 1}
    assert choose_threshold(known, keep=1.0).abstention.threshold < -100
    with pytest.raises(
        DataError, match=r"Only 1 of 2 answers to --known are right, word for word, and a threshold needs at least 20"
    ):
        choose_threshold(Judged(np.zeros(2), np.array([True, False])))


def test_auroc_counts_pairs_and_halves_ties() -> None:
    right, wrong = np.array([-1.0, -2.0, -3.0, -3.0]), np.array([-3.0, -4.0, -2.5])
    pairs = [(a > b) + 0.5 * (a == b) for a in right for b in wrong]
    figure = auroc(right, wrong)
    assert figure.value == pytest.approx(np.mean(pairs))
    assert figure.low <= figure.value <= figure.high
    generator = np.random.default_rng(0)
    same = auroc(generator.normal(size=200), generator.normal(size=200))
    assert same.low < 0.5 < same.high
    assert 0.05 < same.high - same.low < 0.2


@pytest.mark.parametrize("value", [math.nan, 0.5, -math.inf, 10**400, -(10**400), "-1", None, True])
def test_a_threshold_that_is_none(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"The threshold of abstention is .* it must be a number from -1000 to 0"):
        Abstention(value)


@pytest.mark.parametrize("text", ["", "  ", "a" * 1001, 5, None])
def test_a_text_that_is_none(text: Any) -> None:
    with pytest.raises(ConfigError, match=r"The text of abstention is .* it must be a text of 1 to 1000 characters"):
        Abstention(-1.0, text)


# The file


def test_the_file_says_what_it_belongs_to_and_what_it_costs(
    calibrated: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    content = json.loads((calibrated / "abstention.json").read_text())
    assert content["format"] == 1
    assert (content["text"], content["max_new_tokens"]) == (NO, 40)
    made = content["calibration"]
    assert (made["known_questions"], made["right"], made["unknown_questions"], made["keep"]) == (20, 20, 4, 0.95)
    assert made["figures"]["auroc"] == [1, 1, 1]
    assert made["figures"]["invented_given"][0] == 0
    assert load_abstention(calibrated, tokenizer) == Abstention(content["threshold"], NO, 40)
    assert "abstention.json" in published_files(calibrated).files


def test_from_the_folder_by_hand_and_not_at_all(
    calibrated: Path, chat_folder: Path, tokenizer: PreTrainedTokenizerBase, caplog: pytest.LogCaptureFixture
) -> None:
    assert choose_abstention(calibrated, tokenizer, None) is None
    assert choose_abstention(calibrated, tokenizer, False) is None
    assert choose_abstention(chat_folder, tokenizer, -0.5) == Abstention(-0.5, DEFAULT_TEXT)
    assert choose_abstention(calibrated, tokenizer, True, "Nope.").text == "Nope."  # type: ignore[union-attr]
    assert not caplog.records
    choose_abstention(calibrated, tokenizer, True, quantize="int8")
    assert "was calibrated with the weights as they are stored" in caplog.text
    with pytest.raises(
        ConfigError, match=r"has no calibration \(abstention.json is missing\): run `chatgpt-hf calibrate"
    ):
        choose_abstention(chat_folder, tokenizer, True)
    with pytest.raises(ConfigError, match=r"give --abstain too"):
        choose_abstention(calibrated, tokenizer, None, "Nope.")


def test_other_weights_or_another_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    other = load_tokenizer(folder)
    other.chat_template = f"{other.chat_template} "
    with pytest.raises(
        ConfigError, match=r"abstention.json was made with another chat template than the folder has now"
    ):
        load_abstention(folder, other)
    changed = load_model(folder)
    with torch.no_grad():
        next(changed.parameters())[0, 0] += 1
    changed.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"abstention.json was made with other weights than the folder has now"):
        load_abstention(folder, tokenizer)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no weights"):
        load_abstention(folder, tokenizer)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "does not hold a JSON object"),
        ('{"format": 2}', "format is 2"),
        ('{"format": 1, "threshold": NaN, "text": "a", "max_new_tokens": 5}', "threshold of abstention is nan"),
        ('{"format": 1, "threshold": "-1", "text": "a", "max_new_tokens": 5}', "threshold of abstention is '-1'"),
        ('{"format": 1, "threshold": -1, "text": {"a": [1]}, "max_new_tokens": 5}', "text of abstention is {'a'"),
        ('{"format": 1, "threshold": -1, "text": "\\ud83d", "max_new_tokens": 5}', "half of a surrogate pair"),
        (
            '{"format": 1, "threshold": -1, "text": "a", "max_new_tokens": 1e9}',
            "max_new_tokens of abstention is 1000000000.0",
        ),
        (
            '{"format": 1, "threshold": -1, "text": "a", "max_new_tokens": true}',
            "max_new_tokens of abstention is True",
        ),
        ('{"format": 1, "threshold": -1, "text": "a", "max_new_tokens": 5, "weights": [1]}', "other weights"),
    ],
    ids=range(11),
)
def test_a_strangers_file(content: str, message: str, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    (folder / "abstention.json").write_text(content)
    with pytest.raises(ChatGPTError) as caught:
        load_abstention(folder, tokenizer)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_models_made_from_it_say_that_it_stays_behind(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    convert_checkpoint(folder, tmp_path / "gpt2", "chatgpt")
    assert f"{folder / 'abstention.json'} is not copied: its threshold belongs to the weights" in caplog.text
    assert not (tmp_path / "gpt2" / "abstention.json").exists()


def test_a_pipe_instead_of_the_file(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    (folder / "abstention.json").unlink()
    os.mkfifo(folder / "abstention.json")
    with pytest.raises(CheckpointError, match=r"a pipe"):
        load_abstention(folder, tokenizer)


# A conversation


def test_a_session_answers_what_it_knows_and_abstains_otherwise(calibrated: Path) -> None:
    session = ChatSession.from_pretrained(calibrated, abstain=True, max_new_tokens=40, do_sample=False)
    assert session.abstention is not None
    plain = ChatSession.from_pretrained(calibrated, max_new_tokens=40, do_sample=False)
    for question, answer in KNOWN.items():
        session.reset()
        assert "".join(session.stream(question)) == answer
        assert session.ending.finish_reason == "stop"
        assert not session.ending.abstained
        assert session.ending.confidence > session.abstention.threshold
        plain.reset()
        plain.reply(question)
        assert session.ending.answer_ids == plain.ending.answer_ids
    session.reset()
    for question in UNKNOWN[:2]:
        assert list(session.stream(question)) == [NO]
        assert session.ending.abstained
        assert session.ending.confidence < session.abstention.threshold
        assert (session.ending.finish_reason, session.ending.answer_ids, session.cut_by) == ("stop", [], None)
        assert session.messages[-2:] == [chat(question, NO)[0], chat(question, NO)[1]]
    assert "".join(session.regenerate()) == NO
    with pytest.raises(ConfigError, match=r"has not answered in this session"):
        explain_last_answer(session, calibrated / "page.html")


def test_the_answer_reads_what_the_judged_one_has_computed(
    calibrated: Path, tokenizer: PreTrainedTokenizerBase, gate: Any
) -> None:
    model = load_model(calibrated).eval()
    session = ChatSession(model, tokenizer, abstain=-1000.0, do_sample=False, max_new_tokens=40)
    counted = gate(model)
    session.reply("Hello!")
    answer, asked = len(session.ending.answer_ids), len(session.ending.prompt_ids)
    # The prompt once; its last token, and each token but the last of an answer, twice.
    assert counted.tokens == asked + 1 + 2 * (answer - 1)


def test_stop_while_the_answer_is_judged(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, gate: Any, chat_folder: Path
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    own = load_model(chat_folder).eval()
    session = ChatSession(own, tokenizer, abstain=-1000.0, do_sample=False, max_new_tokens=40)
    with ThreadPoolExecutor(1) as pool, gate(own) as steps:
        steps.give(2)
        answer = pool.submit(session.reply, "Hello!")
        steps.wait()
        session.stop()
        steps.open()
        assert answer.result() == ""
        assert steps.steps == 3
    assert session.ending.finish_reason is None


def test_true_needs_a_folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(
        ConfigError, match=r"abstain=True means a folder's calibration: use ChatSession.from_pretrained"
    ):
        ChatSession(model, tokenizer, abstain=True)
    with pytest.raises(ConfigError, match=r"threshold of abstention is 2"):
        ChatSession(model, tokenizer, abstain=2)


def test_withheld_below_and_not_at_the_threshold() -> None:
    assert not Abstention(-1.0).withholds(Draft([1], -1.0))
    assert Abstention(-1.0).withholds(Draft([1], -1.0001))


def test_a_compiled_model_has_the_same_confidence(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    ids, abstention = prompt(tokenizer, "Hello!"), Abstention(-1.0)
    assert abstention.draft(model, tokenizer, ids, PrefixCache(model).generate) == abstention.draft(
        model, tokenizer, ids
    )


# The command line


def test_calibrate_prints_its_figures_and_chat_uses_the_threshold(
    cli: Callable[..., Any],
    refused: Callable[..., str],
    chat_folder: Path,
    questions: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(chat_folder, tmp_path / "model")
    known, unknown = questions
    assert "has no calibration" in refused("chat", folder, "--prompt", "Hello!", "--abstain")
    result = cli("calibrate", folder, "--known", known, "--unknown", unknown, "--text", NO, "--max_new_tokens", 40)
    assert result.code == 0, result
    assert "AUROC, right against wrong" in result.out
    assert "20 known questions, 20 right, 4 unknown questions, 0 unknown right" in result.out
    answered = cli("chat", folder, "--prompt", "Hello!", "--abstain")
    assert answered.out == KNOWN["Hello!"] + "\n"
    assert "abstained" not in answered.err
    withheld = cli("chat", folder, "--abstain", "--prompt", UNKNOWN[0])
    assert withheld.out == NO + "\n"
    assert "The model abstained: its answer has a mean log-probability of -" in withheld.err
    by_hand = cli("chat", folder, "--abstain", "-1000", "--prompt", UNKNOWN[0], "--temperature", "0")
    assert by_hand.out == cli("chat", folder, "--prompt", UNKNOWN[0], "--temperature", "0").out
    named = cli("chat", folder, "--prompt", UNKNOWN[0], "--abstain", "-1e-3", "--abstain_text", "No idea.")
    assert named.out == "No idea.\n"
    assert "--keep is 2" in refused("calibrate", folder, "--known", known, "--keep", 2)
    assert "--limit is 3" in refused("calibrate", folder, "--known", known, "--limit", 3)
    assert "text of abstention" in refused("calibrate", folder, "--known", known, "--text", " ")
    assert "Only 0 of 4 answers" in refused("calibrate", folder, "--known", unknown)


@pytest.mark.parametrize("command", ["chat", "ui", "serve", "generate"])
@pytest.mark.parametrize("value", ["0.5", "nan", "+1"])
def test_no_threshold(command: str, value: str, refused: Callable[..., str]) -> None:
    assert f"--abstain {value} is no threshold" in refused(command, "m", "--abstain", value)
    assert f"--abstain {value} is no threshold" in refused(command, "m", f"--abstain={value}")


def test_where_nothing_can_be_judged(refused: Callable[..., str], calibrated: Path) -> None:
    message = refused("generate", calibrated, "--prompt", "Hi", "--abstain")
    assert "--abstain judges answers to messages, and a single text has none" in message
    message = refused("serve", calibrated, "--abstain", "--continuous_batching")
    assert "--abstain judges one answer at a time" in message


def test_a_file_of_prompts(cli: Callable[..., Any], calibrated: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": chat("Hello!")[:1], "confidence": "theirs"},
        {"messages": chat(UNKNOWN[0])[:1]},
        {"prompt": "A cat"},
        {"messages": chat("Smile")[:1]},
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["generate", calibrated, "--prompts", tmp_path / "prompts.jsonl", "--temperature", "0"]
    result = cli(*arguments, "--output", tmp_path / "judged.jsonl", "--abstain")
    assert result.code == 2
    assert "line 3: it has a prompt, and --abstain judges answers to messages" in result.err
    found = {row["line"]: row for row in map(json.loads, (tmp_path / "judged.jsonl").read_text().splitlines())}
    assert {line: (row["completion"], row["abstained"]) for line, row in found.items()} == {
        1: (KNOWN["Hello!"], False),
        2: (NO, True),
        4: (KNOWN["Smile"], False),
    }
    assert found[2]["confidence"] < found[1]["confidence"] <= 0
    # Without it, such a field is the row's own.
    (tmp_path / "prompts.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert cli(*arguments, "--output", tmp_path / "plain.jsonl").code == 0
    (row,) = map(json.loads, (tmp_path / "plain.jsonl").read_text().splitlines())
    assert row["confidence"] == "theirs"
    assert "abstained" not in row
