"""A hook of mkdocs: files outside docs/ that a page links to become part of the site, so that every link leads somewhere."""

import re
from pathlib import Path
from posixpath import normpath
from posixpath import relpath as relative
from urllib.parse import urlsplit

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
_LINK = re.compile(r"(?<=\]\()(\.\./[^)\s]+)(?=\))")


def _outside(page: File, target: str) -> Path | None:
    """The file of the repository that a link on a page names, if it is not in docs/."""
    path = normpath(f"docs/{page.src_uri}/../{urlsplit(target).path}")
    return None if path.startswith("docs/") or not (ROOT / path).is_file() else Path(path)


def _place(path: Path) -> str:
    # Browsers show .txt, and offer .py and .yaml to be saved.
    return f"source/{path.as_posix()}" + ("" if path.suffix == ".ipynb" else ".txt")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files that pages link to."""
    for page in files.documentation_pages():
        for target in _LINK.findall(page.content_string):
            path = _outside(page, target)
            if path is not None and files.get_file_from_path(_place(path)) is None:
                files.append(File.generated(config, _place(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points the links to them."""

    def moved(link: re.Match[str]) -> str:
        path = _outside(page.file, link[1])
        return link[1] if path is None else relative(_place(path), page.file.src_uri.rpartition("/")[0] or ".")

    return _LINK.sub(moved, markdown)
