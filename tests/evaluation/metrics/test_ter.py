"""Translation edit rate, compared with sacrebleu's own corpus score."""

from pathlib import Path
from typing import Any

import pytest
from sacrebleu.metrics import TER

from chatgpt_hf.evaluation.metrics import measures


@pytest.mark.parametrize(("column", "options"), [(0, {}), (1, {"normalized": True, "asian_support": True})])
def test_as_sacrebleu(column: int, options: dict[str, Any], shared_data: Path) -> None:
    lines = (shared_data / "translation" / "tatoeba_eng_cmn_a.tsv").read_text(encoding="utf-8").splitlines()[1000:1060]
    texts = [line.split("\t")[column] for line in lines]
    references = [*texts[1:], texts[0]]
    measure = measures("ter", texts, references, **options)["ter"]
    assert measure.value == TER(**options).corpus_score(texts, [references]).score > 0
    assert not measure.higher_is_better


def test_empty_references() -> None:
    assert measures("ter", ["a b"], [""])["ter"].value == 100
    assert measures("ter", [""], [""])["ter"].value == 0
