"""Runs the tests with another release of transformers: an environment that holds it, and sees all else in the one that runs this.

python conformance/newest.py [--transformers RELEASE] [arguments of pytest]
"""

import argparse
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from environments import install
from index import CACHE, releases


def make_overlay(version: str) -> Path:
    """The interpreter of an environment with this release of transformers in front of this environment's packages."""
    folder = CACHE / f"venv-newest-{version}"
    python, stamp = folder / "bin" / "python", folder / ".complete"
    packages = sysconfig.get_path("purelib")
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != packages:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        install(python, "--no-deps", f"transformers=={version}")
        # After its own, and with the .pth files that lie there, one of which is that of the editable install.
        own = subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        Path(own, "others.pth").write_text(f"import site; site.addsitedir({packages!r})\n", encoding="utf-8")
        script = Path(sys.executable).with_name("chatgpt-hf").read_text(encoding="utf-8").partition("\n")[2]
        command = python.with_name("chatgpt-hf")
        command.write_text(f"#!{python}\n{script}", encoding="utf-8")
        command.chmod(0o755)
        stamp.write_text(packages, encoding="utf-8")
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--transformers", metavar="RELEASE", help="default: the newest that the index has")
    arguments, rest = parser.parse_known_args()
    python = make_overlay(arguments.transformers or str(releases()[-1]))
    os.execv(python, [str(python), "-m", "pytest", *rest])


if __name__ == "__main__":
    main()
