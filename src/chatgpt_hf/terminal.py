"""Text from models, files and strangers, made safe to print on a terminal."""

# Control characters can write the clipboard, recolor or erase what stands above, and bidirectional overrides show a line in
# another order than it has. C0 and DEL have pictures; half a surrogate pair cannot be printed at all.
_SHOWN_AS = {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)} | {0x7F: 0x2421}
_REPLACED = [*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xD800, 0xE000)]
_TABLE = _SHOWN_AS | dict.fromkeys(_REPLACED, 0xFFFD)


def visible(text: str) -> str:
    """Replaces everything that would control the terminal by characters that can be seen.

    Each character is replaced without looking at its neighbors, so a text may come in pieces. Newline, tab and all
    letters stay, with their marks, joiners and variation selectors. Rich's markup is not escaped: pass the result as
    `rich.text.Text`, or with `markup=False`.
    """
    return text.translate(_TABLE)
