"""`chatgpt-hf data`."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._choices import PREVIEW_PURPOSES, check_choice
from ._terminal import say, visible
from .errors import UsageMistake
from .help import Command, Group

if TYPE_CHECKING:
    from chatgpt_hf.preview import Preview

SHOWN_CHARACTERS = 1500


def register(app: typer.Typer, panel: str) -> None:
    """Adds the command group."""
    group = typer.Typer(
        cls=Group,
        help="Look at data before anything is spent on training.\n\nExample: chatgpt-hf data preview my-chats.jsonl",
    )
    app.add_typer(group, name="data", rich_help_panel=panel)

    @group.callback()
    def data() -> None:
        """Look at data before anything is spent on training.

        Example: chatgpt-hf data preview my-chats.jsonl
        """

    @group.command(cls=Command)
    def preview(
        sources: Annotated[list[str], typer.Argument(help="Files, folders, globs or Hub ids.")],
        purpose: Annotated[
            str | None,
            typer.Option(
                "--for",
                help="Command that will read them: sft, dpo, pretrain or finetune. If not given: dpo for preferences, otherwise sft.",
            ),
        ] = None,
        tokenizer: Annotated[
            str | None,
            typer.Option("--tokenizer", help="Model or tokenizer whose chat template and lengths count."),
        ] = None,
        block_size: Annotated[int, typer.Option("--block_size", help="Length of a training row in tokens.")] = 512,
        rows: Annotated[int, typer.Option("--rows", help="Number of examples to show.")] = 3,
        test_fraction: Annotated[
            float | None,
            typer.Option("--test_fraction", help="Share to hold out; the command's own default if not given."),
        ] = None,
        encoding: Annotated[
            str | None, typer.Option("--encoding", help="Encoding of the files, such as gb18030; UTF-8 if not given.")
        ] = None,
        text_column: Annotated[
            str | None, typer.Option("--text_column", help="Column with the text (pretrain, finetune).")
        ] = None,
        prompt_column: Annotated[
            str | None, typer.Option("--prompt_column", help="Column with the question (sft, dpo).")
        ] = None,
        completion_column: Annotated[
            str | None, typer.Option("--completion_column", help="Column with the answer (sft, dpo).")
        ] = None,
        chosen_column: Annotated[
            str | None, typer.Option("--chosen_column", help="Column with the better answer (dpo).")
        ] = None,
        rejected_column: Annotated[
            str | None, typer.Option("--rejected_column", help="Column with the worse answer (dpo).")
        ] = None,
        task: Annotated[
            str, typer.Option("--task", help="Task of finetune, such as text-classification.")
        ] = "text-classification",
        label_column: Annotated[
            str | None, typer.Option("--label_column", help="Column with the label (finetune, dpo).")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """Show what a training would read from files.

        Shows the recognised shape, columns that are read and columns that are not, rows that are left out and why, held-out rows, examples as they will be learned (learned text in color or between ⟦ and ⟧; rejected answers in red), lengths against the training row, duplicates and scripts. Trains nothing and writes nothing.

        Example: chatgpt-hf data preview my-chats.jsonl --tokenizer runs/mine

        Example: chatgpt-hf data preview preferences.jsonl

        Example: chatgpt-hf data preview my-texts/ --for pretrain

        Example: chatgpt-hf data preview reviews.csv --for finetune --task text-classification
        """
        check_choice("--for", purpose, PREVIEW_PURPOSES)
        if rows < 0 or block_size < 2:
            raise UsageMistake(f"--rows {rows} and --block_size {block_size}: give at least 0 rows and 2 tokens.")
        shown: dict[str, Any] = {"tokenizer": tokenizer, "rows": rows}
        held_out = {} if test_fraction is None else {"test_fraction": test_fraction}
        from chatgpt_hf.data.preference_shapes import PreferenceColumns
        from chatgpt_hf.data.preferences import kind_of_preferences
        from chatgpt_hf.data.shapes import PairColumns
        from chatgpt_hf.data.sources import parse_sources
        from chatgpt_hf.preview import preview_conversations, preview_corpus, preview_preferences, preview_task
        from chatgpt_hf.tasks.arguments import TaskArguments

        parsed = parse_sources(sources, text_column=text_column or "text", encoding=encoding, field="SOURCES")
        if purpose is None:
            # Named columns of a question and an answer are for sft, whatever other columns there are.
            compares = bool(chosen_column or rejected_column)
            purpose = "dpo" if compares or (not completion_column and kind_of_preferences(parsed)) else "sft"
        for name, value, purposes in (
            ("--prompt_column", prompt_column, ("sft", "dpo")),
            ("--completion_column", completion_column, ("sft", "dpo")),
            ("--chosen_column", chosen_column, ("dpo",)),
            ("--rejected_column", rejected_column, ("dpo",)),
            ("--text_column", text_column, ("pretrain", "finetune")),
            ("--label_column", label_column, ("finetune", "dpo")),
        ):
            if value is not None and purpose not in purposes:
                raise UsageMistake(f"{name} is for --for {' and '.join(purposes)}: leave it out.")
        if purpose == "finetune":
            arguments = TaskArguments(
                task=task,  # type: ignore[arg-type]
                dataset=sources,
                text_column=text_column,
                label_column=label_column,
                encoding=encoding,
                max_length=block_size,
                skip_invalid=True,
                **held_out,  # type: ignore[arg-type]
            )
            found = preview_task(arguments, **shown)
        else:
            shown |= {"block_size": block_size, **held_out}
            if purpose == "pretrain":
                found = preview_corpus(parsed, **shown)
            elif purpose == "dpo":
                columns = PreferenceColumns(
                    prompt_column, chosen_column, rejected_column, completion_column, label_column
                )
                found = preview_preferences(parsed, named=columns, **shown)
            else:
                found = preview_conversations(parsed, named=PairColumns(prompt_column, completion_column), **shown)
        if as_json:
            say(json.dumps(found.as_dict(), indent=2, ensure_ascii=False))
        else:
            show(found)


def show(preview: "Preview") -> None:
    """Prints a preview for people."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False, emoji=False)
    for table in preview.tables:
        console.print(visible(str(table["source"])), style="bold")
        for name, value in table.items():
            if name != "source" and value not in ("", "-"):
                console.print(visible(f"  {name}: {value}"))
    console.print("\nExamples", style="bold")
    held_out = preview.splits.get("test", 0)
    console.print(f"  train: {preview.splits['train']}; held out: {held_out}")
    if preview.duplicates or preview.overlap:
        console.print(f"  repeated: {preview.duplicates}; held out and also trained on: {preview.overlap}")
    names = {"0 %": "least", "50 %": "median", "100 %": "most"}
    quantiles = ", ".join(f"{names.get(name, name)} {value}" for name, value in preview.lengths.items())
    console.print(f"  length in {preview.unit}: {quantiles}")
    if preview.longer is None:
        console.print("  (--tokenizer counts tokens)")
    else:
        console.print(f"  longer than a row of {preview.block_size} tokens: {preview.longer}")
    scripts = ", ".join(f"{script} {share:.1%}" for script, share in preview.scripts.items() if share >= 0.001)
    console.print(f"  scripts: {scripts or 'no letters'}")
    if preview.labels:
        labels = ", ".join(f"{label}: {count}" for label, count in list(preview.labels.items())[:20])
        console.print(visible(f"  labels: {labels}"))
    if preview.dropped:
        console.print("\nChanged or left out", style="bold")
        if preview.unusable:
            console.print(f"  {preview.unusable} rows would stop a training; --skip_invalid leaves them out")
        for reason, count in list(preview.dropped.items())[:10]:
            console.print(visible(f"  {count} x {reason}"))
        if len(preview.dropped) > 10:
            console.print(f"  and {len(preview.dropped) - 10} other reasons")
    for number, example in enumerate(preview.examples, start=1):
        console.rule(f"example {number}")
        text = Text()
        for piece, is_learned in example:
            piece = visible(piece)
            short = piece if len(piece) <= SHOWN_CHARACTERS else f"{piece[:SHOWN_CHARACTERS]} …"
            if is_learned:
                style = "bold red" if is_learned in ("rejected", "bad") else "bold green"
                text.append(short if console.color_system else f"⟦{short}⟧", style=style)
            else:
                text.append(short, style="dim")
        console.print(text)
