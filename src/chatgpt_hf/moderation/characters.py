"""How the characters of a text are read when it is searched for words: folded, and as what they look like."""

import re
import unicodedata
from enum import Enum, auto
from functools import lru_cache
from string import ascii_lowercase
from typing import NamedTuple

from ..extras import needed_by

with needed_by("A word list"):
    from confusable_homoglyphs.confusables import is_confusable

# Invisible, although their category does not say so: controls that count as white space, joiners, fillers, stretched
# Arabic, variation selectors, the blank Braille pattern, tone dots of old Korean.
_INVISIBLE = set("\x0b\x1c\x1d\x1e\x1f\x85\u034f\u0640\u115f\u1160\u17b4\u17b5\u2800\u302e\u302f\u3164\uffa0")
_INVISIBLE |= {chr(code) for code in [*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)]}
# White space between words; no ordinary text has any other between letters.
_SPACES = " \t\n\r\x0c\xa0\u2028\u2029"
# In a sentence these separate words, like white space.
_DASHES = "–—―"
# Canonical combining classes of marks that are part of the spelling: vowels and viramas of Indic scripts, Thai, Lao and
# Tibetan, nuktas, and the mark that turns は into ば.
_SPELLING_MARKS = {0, 7, 8, 9, 84, 91, 103, 107, 118, 122, 129, 130, 132}
_LATIN_NAME = re.compile(
    r"(?:LATIN (?:SMALL|CAPITAL) LETTER|LATIN LETTER SMALL CAPITAL|REGIONAL INDICATOR SYMBOL LETTER|"
    r"(?:CROSSED )?NEGATIVE (?:CIRCLED|SQUARED) LATIN CAPITAL LETTER) "
    r"(?:DOTLESS |OPEN |REVERSED (?=E)|SCRIPT |TURNED (?=[AEHRT]))?([A-Z])(?: WITH .+)?"
)
# Letters by their category that look like dots, strokes or quotation marks.
_MARK_NAME = re.compile(
    r"MODIFIER LETTER .+|LISU LETTER TONE .+|CANADIAN SYLLABICS FINAL .+|LATIN LETTER SINOLOGICAL DOT|"
    r"LATIN (?:SMALL|CAPITAL) LETTER SALTILLO|LATIN EPIGRAPHIC LETTER SIDEWAYS I|VERTICAL KANA REPEAT .+"
)
# Letters of Chinese, Japanese and Korean words that are strokes and dots to a reader of Latin letters.
STROKES = frozenset("一丶ー々〻ヽゝ\u1173\u119e")
# Commonly used as these letters, but not confusable according to Unicode.
_LOOKS_LATIN = dict(zip("βєзкмпηπтωшƒӏ", "beekmnnntwwfI", strict=True))
_BRAILLE = dict(zip("⠁⠃⠉⠙⠑⠋⠛⠓⠊⠚⠅⠇⠍⠝⠕⠏⠟⠗⠎⠞⠥⠧⠺⠭⠽⠵", ascii_lowercase, strict=True))
LEET = {
    "a": "4@",
    "b": "86",
    "c": "¢",
    "e": "3€",
    "g": "96",
    "i": "1!|¡",
    "l": "1!|I£",
    "o": "0",
    "s": "5$",
    "t": "7†",
    "x": "×",
    "y": "¥",
    "z": "2",
}
# Characters of other scripts that stand for a letter in fancy writing, from a to z. They stay what they are in words of
# their own script. The first alphabets can spell a whole word; with the others, a word needs a Latin letter too, because
# ordinary Russian, Hebrew or Thai would spell English by chance.
_SPELLING_ALPHABETS = [
    "卂乃匚ᗪ乇千Ꮆ卄丨ﾌҜㄥ爪几ㄖ卩Ɋ尺丂ㄒㄩᐯ山乂ㄚ乙",
    "ム日亡刀巳下呂廾工亅长乚从刀口尸甲尸ㄎ丁凵〵屮メ丫之",
    "ﾑ乃cり彐ｷムんﾉﾌズﾚﾶ刀のｱゐ尺丂ｲひ√屮ﾒﾘ乙",
    "亼阝c刀ヨfg卄エ丿k乚m冂ロ户qrs丅∪∨w㐅ｙz",
    "人bcdㅌfgㅐㅣjkㄴm冂囗pqrs十ubw义yz",
    "abcdefghijk丨mn〇pqrstuvwxyz",
    "abcdefghijkㅣmnopqrstuvwxyz",
    "ᗩᗷᑕᗪEᖴGᕼIᒍKᒪᗰᑎOᑭᑫᖇᔕTᑌᐯᗯ᙭Yᘔ",
    "ᏗᏰፈᎴᏋᎦᎶᏂᎥᏠᏦᏝᎷᏁᎧᎮᎤᏒᏕᏖᏬᏉᏇጀᎩፚ",
    "₳฿₵ĐɆ₣₲ⱧłJ₭Ⱡ₥₦Ø₱QⱤ₴₮ɄV₩ӾɎⱫ",
    "∀ʙ©ժеfցհ¡ʝʞ˥աղ⊙þφ®§‡∩√ʍχʎʐ",
    "∧ҍc∂∑fƃhᴉɾʞlɯи○ρqɹ∫ʇմʌӎχվʑ",
    "ᚨᛒᚲᛞᛖᚠᚷᚺᛁᛃᚲᛚᛗᚾᛟᛈqᚱᛊᛏᚢvᚹxᛇᛉ",
    "𐌰𐌱𐌲𐌳𐌴𐍆𐌲𐌷𐌹𐌾𐌺𐌻𐌼𐌽𐍉𐍀𐌵𐍂𐍃𐍄𐌿𐍅𐍈𐍇𐍅𐌶",
]
_HELPING_ALPHABETS = [
    "ΛБϾдΞŦGHłJКŁMЛФPǪЯSTцVЩЖЧZ",
    "Δбcdэfghijklmиюpqяstиvwχчz",
    "ค๒ς๔єŦﻮђเןкl๓ภ๏קợгรՇยשฬאץչ",
    "ค๒cdﻉिﻭhٱﻝkl๓ก๏p۹rรՇપ۷ฝซץչ",
    "ﬡבʗדєғגהיןĸלмחסקợгรтטעשאץչ",
    "ልbርdeፕgዘፗjkረጠክዐየqዪነፒሁሀሠxሃz",
    "abငdefghוjkוmဂဝpqrstပvယxyz",
    "abcdefghוjkןmהםpqrsלuvwxעz",
    "ⲁⲃⲥⲇⲉfgⲏןjⲕלⲙⲛⲟⲣqrႽⲧυvⲱⲭⲩⲍ",
]


class Kind(Enum):
    LETTER = auto()  # or digit
    HANGUL = auto()
    CJK = auto()  # written without spaces
    MARK = auto()  # part of the letter before it
    SPACE = auto()
    WIDE = auto()  # white space that ordinary text does not have between letters
    SYMBOL = auto()


class Read(NamedTuple):
    """A folded character.

    Attributes:
        char: The character.
        kind: Its kind.
        style: Empty for ordinary letters; otherwise how they are decorated. Next to a word in another style, a letter is
            not part of the word: in `word²` and `ⓦword`.
    """

    char: str
    kind: Kind
    style: str


@lru_cache(maxsize=8192)
def read(char: str) -> tuple[Read, ...]:
    """Folds a character, and says what kinds of characters result."""
    if char.isspace() and char not in _SPACES and char not in _INVISIBLE:
        return (Read(" ", Kind.WIDE, ""),)
    style = _style(char)
    return tuple(Read(folded, kind_of(folded), style) for folded in fold(char))


@lru_cache(maxsize=8192)
def fold(char: str) -> str:
    """Folds a character for comparison: to zero or more characters, without marks, lower case, Latin if it looks so.

    A capital I stays, because it also looks like an l. Letters that look like an l or I become a capital I.
    """
    parts = unicodedata.normalize("NFKD", char)
    if parts[:1] == " " and not char.isspace():
        return char  # an accent without a letter, such as ´, which is a space with a mark to Unicode
    return "".join(map(_fold, parts))


def _fold(char: str) -> str:
    if char in _INVISIBLE:
        return ""
    if char == "I" or char.isspace():
        return char
    if char.isascii():
        return char.lower() if char.isprintable() else ""
    category = unicodedata.category(char)
    if category in ("Cc", "Cf", "Me"):
        return ""
    if category == "Mn":
        return char if unicodedata.combining(char) in _SPELLING_MARKS else ""
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if category[0] in "PS":
        return _BRAILLE.get(char) or _latin_by_name(char) or char  # folding further would turn separators into letters
    if kind_of(char) in (Kind.CJK, Kind.HANGUL, Kind.SYMBOL):
        return char
    folded = char.casefold()
    # Before lower-casing: the Greek capital Ν looks like N, but its small letter ν like v.
    return _latin(char) or (_latin(folded) if len(folded) == 1 else "") or folded


def _latin(char: str) -> str:
    """The Latin letter that a character looks like, by Unicode's confusables (UTS #39) or by its name; "" if none."""
    if letter := _LOOKS_LATIN.get(char) or _latin_by_name(char):
        return letter
    found = is_confusable(char, greedy=True) or []
    looks = [look["c"] for look in found[0]["homoglyphs"]] if found else []
    for look in looks:
        if look.isascii() and len(look) == 1 and look.isalpha():
            return "I" if look in "Il" else look.lower()
    return next((letter for look in looks if len(look) == 1 and (letter := _latin_by_name(look))), "")


def _latin_by_name(char: str) -> str:
    match = _LATIN_NAME.fullmatch(unicodedata.name(char, ""))
    return match[1].lower() if match else ""


@lru_cache(maxsize=8192)
def kind_of(char: str) -> Kind:
    """The kind of a folded character."""
    category = unicodedata.category(char)
    if char.isspace() or char in _DASHES:
        return Kind.SPACE
    if category in ("Mn", "Mc"):
        return Kind.MARK
    if category[0] not in "LN":
        return Kind.SYMBOL
    name = unicodedata.name(char, "")
    if _MARK_NAME.fullmatch(name) and unicodedata.normalize("NFKD", char) == char:
        return Kind.SYMBOL
    if name.startswith(("CJK ", "HIRAGANA", "KATAKANA", "BOPOMOFO", "IDEOGRAPHIC", "THAI", "LAO", "KHMER", "MYANMAR")):
        return Kind.CJK
    return Kind.HANGUL if name.startswith("HANGUL") else Kind.LETTER


@lru_cache(maxsize=8192)
def script(char: str) -> str:
    """The script of a letter, or of a mark that belongs to the letters of a script."""
    first = unicodedata.name(char, "").replace("COMBINING KATAKANA-HIRAGANA", "KATAKANA").partition(" ")[0]
    return "KATAKANA" if first == "HIRAGANA" else first


def _style(char: str) -> str:
    category = unicodedata.category(char)
    tag = unicodedata.decomposition(char).partition(" ")[0]
    if tag in ("<super>", "<sub>", "<circle>", "<square>"):
        return tag
    return category if category in ("So", "No") else ""


def _stand_ins(alphabets: list[str]) -> dict[str, str]:
    found = dict.fromkeys(ascii_lowercase, "")
    for alphabet in alphabets:
        for letter, char in zip(ascii_lowercase, alphabet, strict=True):
            folded = fold(char)
            if len(folded) == 1 and not folded.isascii() and folded not in found[letter]:
                found[letter] += folded
    return found


SPELLING = _stand_ins(_SPELLING_ALPHABETS)
HELPING = _stand_ins(_HELPING_ALPHABETS)
# Everything that is read as a letter of the Latin alphabet, beside the letter.
LOOKS = {letter: LEET.get(letter, "") + SPELLING[letter] + HELPING[letter] for letter in ascii_lowercase}
