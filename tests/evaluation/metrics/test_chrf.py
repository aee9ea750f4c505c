"""chrF, compared with sacrebleu's own corpus scores."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sacrebleu.metrics import CHRF

from chatgpt_hf.evaluation.metrics import measures


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize(
    "options", [{}, {"word_order": 2, "lowercase": True}, {"char_order": 3, "beta": 1, "eps_smoothing": True}]
)
def test_as_sacrebleu(column: int, options: dict[str, Any], shared_data: Path) -> None:
    lines = (shared_data / "translation" / "tatoeba_eng_cmn_a.tsv").read_text(encoding="utf-8").splitlines()[1000:1100]
    texts = [line.split("\t")[column] for line in lines]
    references = [[texts[index - 1], texts[index - 2]] for index in range(len(texts))]
    measure = measures("chrf", texts, references, **options)["chrf"]
    rows = np.random.default_rng(0).integers(len(texts), size=60)
    for chosen in (range(len(texts)), rows.tolist()):
        streams = [[references[row][stream] for row in chosen] for stream in range(2)]
        expected = CHRF(**options).corpus_score([texts[row] for row in chosen], streams).score
        assert float(measure.of(measure.statistics[list(chosen)].sum(0))) == expected > 0
