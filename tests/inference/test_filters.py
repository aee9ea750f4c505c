import random

import pytest

from chatgpt_hf.inference.filters import FilterChain, StopStrings


def through(filter_, pieces):
    shown = ""
    for piece in pieces:
        shown += filter_.feed(piece)
        if filter_.finish_reason:
            return shown
    return shown + filter_.finish()


@pytest.mark.parametrize(
    ("text", "strings", "shown"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("aab", ["ab"], "a"),
        ("ababac", ["abac"], "ab"),
        ("one", ["two"], "one"),
        ("one tw", ["two"], "one tw"),
        ("你好。再见。", ["。"], "你好"),
        ("🙂🙃", ["🙃"], "🙂"),
        ("two", ["two"], ""),
    ],
)
def test_stop_strings_cut_wherever_the_text_is_split(text, strings, shown):
    for seed in range(20):
        cuts = sorted(random.Random(seed).choices(range(len(text) + 1), k=4))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        stops = StopStrings(strings)
        assert through(stops, pieces) == shown
        assert stops.finish_reason == ("stop" if shown != text else None)


def test_only_what_may_begin_a_stop_string_is_held_back():
    stops = StopStrings(["END"])
    assert [stops.feed(piece) for piece in ("all E", "N", "ough", " E", "ND")] == ["all ", "", "ENough", " ", ""]
    assert stops.finish_reason == "stop"


class Withhold:
    """Shows nothing before the end, and then only text without an x."""

    def __init__(self):
        self.finish_reason, self.held = None, ""

    def feed(self, piece):
        self.held += piece
        return ""

    def finish(self):
        if "x" in self.held:
            self.finish_reason = "content_filter"
            return ""
        return self.held


def test_filters_behind_one_another():
    # The stop string ends the answer; the second filter receives only the text before it, and shows it at the end.
    chain = FilterChain([StopStrings(["."]), Withhold()])
    assert through(chain, ["good", " words. x"]) == "good words"
    assert chain.finish_reason == "stop"
    chain = FilterChain([StopStrings(["."]), Withhold()])
    assert through(chain, ["bad x", " words."]) == ""
    assert chain.finish_reason == "content_filter"
    chain = FilterChain([Withhold()])
    assert through(chain, ["bad x"]) == ""
    assert chain.finish_reason == "content_filter"
    assert through(FilterChain([]), ["as", " it is"]) == "as it is"
