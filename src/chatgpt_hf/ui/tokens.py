"""The token panel: an answer's tokens, coloured by probability, each with what else might have stood there."""

from collections.abc import Sequence
from html import escape

from ..interpretability.passage import visible
from ..interpretability.surprise import Candidate, TokenProbability, percent


def tokens_html(tokens: Sequence[TokenProbability]) -> str:
    """The tokens as HTML. Each shows its card while the pointer is on it, and when it is tapped or tabbed to."""
    return f'<div class="tokens">{"".join(map(_token, tokens))}</div>' if tokens else ""


def _token(token: TokenProbability) -> str:
    others = list(token.alternatives)
    if all(other.token_id != token.token_id for other in others):
        others.append(token)
    rows = "".join(_row(other, other.token_id == token.token_id) for other in others)
    label = escape(f"{visible(token.text)} {percent(token.probability)}", quote=True)
    # A line break is shown and made.
    breaks = "<br>" * token.text.count("\n")
    return (
        f'<span class="token" tabindex="0" aria-label="{label}" style="--p:{token.probability:.4f}">'
        f'<span class="text">{escape(token.text.replace(chr(10), "↵"))}</span>'
        f'<span class="card" role="tooltip">{rows}</span></span>{breaks}'
    )


def _row(candidate: Candidate, own: bool) -> str:
    return (
        f'<span class="row{" own" if own else ""}" style="--p:{candidate.probability:.4f}">'
        f"<code>{escape(visible(candidate.text))}</code><b>{escape(percent(candidate.probability))}</b></span>"
    )
