"""A process that encodes texts for another one: read them from standard input, write their ids to standard output.

The first text is the tokenizer as JSON. The process ends when its input does, as when the other process was killed.
"""

from __future__ import annotations

import contextlib
import os

from tokenizers import Tokenizer

from finetale.tokenizing import PieceEncoder
from finetale.tokenizing.processes import receive_texts, send_ids


def main() -> None:
    """Answer requests until the input ends."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):  # what a library prints must not come between the answers
        os.dup2(nothing, stream)
    first = receive_texts(requests)
    encoder = PieceEncoder(Tokenizer.from_str(first[0])) if first else None
    while encoder is not None and (texts := receive_texts(requests)) is not None:
        with contextlib.suppress(BrokenPipeError):  # the input ends too
            send_ids(answers, encoder.encode(texts))


if __name__ == "__main__":
    main()
