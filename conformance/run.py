"""Runs transformers' common tests on our variants and on upstream's models, and reports what passes, fails and is skipped.

Fails when one of our variants fails, or skips, what upstream's GPT-2 or Llama passes, unless `EXPECTED` says why.
"""

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

HERE = Path(__file__).parent
# Tests that a model outside transformers, or one of our variants, cannot pass: patterns of "MODEL: TEST", and the reason.
EXPECTED: dict[str, str] = {
    ": test_reverse_loading_mapping$": "expects checkpoints with the names that the weight mapping reads; ours reads GPT-2's names, "
    "and always saves its own",
    "^(gpt2|sinusoidal): test_model_rope_": "its positions are not rotary; upstream's GPT-2 skips it too",
    "^gqa-sliding: test_generation_a_quantized_cache": "transformers quantizes only the cache of layers with full attention",
}


class Recorder:
    """Records whether each test of each model passed, failed or was skipped, and why."""

    def __init__(self) -> None:
        self.outcomes: dict[str, dict[str, str]] = defaultdict(dict)
        self.reasons: dict[str, dict[str, str]] = defaultdict(dict)
        self.seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        case, _, test = report.nodeid.rpartition("::")
        name = case.rpartition("::")[2].rpartition("_")[0].replace("_", "-")
        self.seconds[name] += report.duration
        if report.skipped:
            self.outcomes[name][test] = "skipped"
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.reasons[name][test] = reason.removeprefix("Skipped: ")
        elif report.failed:
            self.outcomes[name][test] = "failed"
            self.reasons[name][test] = report.longreprtext.strip().splitlines()[-1]
        elif report.when == "call":
            self.outcomes[name].setdefault(test, "passed")


def expected(name: str, test: str) -> str | None:
    return next((reason for pattern, reason in EXPECTED.items() if re.search(pattern, f"{name}: {test}")), None)


def same_reason(reason: str) -> str:
    """Removes the names of tests, classes and files from a reason, so that equal reasons can be grouped."""
    reason = re.sub(r"\S*::test_pipeline_\w+ is skipped: ", "", reason)
    reason = re.sub(
        r"`?\b(ChatGPT|GPT2|Llama)\w*`?|`(gpt2|modern|sinusoidal|gqa_sliding|upstream_\w+)\w*`", "…", reason
    )
    reason = re.sub(r"<class '[\w.…]+'>", "…", reason)
    reason = re.sub(r"`[a-z-]+` is not in `self.pipeline_model_mapping`.*", "no such task for a text model", reason)
    return " ".join(reason.split())[:150]


def report(recorder: Recorder) -> list[str]:
    """Prints the tables and returns the faults."""
    ours = [name for name in recorder.outcomes if not name.startswith("upstream-")]
    theirs = [name for name in recorder.outcomes if name.startswith("upstream-")]
    print(f"\ntransformers {transformers.__version__}, torch {torch.__version__}\n")
    print("| model | passed | failed | skipped | seconds |\n|---|---|---|---|---|")
    for name in (*ours, *theirs):
        count = Counter(recorder.outcomes[name].values())
        print(
            f"| {name} | {count['passed']} | {count['failed']} | {count['skipped']} | {recorder.seconds[name]:.0f} |"
        )

    print("\nSkips by reason, and how many in each model:\n")
    names = (*ours, *theirs)
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for name in names:
        for test, outcome in recorder.outcomes[name].items():
            if outcome == "skipped":
                groups[same_reason(recorder.reasons[name][test])][name] += 1
    print(f"| reason | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for reason, count in sorted(groups.items(), key=lambda item: -item[1].total()):
        print(f"| {reason} | {' | '.join(str(count[name]) for name in names)} |")

    faults, explained, also_theirs = [], [], []
    for name in names:
        for test, outcome in sorted(recorder.outcomes[name].items()):
            if outcome == "passed":
                continue
            passed_by = [other for other in theirs if recorder.outcomes[other].get(test) == "passed"]
            line = f"{name}: {test} {outcome}: {recorder.reasons[name][test][:300]}"
            if name in theirs:
                if outcome == "failed":
                    also_theirs.append(line)
            elif (passed_by or outcome == "failed") and (reason := expected(name, test)):
                explained.append(f"{name}: {test} {outcome}: {reason}")
            elif passed_by:
                faults.append(f"{line} ({' and '.join(passed_by)}: passed)")
            elif outcome == "failed":
                also_theirs.append(line)
    for title, lines in (
        ("Not passed here, with the reason:", explained),
        ("Failed here where upstream's models fail or skip too, and failures of upstream's models:", also_theirs),
        ("Faults: not passed here, passed by upstream's models:", faults),
    ):
        print(f"\n{title}\n")
        print("\n".join(f"- {line}" for line in lines) or "None.")
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--tests", help="run only tests that match, as with pytest's -k")
    parser.add_argument("--json", type=Path, help="also write every outcome to this file")
    parser.add_argument("--verbose", action="store_true", help="show pytest's output")
    arguments = parser.parse_args()
    options = [
        "-c",
        str(HERE / "pytest.ini"),
        "--rootdir",
        str(HERE),
        "-p",
        "no:cacheprovider",
        str(HERE / "test_upstream.py"),
    ]
    options += ["-v", "--tb=long"] if arguments.verbose else ["-q", "--tb=no", "--no-summary"]
    if arguments.workers > 1:
        options += ["-n", str(arguments.workers), "--dist", "loadscope"]
    if arguments.tests:
        options += ["-k", arguments.tests]
    recorder = Recorder()
    status = pytest.main(options, plugins=[recorder])
    if not recorder.outcomes:
        print("No test was run.", file=sys.stderr)
        return int(status) or 1
    faults = report(recorder)
    if arguments.json:
        content: dict[str, Any] = {"outcomes": recorder.outcomes, "reasons": recorder.reasons}
        arguments.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
