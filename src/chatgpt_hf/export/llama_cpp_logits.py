"""llama.cpp's logits of some ids, in a process of its own: a program in C++ that fails takes its process with it.

Run as a file, so that the process imports nothing else: reads ids as JSON, writes logits (seq, vocab) as .npy.
"""

import json
import sys

import numpy as np
from llama_cpp import Llama


def main() -> None:
    """`llama_cpp_logits.py MODEL.gguf LOGITS.npy < ids.json`"""
    ids = json.load(sys.stdin)
    # 0 is GGML's float32; the default cache is in float16.
    model = Llama(sys.argv[1], n_ctx=len(ids), logits_all=True, type_k=0, type_v=0, verbose=False)
    model.eval(ids)
    np.save(sys.argv[2], model.scores[: len(ids)])


if __name__ == "__main__":
    main()
