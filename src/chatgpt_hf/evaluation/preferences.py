"""How often pairs of answers are ranked right: by a model's scores, and by nothing but the length of the answers."""

from collections.abc import Sequence

import numpy as np

from .figures import Figure, Measure, bootstrap


def pair_accuracy(margins: Sequence[float]) -> Figure:
    """The share of pairs with a positive margin, and its interval; a margin of 0 counts half.

    Args:
        margins: Score of the chosen answer minus that of the rejected one, (pairs,); at least one.
    """
    return bootstrap(_measure(margins))


def length_accuracy(train: Sequence[float], held_out: Sequence[float]) -> Figure:
    """The accuracy of a rule that sees only lengths: the longer answer wins, or the shorter one if that is more often right.

    Args:
        train: Length of the chosen answer minus that of the rejected one, for the pairs that decide between the two rules,
            (pairs,).
        held_out: The same for the pairs that are ranked, (pairs,); at least one.
    """
    sign = 1 if _measure(train).value >= 0.5 else -1
    return pair_accuracy([sign * difference for difference in held_out])


def _measure(margins: Sequence[float]) -> Measure:
    signs = np.sign(np.asarray(margins, dtype=float))
    return Measure("mean", np.stack([(signs + 1) / 2, np.ones_like(signs)], axis=1))
