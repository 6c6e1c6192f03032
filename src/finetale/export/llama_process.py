"""The process that holds llama.cpp: answers requests on standard input. `llama_cpp` starts it and documents the calls.

llama.cpp ends its process when a file or a request is invalid, so it must not be the process of the user's command.
A request is one line of JSON. The answer is one line of JSON, followed by raw scores if there are any.
"""

from __future__ import annotations

import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

_BATCH = 512
_FILE_TYPES = {"q8_0": 7, "q4_k_m": 15}
"""llama.cpp's numbers of its types of files."""


@cache
def _library() -> Any:
    from cyllama.llama import llama_cpp

    llama_cpp.ggml_backend_load_all()
    llama_cpp.disable_logging()
    return llama_cpp


class Holder:
    """Holds a model and one text."""

    def load(self, file: str, threads: int) -> None:
        """Load a model, with llama.cpp's defaults for keys and values."""
        library = _library()

        class Model(library.LlamaModel):  # type: ignore[misc,name-defined]
            """A model with the size of its vocabulary, which cyllama 0.2 asks for and does not define."""

            @property
            def n_vocab(self) -> int:
                return int(self.get_vocab().n_vocab)

        parameters = library.LlamaModelParams()
        parameters.n_gpu_layers = 0
        self.model = Model(file, parameters)
        self.vocabulary = self.model.get_vocab()
        options = library.LlamaContextParams()
        options.n_ctx = min(self.model.n_ctx_train, 4096)
        options.n_batch = options.n_ubatch = _BATCH
        options.n_threads = options.n_threads_batch = threads
        self.context = library.LlamaContext(self.model, options)
        self.seen = 0

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text; special tokens in it are text."""
        return [int(token) for token in self.vocabulary.tokenize(text, False, False)] if text else []

    def reset(self) -> None:
        """Forget the text."""
        self.context.kv_cache_clear()
        self.seen = 0

    def read(self, ids: list[int]) -> np.ndarray[Any, Any]:
        """Append tokens to the text; return the scores after each of them, (tokens, vocabulary)."""
        batch = _library().LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
        batch.set_batch(ids, self.seen, True)
        self.context.decode(batch)
        self.seen += len(ids)
        return np.stack([np.asarray(self.context.get_logits_ith(row), np.float32) for row in range(len(ids))])

    def quantize(self, source: str, target: str, weights: str, threads: int) -> None:
        """Round the weights of a file, as llama.cpp's `llama-quantize` does."""
        parameters = _library().LlamaModelQuantizeParams()
        parameters.ftype = _FILE_TYPES[weights]
        parameters.nthread = threads
        _library().model_quantize(source, target, parameters)
        if not Path(target).exists():
            raise OSError("no file was written")


def answer_all() -> None:
    """Answer requests until standard input ends. What llama.cpp prints goes to standard error."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    holder = Holder()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        scores = None
        try:
            result = getattr(holder, request["call"])(*request["arguments"])
            if isinstance(result, np.ndarray):
                scores, result = result, list(result.shape)
            answer: dict[str, Any] = {"result": result}
        except Exception as error:
            answer = {"error": f"{error}" or type(error).__name__}
        out.write(json.dumps(answer).encode() + b"\n")
        if scores is not None:
            out.write(scores.tobytes())
        out.flush()


if __name__ == "__main__":
    answer_all()
