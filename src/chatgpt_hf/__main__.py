"""`python -m chatgpt_hf`, the command line, for launchers such as torchrun that start a module."""

from chatgpt_hf_cli import main

main()
