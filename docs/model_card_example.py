"""Makes docs/model-card-example.md of a model's README.md: `python docs/model_card_example.py runs/quickstart < commands`."""

import re
import sys
from pathlib import Path

PREFACE = """\
<!-- Made by docs/model_card_example.py. -->

# Example model card

`chatgpt-hf card` made this card for a chat model, with these commands:

```text
{commands}
```

The metadata comes first. Links to files in the model's folder are shown as file names here.

```yaml
{metadata}
```

"""


def page(card: str, commands: str) -> str:
    """A card as a page: metadata shown, its title left out, and no links to what is not here."""
    _, metadata, text = card.split("---\n", 2)
    text = re.sub(r"^# .*\n", "", text.strip(), count=1).strip()
    text = re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"`\1`", text)
    return PREFACE.format(commands=commands.strip(), metadata=metadata.strip()) + text + "\n"


if __name__ == "__main__":
    file = Path(sys.argv[1]) / "README.md"
    made = page(file.read_text(encoding="utf-8"), sys.stdin.read())
    Path(__file__).with_name("model-card-example.md").write_text(made, encoding="utf-8")
