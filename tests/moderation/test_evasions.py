"""Disguises of listed words, streamed in single characters."""

import pytest

from chatgpt_hf.errors import ContentFiltered
from chatgpt_hf.moderation import WordList

WORDS = WordList(
    ["twit", "shill", "dumbell", "piglet*", "*zorble", "lackwit fool", "bad, egg", "笨蛋", "坏东西", "はか", "바보"]
)

# Each is a listed word to a reader.
EVASIONS = {
    "modifier letters as separators": [
        "twʹit",
        "t\u02b9w\u02b9i\u02b9t",
        "twʼit",
        "dumbʼell",
        "shˈill",
        "tˌwˌiˌt",
        "twːit",
        "shˑill",
        "tꞏwꞏiꞏt",
        "twꞌit",
        "shꟷill",
        "t゠wit",
        "twˆit",
        "dumb˗ell",
        "twᐧit",
        "shᐨill",
        "twꓸit",
        "t〱wit",
        "twˉˉit",
        "shʽill",
        "twꜗit",
    ],
    "accents without letters as separators": [
        "dumb´ell",
        "sh¨ill",
        "tw¸it",
        "sh˘ill",
        "dumb゛ell",
        "tw゜it",
        "sh‗ill",
        "tw῀it",
    ],
    "strokes and dots of Asian scripts as separators": [
        "t一w一i一t",
        "twーit",
        "dumbㅡell",
        "tㆍwㆍiㆍt",
        "sh丶ill",
        "tw々it",
        "t・w・i・t",
    ],
    "marks as separators": [
        "tाwाiाt",
        "twัit",
        "sh\u0903ill",
        "t\u3099w\u3099i\u3099t",
        "dumb\u0e48ell",
        "tw\u05b0it",
        "sh\u064eill",
        "tw\u1dc4it",
        "t\u20ddw\u20ddi\u20ddt",
    ],
    "enclosed and superscript neighbors": [
        "twit²",
        "²twit",
        "①twit",
        "twit①",
        "twit™",
        "ªtwit",
        "twitⓡ",
        "shill⁽ⁿ⁾",
        "twit🅰",
        "🇽twit",
        "ₐshill",
        "twit½",
        "㊀twit",
        "twitˣ",
        "⒳twit",
    ],
    "controls": [
        "t\x01w\x02i\x03t",
        "tw\x00it",
        "dumb\x1cell",
        "sh\x1d\x1eill",
        "tw\x85it",
        "dumb\x85ell",
        "sh\x9bill",
        "tw\x1bit",
        "tw\x7fit",
        "dumb\x0bell",
        "t\x90w\x9fit",
    ],
    "wide and narrow spaces": [
        "dumb\u2003ell",
        "dumb\u200aell",
        "shi\u3000ll",
        "dum\u2009bell",
        "shi\u202fll",
        "dumb\u205fell",
        "shi\u1680ll",
        "t\u2001w\u2001i\u2001t",
        "x\u3000t w i t",
    ],
    "invisible characters": [
        "tw\u00adit",
        "t\u200bw\u200ci\u200dt",
        "tw\u2060it",
        "tw\ufe0fit",
        "t\U000e0061w\U000e0062it",
        "tw\U000e0100it",
        "tw\u180eit",
        "tw\u115fit",
        "tw\u034fit",
        "tw\u2062it",
        "tw\ufff9it",
        "sh\u0640ill",
    ],
    "marks on Chinese, kana and Hangul": [
        "笨\u0336蛋",
        "笨\u0301蛋\u0301",
        "笨\u3099蛋",
        "笨\u0e31蛋",
        "坏ा东ा西",
        "笨\u20dd蛋",
        "笨\u302a蛋",
        "笨\u093c蛋",
        "바\u302e보",
        "は\u0301か",
        "笨\u1abe蛋",
    ],
    "Chinese with separators": ["笨ʹ蛋", "笨\x01蛋", "笨\u2003蛋", "笨´蛋", "笨\u00ad蛋", "笨*_*蛋", "笨\U000e0100蛋"],
    "look-alikes from Hebrew": ["twוt", "twןt", "tשit", "shןll", "dumbeלl", "lackשit fooל", "lackwit fססl", "piגlet"],
    "look-alikes from Burmese and Thai": [
        "lackwit fဝဝl",
        "lackwit f၀၀l",
        "megazဝrble",
        "tฬit",
        "dยmbell",
        "รhill",
        "lackwit f๏๏l",
    ],
    "look-alikes from CJK": [
        "tw丨t",
        "丅w丨t",
        "丅山丨丅",
        "十wit",
        "sh工ll",
        "丂卄丨ㄥㄥ",
        "刀ひﾶ乃乇ﾚﾚ",
        "卩丨Ꮆㄥ乇ㄒ",
        "lackwit f口口l",
        "lackwit f〇口l",
        "ㄒ山丨ㄒ",
        "ｲwﾉｲ",
        "shㅣㅣㅣ",
    ],
    "look-alikes from other scripts": [
        "ᔕᕼIᒪᒪ",
        "ᏖᏇᎥᏖ",
        "₮₩i₮",
        "ᛏᚹᛁᛏ",
        "𐍄𐍈𐌹𐍄",
        "ѕһіӏӏ",
        "τωιτ",
        "Ⴝhill",
        "ⲧwit",
        "ꓔꓪꓲꓔ",
        "ʇwᴉʇ",
        "tա¡t",
        "ᴅᴜᴍʙᴇʟʟ",
    ],
    "decorated letters": [
        "ｔｗｉｔ",
        "𝐭𝐰𝐢𝐭",
        "𝕥𝕨𝕚𝕥",
        "𝓽𝔀𝓲𝓽",
        "𝖙𝖜𝖎𝖙",
        "𝚝𝚠𝚒𝚝",
        "ⓣⓦⓘⓣ",
        "🅣🅦🅘🅣",
        "🆃🆆🅸🆃",
        "🅃🅆🄸🅃",
        "ᵗʷⁱᵗ",
        "⒯⒲⒤⒯",
        "🇹🇼🇮🇹",
        "⠞⠺⠊⠞",
        "𝓈𝒽𝒾𝓁𝓁",
        "twⅈt",
        "sh\u2170ll",
    ],
    "digits and symbols for letters": [
        "7w17",
        "tw!t",
        "$h1ll",
        "5h!11",
        "dum6ell",
        "p19let",
        "p16let",
        "la©kwit fool",
        "†wit",
        "z0rb1e",
    ],
    "written as in HTML or JSON": [
        "&#116;wit",
        "&#x74;&#x77;&#x69;&#x74;",
        "tw&#105t",
        "tw&shy;it",
        "t&ZeroWidthSpace;wit",
        "&tscr;wit",
        "tw\\u0069t",
        "\\u0074\\u0077\\u0069\\u0074",
        "\\ud835\\udd31wit",
        "t&nbsp;w&nbsp;i&nbsp;t",
        "tw&#8203;it",
        "笨&#8203;蛋",
        "&#31528;蛋",
        "\\u7b28\\u86cb",
    ],
    "reversed by an override": [
        "\u202etiwt",
        "\u202etiwt\u202c",
        "\u202e t i w t",
        "\u202elliHS",
        "&#x202e;tiwt",
        "\u202e蛋笨",
        "\u202eloof tiwkcal",
        "\u202etelgip",
    ],
    "other overrides": ["\u202dtwit\u202c", "\u2066t\u2069\u2066wit\u2069", "t\u200ewit", "t\u061cwit"],
    "phrases": [
        "lackwit  fool",
        "lackwit\nfool",
        "lackwit-fool",
        "lackwit_fool",
        "lackwit.fool",
        "**lackwit** _fool_",
        "lackwit\u3000fool",
        "l.a.c.k.w.i.t fool",
        "bad, egg",
        "b a d , e g g",
        "bad,egg",
    ],
    "Markdown": ["t**w**it", "tw*i*t", "`t`wit", "~~t~~wit", "sh__il__l", "pig**let**s", "piʹglets", "t\\w\\i\\t"],
}
CASES = [(kind, evasion) for kind, found in EVASIONS.items() for evasion in found]


def blocked(words: WordList, text: str) -> bool:
    try:
        words.check(text)
    except ContentFiltered:
        return True
    return False


def streamed(words: WordList, text: str) -> tuple[str, str | None]:
    """Returns what a reader gets of an answer that arrives in single characters, and why it ended."""
    filter_ = words.filter()
    shown = ""
    for char in text:
        shown += filter_.feed(char)
        if filter_.finish_reason:
            return shown, filter_.finish_reason
    return shown + filter_.finish(), filter_.finish_reason


def test_there_are_enough() -> None:
    assert len({evasion for _, evasion in CASES}) >= 200


@pytest.mark.parametrize(("kind", "evasion"), CASES, ids=[f"{kind}: {evasion!a}" for kind, evasion in CASES])
def test_no_evasion_passes(kind: str, evasion: str) -> None:
    for before, after in (("", ""), ("Well, ", " indeed."), ("(", ")"), ("He said: «", "»!\n")):
        text = f"{before}{evasion}{after}"
        assert blocked(WORDS, text), text
        shown, reason = streamed(WORDS, text)
        assert reason == "content_filter"
        assert text.startswith(shown)
        assert not blocked(WORDS, shown)
        assert len(shown) <= len(before) + len(evasion) - 2
