"""Accuracy on pairs, and that of their lengths."""

from chatgpt_hf.evaluation.preferences import length_accuracy, pair_accuracy


def test_ties_count_half() -> None:
    figure = pair_accuracy([2.0, -1.0, 0.0, 0.5])
    assert figure.value == 0.625
    assert figure.low < figure.value < figure.high


def test_the_rule_of_lengths_is_chosen_by_the_training_pairs() -> None:
    held_out = [5, 3, -1, 2]
    assert length_accuracy([4, 1, -2], held_out).value == 0.75
    assert length_accuracy([-4, -1, 2], held_out).value == 0.25
