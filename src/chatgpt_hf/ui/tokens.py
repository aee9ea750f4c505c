"""The token panel: an answer's tokens, colored by probability, each with its alternatives."""

from collections.abc import Sequence
from html import escape

from ..interpretability.passage import visible
from ..interpretability.surprise import Candidate, TokenProbability, percent


def tokens_html(tokens: Sequence[TokenProbability]) -> str:
    """Renders the tokens as HTML. A token shows its card on hover, tap or keyboard focus."""
    return f'<div class="tokens">{"".join(map(_token, tokens))}</div>' if tokens else ""


def _token(token: TokenProbability) -> str:
    others = list(token.alternatives)
    if all(other.token_id != token.token_id for other in others):
        others.append(token)
    rows = "".join(_row(other, other.token_id == token.token_id) for other in others)
    label = escape(f"{visible(token.text)} {percent(token.probability)}", quote=True)
    # Show a line break as a symbol, and also break the line.
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
