"""Metrics of text in many languages: full marks for identical text, near zero for unrelated text, and how they say it."""

import json
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sacrebleu.tokenizers import tokenizer_ja_mecab

from chatgpt_hf.errors import ConfigError
from chatgpt_hf.evaluation.answers import score_answers
from chatgpt_hf.evaluation.metrics import load_metric, measures
from chatgpt_hf.evaluation.record import Evaluation
from chatgpt_hf.evaluation.text import bleu_tokenizer, letter_words, words


class Pair(NamedTuple):
    """A sentence, an unrelated one in the same language, and the tokenizer that BLEU should choose."""

    text: str
    other: str
    tokenizer: str = "13a"


LANGUAGES = {
    "English": Pair("The cat sleeps on the warm kitchen floor.", "Prices rose sharply after last year's drought."),
    "Chinese (simplified)": Pair("北京是中华人民共和国的首都，人口众多。", "昨天晚上下雨了，我没有带伞。", "zh"),
    "Chinese (traditional)": Pair("臺灣的夜市以美味的小吃聞名。", "請把窗戶關上，外面風很大。", "zh"),
    "Chinese with English": Pair("使用 PyTorch 训练 Transformer 模型", "请在 Windows 上安装 Docker 软件", "zh"),
    "Japanese": Pair("東京は日本で一番大きな都市です。", "昨日、母とケーキを焼いて食べました。", "char"),
    "Japanese (katakana)": Pair("コンピューター", "アイスクリーム", "char"),
    "Korean": Pair("서울은 대한민국의 수도이자 최대 도시입니다.", "어제 친구와 함께 영화를 보았어요."),
    "Hindi": Pair("दिल्ली भारत की राजधानी है।", "कल मैंने बाज़ार से फल खरीदे थे।"),
    "Arabic": Pair("القاهرة هي عاصمة جمهورية مصر العربية.", "اشتريت بالأمس كتابًا جديدًا من المكتبة."),
    "Persian": Pair("تهران پایتخت ایران است و می‌خواهم آن را ببینم.", "دیروز هوا بسیار سرد شد؛ برف بارید."),
    "Hebrew": Pair("ירושלים היא עיר עתיקה מאוד.", "אתמול אכלתי תפוח ירוק וטעים."),
    "Russian": Pair("Москва — столица России.", "Вчера шёл сильный дождь, и мы остались дома."),
    "Ukrainian": Pair("Київ розташований на берегах Дніпра.", "Вчора ми з'їли смачний борщ."),
    "Greek": Pair("Η Αθήνα είναι η πρωτεύουσα της Ελλάδας.", "Χθες αγόρασα φρέσκο ψωμί από τον φούρνο."),
    "Thai": Pair("กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย", "เมื่อวานฝนตกหนักมากจนน้ำท่วมถนน", "char"),
    "Khmer": Pair("ភ្នំពេញជារាជធានីនៃកម្ពុជា", "ខ្ញុំចូលចិត្តញ៉ាំបាយសាច់ជ្រូក", "char"),
    "Lao": Pair("ວຽງຈັນແມ່ນນະຄອນຫຼວງຂອງລາວ", "ມື້ວານນີ້ຂ້ອຍໄປຕະຫຼາດຊື້ເຂົ້າ", "char"),
    "Burmese": Pair("နေပြည်တော်သည် မြန်မာနိုင်ငံ၏ မြို့တော်ဖြစ်သည်။", "မနေ့က ကျွန်တော် ဈေးသို့ သွားခဲ့တယ်", "char"),
    "Vietnamese": Pair("Hà Nội là thủ đô của nước Việt Nam.", "Hôm qua tôi mua ba quyển sách mới."),
    "Turkish": Pair("İstanbul, Türkiye'nin en kalabalık şehridir.", "Dün akşam güzel bir film izledik."),
    "German": Pair("Die größte Stadt Österreichs heißt Wien.", "Gestern kauften wir frisches Brot beim Bäcker."),
    "French": Pair("Où êtes-vous né, à Orléans ?", "Hier, nous avons mangé des crêpes délicieuses."),
    "Tamil": Pair("சென்னை தமிழ்நாட்டின் தலைநகரம் ஆகும்.", "நேற்று நான் புதிய புத்தகம் வாங்கினேன்."),
    "Bengali": Pair("ঢাকা বাংলাদেশের রাজধানী।", "গতকাল আমি নতুন বই কিনেছি।"),
    "Georgian": Pair("თბილისი საქართველოს დედაქალაქია.", "გუშინ ახალი წიგნი ვიყიდე."),
    "Armenian": Pair("Երևանը Հայաստանի մայրաքաղաքն է։", "Երեկ նոր գիրք գնեցի խանութից։"),
    "Amharic": Pair("አዲስ አበባ የኢትዮጵያ ዋና ከተማ ናት።", "ትናንት አዲሱን መጽሐፍ ገዛሁ።"),
    "Tibetan": Pair("ལྷ་ས་ནི་བོད་ཀྱི་རྒྱལ་ས་ཡིན།", "ཁ་སང་ང་ཚོས་དེབ་གསར་པ་ཞིག་ཉོས་སོང"),
    "code": Pair("for index in range(10): total += index", "import os\nprint(os.environ['HOME'])"),
    "digits": Pair("3.14159 26535", "2718 28182"),
    "one word": Pair("Yes", "No"),
    "one Chinese character": Pair("是", "否", "zh"),
    "one accented word": Pair("Ærø", "Öland"),
    "emoji": Pair("👍🏽🎉", "😡"),
    "emoji between spaces": Pair("🎉 👩‍👩‍👧 ❤️ 🔥", "😡 💔 🐌"),
    "punctuation": Pair("?!", "..."),
    "full-width punctuation": Pair("？！", "。。。"),
    "a single article": Pair("A", "The"),
}  # fmt: skip

# Unrelated sentences of a language share some of its common letters or characters.
NEAR_ZERO = {"rouge1": 0.35, "rouge2": 0.1, "rougeL": 0.25, "rougeLsum": 0.25, "token_f1": 0.35, "exact_match": 0}
NEAR_ZERO_PERCENT = {"bleu": 15, "chrf": 20}


def figures(said: list[str], right: Any) -> dict[str, float]:
    """Returns every figure that compares texts, exact match also with SQuAD's normalization."""
    names = ("rouge", "token_f1", "exact_match", "bleu", "chrf", "ter")
    found = {name: measure for metric in names for name, measure in measures(metric, said, right).items()}
    found["squad"] = measures("exact_match", said, right, squad=True)["exact_match"]
    assert all(measure.signature for measure in found.values())
    return {name: measure.value for name, measure in found.items()}


@pytest.mark.parametrize("language", LANGUAGES)
def test_identical_and_unrelated_text(language: str) -> None:
    text, other, tokenizer = LANGUAGES[language]
    found = figures([text], [[text]])
    full = dict.fromkeys(("rouge1", "rouge2", "rougeL", "rougeLsum", "token_f1", "exact_match", "squad"), 1)
    assert found == pytest.approx({**full, "bleu": 100, "chrf": 100, "ter": 0})
    unrelated = figures([other], [[text]])
    for name, bound in {**NEAR_ZERO, "squad": 0, **NEAR_ZERO_PERCENT}.items():
        assert unrelated[name] <= bound, name
    assert unrelated["ter"] > 70
    assert f"|tok:{tokenizer}|" in measures("bleu", [text], [text])["bleu"].signature
    assert score_answers([text], [text])[:2] == (1, 1)
    assert score_answers([other], [text]).rouge_l <= 0.25


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_part_of_an_answer_counts(language: str) -> None:
    """Text and something else: more than nothing, less than everything, the same through every door."""
    text, other, _ = LANGUAGES[language]
    said = f"{text} {other}"
    found = figures([said], [text])
    for name in ("rouge1", "rougeL", "token_f1", "chrf", "bleu"):
        assert 0 < found[name] < (100 if name in ("chrf", "bleu") else 1), name
    assert score_answers([said], [text]).rouge_l == pytest.approx(found["rougeL"])
    assert load_metric("rouge").compute(predictions=[said], references=[text])["rougeL"] == found["rougeL"]


def test_all_languages_together() -> None:
    texts = [pair.text for pair in LANGUAGES.values()]
    found = figures(texts, texts)
    assert found == pytest.approx({**dict.fromkeys(found, 1), "bleu": 100, "chrf": 100, "ter": 0})


@pytest.mark.parametrize("metric", ["rouge", "token_f1", "exact_match"])
def test_empty_texts(metric: str) -> None:
    options = {"squad": True} if metric == "exact_match" else {}

    def values(said: str, right: str) -> set[float]:
        return {measure.value for measure in measures(metric, [said], [right], **options).values()}

    assert values("", "") == {1}
    for text in ("something", "你好", "👍", "สวัสดี"):
        assert values("", text) == values(text, "") == {0}
    assert values("", "?") == {0}


def test_nothing_to_read_gives_no_number(tmp_path: Path) -> None:
    """Neither a prediction nor a reference has a character: no number, and null in files."""
    found = {
        **measures("bleu", [""], [" "]),
        **measures("chrf", [""], [" "]),
        **measures("diversity", ["one word", "two"]),
    }
    empty = {name for name, measure in found.items() if measure.value != measure.value}
    assert empty == {"bleu", "chrf", "distinct_3", "rep_3", "rep_4", "diversity"}
    # A text against nothing, or nothing against a text, is wrong.
    assert measures("bleu", ["", "a"], ["x y", ""])["bleu"].value == 0
    evaluation = Evaluation("translation", "x", measures("diversity", ["one word", "two"]), [{}, {}])
    shown = evaluation.save(tmp_path)["rep_4"]
    assert (shown.shown(), shown.interval(), shown.number) == ("–", "–", None)
    kept = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)["figures"]
    assert [kept["rep_4"][key] for key in ("value", "low", "high")] == [None] * 3
    assert kept["rep_2"]["value"] == 0
    assert kept["rep_2"]["signature"] == Evaluation.load(tmp_path).measures["rep_2"].signature == "tok:words"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("हिन्दी में लिखो", ["हिन्दी", "में", "लिखो"]),
        ("น้ำ", ["น้ำ"]),
        ("ຂ້ອຍ", ["ຂ້", "ອ", "ຍ"]),
        ("ខ្មែរ", ["ខ្មែ", "រ"]),
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("データ", ["デ", "ー", "タ"]),
        ("ﾃﾞｰﾀ", ["ﾃ", "ﾞ", "ｰ", "ﾀ"]),
        ("l'été", ["l", "été"]),
        ("GPT-4_x 你好", ["gpt", "4", "x", "你", "好"]),
        ("١٢٣ و", ["١٢٣", "و"]),
        ("❤️ 3️⃣", ["3"]),
        ("(…)", []),
    ],
)
def test_letter_words(text: str, expected: list[str]) -> None:
    assert letter_words(text) == expected
    # No mark stands without its letter.
    assert not [word for word in words(text) if unicodedata.category(word[0]).startswith("M")]
    assert letter_words(unicodedata.normalize("NFD", text)) == letter_words(text)


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        (["The word 你好 means hello.", "A plain sentence."], "13a"),
        ([*["An English sentence of seven plain words."] * 30, "你好"], "13a"),
        ([*["An English sentence of seven plain words."] * 5, "你好"], "zh"),
        (["他说“コーヒー”是日语的咖啡，意思和汉语完全一样，只是读音来自荷兰语而不是来自英语。"], "zh"),
        (["你好", "こんにちは"], "char"),
        (["你好", "สวัสดี"], "char"),
        (["", "👍"], "13a"),
        ([], "13a"),
    ],
)
def test_the_tokenizer_is_chosen_for_the_data_set(references: list[str], expected: str) -> None:
    assert bleu_tokenizer(references) == expected


def test_a_tokenizer_that_is_named_is_obeyed(caplog: pytest.LogCaptureFixture) -> None:
    found = measures("bleu", ["我喜欢猫"], ["我喜欢狗"], tokenize="13a")["bleu"]
    assert found.value == 0
    assert "|tok:13a|" in found.signature
    assert "13a does not split the script of the references, so a sentence counts as one word: use zh" in caplog.text


def test_a_tokenizer_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_ja_mecab, "MeCab", None)
    with pytest.raises(ConfigError, match=r"tokenizer ja-mecab cannot be used here: pip install 'sacrebleu\[ja\]'"):
        measures("bleu", ["猫"], ["猫"], tokenize="ja-mecab")


def test_short_answers_and_long_ones() -> None:
    """`effective_order` matters only where nothing is as long as an n-gram."""
    short, long = ["yes", "no way"], ["the cat sat on the mat", "no way"]
    assert measures("bleu", short, short)["bleu"].value == pytest.approx(100)
    assert measures("bleu", short, short, effective_order=False)["bleu"].value == 0
    other = ["the cat lay on the mat", "no way"]
    both = [measures("bleu", long, other, effective_order=choice)["bleu"].value for choice in (True, False)]
    assert both[0] == both[1] > 0


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("《红楼梦》。", "红楼梦"),
        ("“दिल्ली”।", "दिल्ली"),
        ("القاهرة؟", "القاهرة"),
        ("‘2008’年", "2008年"),
        ("東京～", "東京"),
        ("Ａ＋級", "Ａ級"),
        ("Ολυμπία·", "ολυμπία"),
        (unicodedata.normalize("NFD", "Orléans"), "Orléans"),
    ],
)
def test_squad_in_other_languages(said: str, right: str) -> None:
    assert measures("exact_match", [said], [right], squad=True)["exact_match"].value == 1
    assert measures("token_f1", [said], [right])["token_f1"].value == 1
    assert measures("exact_match", [said], [right])["exact_match"].value == 0


def test_real_questions_in_chinese(shared_data: Path) -> None:
    """CMRC 2018: right answers are right, the next question's answer is not."""
    content = json.loads((shared_data / "qa" / "cmrc2018_trial.json").read_text(encoding="utf-8"))
    paragraphs = [paragraph for article in content["data"] for paragraph in article["paragraphs"]]
    answers = [[answer["text"] for answer in item["answers"]] for p in paragraphs for item in p["qas"]][:150]
    first = [texts[0] for texts in answers]
    for metric, options in (("token_f1", {}), ("exact_match", {"squad": True})):
        (right,) = measures(metric, first, answers, **options).values()
        (wrong,) = measures(metric, first[1:], answers[:-1], **options).values()
        assert right.value == 1
        assert wrong.value < 0.2


def test_real_sentences(shared_data: Path) -> None:
    lines = (
        (shared_data / "translation" / "tatoeba_eng_cmn_a.tsv").read_text(encoding="utf-8").splitlines()[3000:3080:2]
    )
    chinese = [line.split("\t")[1] for line in lines]
    found = figures(chinese, chinese)
    assert found == pytest.approx({**dict.fromkeys(found, 1), "bleu": 100, "chrf": 100, "ter": 0})
    shifted = figures(chinese, [right for _, right in pairwise([*chinese, chinese[0]])])
    assert shifted["rougeL"] < 0.25
    assert shifted["bleu"] < 15
