"""Makes `tiny_model.py` importable: with `importlib` import mode, pytest does not put this folder on the path."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_SPEC = spec_from_file_location("tiny_model", Path(__file__).with_name("tiny_model.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
sys.modules["tiny_model"] = module_from_spec(_SPEC)
_SPEC.loader.exec_module(sys.modules["tiny_model"])
