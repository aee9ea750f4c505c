"""Ordinary English, Chinese, German and code pass a list of words that none of it contains."""

import contextlib
import gettext
import json
import re
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import pytest

from chatgpt_hf.errors import ContentFiltered
from chatgpt_hf.moderation import WordList

ENGLISH = ["ass", "shit*", "*shit", "rape*", "crap*", "tit", "tits", "anus", "arse", "piss*", "damn", "hell", "moron"]
ENGLISH += ["idiot*", "bum", "hoe", "homo", "spit", "twit", "god damn", "son of a bitch", "bad egg", "shut up"]
GERMAN = ["arsch*", "mist", "depp*", "hure", "scheiße", "dumme kuh", "sau"]
CHINESE = ["混蛋", "傻瓜", "笨蛋", "去死", "妈的", "白痴", "废物", "坏东西"]
LISTED = [*ENGLISH, *GERMAN, *CHINESE]
WORDS = WordList(LISTED)

NAMES_AND_FORMATS = """
r.append(x)
rows.append(row), r.append
lines_hit = 0
cache.lines_hit, process(hit), lines[hit], is->hit, page-hits
printf("%4$s %2$s", %1$s)
"as %s" % name
f"{name} as {value}"
import statistics as st, sys as s
with open(name) as s:
for s in names: pass
"%4d: %s" % i_n
Feld »%s« in Spalte »%s«
t[1], t
x = t1 == t
a[s:t]
c.lass, class_name, assert_, as_string, a_s
self.as_str(), p.assert_through
s.hitbox, s.hits
d.amend, da.mn2
0x1a55, 0xA55E7, #ba55
&amp; &lt;s&gt; &pi;ss
\\usepackage{as} \\s
sum(i for i in t if t)
twi.tter, t.within
rap.encode(), r.aped
ti.total, t.iter
not bad. Egg on his face.
They shut it. Up there, shut, up
It was bad — egg sandwiches again.
""".strip().splitlines()
SENTENCES = """
Das Schiff hält, bis es am Steg liegt; der Mast ist morsch.
Die Mistel wächst auf dem Apfelbaum. Misten Sie den Stall aus?
Der Depotauszug ist da, die Sauce auch. Sauber!
Er war schon da, als sie ihn rief: »Komm her, wir essen!«
Über 10 000 Gäste kamen z. B. aus Übersee.
这个东西坏了，西边的也是。他很笨，蛋糕却做得好。
他去，死者的家属也去。混合，蛋白质。
爸爸的书在桌子上。废的物品，白，痴情。
The hills are alive; she'll sing, he'll hum, we'll listen.
Class assignments pass the assembly as such; as sung, as said.
""".strip().splitlines()


def literal(word: str) -> str:
    """A regular expression for a word as it is in the list; its last letter may be repeated, as in Freshitt."""
    before = "" if word.startswith("*") or not word.isascii() else r"(?<![^\W_])"
    after = "" if word.endswith("*") or not word.isascii() else re.escape(word[-1]) + r"*(?![^\W_])"
    return before + re.escape(word.strip("*")).replace(r"\ ", r"\s+") + after


WRITTEN = re.compile("|".join(map(literal, LISTED)), re.IGNORECASE)


def found(lines: Iterable[str]) -> list[str]:
    """Returns the lines that are blocked, although no listed word is written in them."""
    blocked = []
    for line in lines:
        if WRITTEN.search(line):
            continue
        try:
            WORDS.check(line)
        except ContentFiltered:
            blocked.append(line)
    return blocked


def every(texts: Iterable[str], number: int) -> list[str]:
    """Returns lines that are evenly spread over some texts."""
    lines = [line for text in texts for line in text.splitlines() if len(line.strip()) > 3]
    assert len(lines) >= number
    return lines[:: len(lines) // number][:number]


def standard_library() -> list[str]:
    folder = Path(sysconfig.get_path("stdlib"))
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))]


def german() -> list[str]:
    folder = Path("/usr/share/locale/de/LC_MESSAGES")
    texts = []
    for path in sorted(folder.glob("*.mo")):
        # Some catalogs are not in UTF-8.
        with path.open("rb") as file, contextlib.suppress(UnicodeDecodeError):
            texts += [text for text in gettext.GNUTranslations(file)._catalog.values() if isinstance(text, str)]
    return texts


@pytest.mark.parametrize("line", [*NAMES_AND_FORMATS, *SENTENCES])
def test_no_name_and_no_format_is_blocked(line: str) -> None:
    words = WordList([*LISTED, "sin"])
    words.check(line)
    filter_ = words.filter()
    assert "".join(map(filter_.feed, line)) + filter_.finish() == line


def test_code_passes() -> None:
    blocked = found(every(standard_library(), 8000))
    assert len(blocked) <= 2, blocked


def test_sixteen_thousand_lines_pass(shared_data: Path) -> None:
    corpus = shared_data / "corpus"
    english = [path.read_text(encoding="utf-8") for path in sorted((corpus / "gutenberg_en").glob("*.txt"))]
    english.append((corpus / "wikitext2_valid.txt").read_text(encoding="utf-8"))
    chinese = [path.read_text(encoding="utf-8") for path in sorted((corpus / "zh").glob("*.txt"))]
    chinese.append((shared_data / "classification" / "thucnews_dev.txt").read_text(encoding="utf-8"))
    poems = json.loads((corpus / "zh_poems" / "tang300.json").read_text(encoding="utf-8"))
    chinese += ["\n".join(poem["paragraphs"]) for poem in poems]
    messages = german()
    lines = every(english, 5000) + every(chinese, 5000) + every(standard_library(), 4000)
    lines += every(messages, 2000) if messages else every(english[::-1], 2000)
    assert len(lines) == 16_000
    blocked = found(lines)
    assert len(blocked) <= 2, blocked
