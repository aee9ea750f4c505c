"""Draws docs/images/floors.svg, the floors of the architecture and who imports whom: `python docs/images/floors.py`."""

import sys
from collections.abc import Collection, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

FILE = Path(__file__).with_suffix(".svg")
LINE, LEFT, TOP = 20, 190, 140


def picture(floors: Sequence[str], imports: Collection[tuple[str, str]]) -> str:
    """An SVG with a row and a column for each floor, the highest first, and a dot where the row's imports the column's."""
    size = LINE * len(floors)
    width, height = LEFT + size + 70, TOP + size + 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        "<title>The floors, and which imports which: all dots are right of the diagonal, so imports point downwards.</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>',
    ]
    for index, name in enumerate(floors):
        y, x = TOP + LINE * index, LEFT + LINE * index
        if index % 2 == 0:
            parts.append(f'<rect x="10" y="{y}" width="{LEFT + size - 10}" height="{LINE}" fill="#f1f3f9"/>')
        parts.append(f'<text x="{LEFT - 10}" y="{y + 14}" text-anchor="end">{name}</text>')
        parts.append(f'<text transform="translate({x + 14} {TOP - 8}) rotate(-60)">{name}</text>')
        parts.append(f'<rect x="{x}" y="{y}" width="{LINE}" height="{LINE}" fill="#c5cae9"/>')
    for above, below in sorted(imports, key=lambda pair: (floors.index(pair[0]), floors.index(pair[1]))):
        x, y = (start + LINE * floors.index(name) + LINE // 2 for start, name in ((LEFT, below), (TOP, above)))
        parts.append(f'<circle cx="{x}" cy="{y}" r="5" fill="#3949ab"><title>{above} imports {below}</title></circle>')
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    test = Path(__file__).parents[2] / "tests" / "test_architecture.py"
    spec = spec_from_file_location("test_architecture", test)
    assert spec is not None
    assert spec.loader is not None
    sys.modules["test_architecture"] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    FILE.write_text(picture(module.NAMES, module.imports_between_floors()), encoding="utf-8")
