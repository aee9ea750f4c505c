"""Runs llama.cpp on a GGUF file in a separate process, because a crash in its C++ code ends the process.

Run as a file, so that the process imports nothing else. It reads {"ids": [...], "texts": [...]} as JSON and writes an .npz:
`logits` (seq, vocab), and `text0`, `text1` and so on, the ids of the texts.
"""

import json
import sys
from typing import Any

import numpy as np
from llama_cpp import Llama


def main() -> None:
    """`llama_cpp_logits.py MODEL.gguf RESULT.npz < request.json`"""
    request = json.load(sys.stdin)
    ids = request["ids"]
    # 0 is GGML's float32; the default cache is in float16.
    model = Llama(sys.argv[1], n_ctx=len(ids), logits_all=True, type_k=0, type_v=0, verbose=False)
    model.eval(ids)
    texts: dict[str, Any] = {
        f"text{index}": np.array(model.tokenize(text.encode(), add_bos=False, special=True))
        for index, text in enumerate(request["texts"])
    }
    np.savez(sys.argv[2], logits=model.scores[: len(ids)], **texts)


if __name__ == "__main__":
    main()
