"""Where an evaluation is kept: in the model's folder or another, by a name that no other evaluation has."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import check_is_folder, read_json
from ..untrusted import check_link
from .figures import Figure
from .record import EVALUATION_FOLDER, RESULTS_NAME, Evaluation


@dataclass(frozen=True)
class Destination:
    """The folder that keeps evaluations, and what tells them from others in it.

    Attributes:
        source: What was evaluated, if the user chose it.
        settings: What else the user chose that changes the figures.
        out: Folder that the user named; None for `evaluation/` in the model's folder.
        command: The command that repeats the evaluation.
    """

    name_or_path: str
    source: str | None
    settings: dict[str, Any]
    out: Path | None
    command: str

    @property
    def folder(self) -> Path:
        if self.out is not None:
            return self.out
        if Path(self.name_or_path).is_dir():
            return Path(self.name_or_path) / EVALUATION_FOLDER
        return Path("runs") / EVALUATION_FOLDER / re.sub(r"[^\w.-]+", "-", self.name_or_path.replace("/", "--"))

    def save(self, evaluations: dict[str, Evaluation]) -> dict[str, dict[str, Figure]]:
        """Returns the figures by the names that the evaluations have in the folder. See `named`."""
        return {name: evaluation.save(self.folder / name) for name, evaluation in self.named(evaluations).items()}

    def named(self, evaluations: dict[str, Evaluation]) -> dict[str, Evaluation]:
        """Evaluations by names that no other evaluation in the folder has; the same one again keeps its name.

        Args:
            evaluations: By the names that people would expect.
        """
        # A folder that the user names may hold the evaluations of several models.
        model = None if self.out is None else place(self.name_or_path)
        identity = [self.source and place(self.source), self.settings, model]
        named = {}
        for name, evaluation in evaluations.items():
            evaluation.command = self.command
            evaluation.identity = digest([name, *identity])
            named[_free_name(self.folder, name, evaluation)] = evaluation
        return named


def _free_name(folder: Path, name: str, evaluation: Evaluation) -> str:
    """The name itself, or with a hash behind it if another evaluation has it.

    The file system is asked and not the list of names: on some, names that differ only in case are the same.
    """
    try:
        kept = read_json(folder / name / RESULTS_NAME)
    except CheckpointError:
        # Nothing that could be lost.
        return name
    # Release 0.1 recorded only the source.
    same = kept["identity"] == evaluation.identity if kept.get("identity") else kept.get("data") == evaluation.data
    return f"{name}-{evaluation.identity[:8]}" if kept and not same else name


def place(source: str) -> str:
    """A path that is the same from every working directory; other sources as they are."""
    path = Path(source).expanduser()
    try:
        # A glob names no file.
        local = path.exists() or path.is_absolute() or any(character in source for character in "*?[")
    except OSError:
        # Too long for a path, such as a source that is given as JSON.
        return source
    return str(path.resolve()) if local else source


def digest(value: Any) -> str:
    """A hash of anything that JSON can hold."""
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def slug(source: str) -> str:
    """Turns a source into a part of a folder's name; not unique."""
    name = re.sub(r"(\.(gz|bz2|xz|zst|zip))?$", "", Path(source).name, flags=re.IGNORECASE)
    name = re.sub(r"(?<=.)\.[A-Za-z]\w{0,9}$", "", name)
    slug = re.sub(r"[^\w]+", "-", name).strip("-") or re.sub(r"[^\w]+", "-", source).strip("-") or "data"
    # File systems allow 255 bytes, and a character may take four.
    return slug.encode()[:120].decode("utf-8", "ignore").rstrip("-")


def check_destination(name_or_path: str, out: Path | None) -> None:
    """Raises before the work if the evaluation cannot be saved, or a link in the model's folder would lead it elsewhere."""
    folder = Destination(name_or_path, None, {}, out, "").folder
    check_is_folder(folder)
    if out is None and Path(name_or_path).is_dir():
        for path in (folder, *(folder.iterdir() if folder.is_dir() else ())):
            check_link(path, Path(name_or_path))
