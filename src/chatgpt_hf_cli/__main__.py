"""`python -m chatgpt_hf_cli`."""

from . import main

main()
