"""Encode texts in other processes, in the given order. Each process runs `python -m finetale.tokenizing`.

Most of the time of encoding is Python looking up pieces, so threads do not help. A request to a process is the length
of each text and all texts in UTF-8. The answer is the number of ids of each text and all ids. If a process ends early,
as when memory runs out, all are ended and the caller encodes the texts itself. The ids do not depend on who does it.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from finetale.environment import available_memory, num_cores

MOST_PROCESSES = 3
"""Maximum default number of processes. Reading and writing in the calling process is slower than more of them."""
_PROCESS_BYTES = 500 << 20
"""Free memory that the default number needs per process. A process takes 100 to 300 MB."""
_PATIENCE = 5.0
"""Seconds to wait for the exit code of a process that has closed its output."""
_SIZES = struct.Struct("<QQ")


def default_processes() -> int:
    """Return the number of processes that encode a large text beside this one: the idle cores that have memory."""
    return max(0, min(num_cores() - 1, MOST_PROCESSES, available_memory() // _PROCESS_BYTES - 1))


class EncodingStoppedError(Exception):
    """A process that encodes texts has ended early. The message is the end of a sentence about it."""


class EncodingProcesses:
    """Encodes lists of texts in other processes. Use it as a context manager, which ends the processes.

    Args:
        rules: the tokenizer as JSON. It must be one for which `PieceEncoder` is exact.
        number: the number of processes.

    Raises:
        EncodingStoppedError: a process can't be started.
    """

    def __init__(self, rules: str, number: int) -> None:
        self.number = number
        self._processes: list[subprocess.Popen[bytes]] = []
        self._free: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(number, thread_name_prefix="finetale-encode")
        self._rules = rules
        self._ready: set[int] = set()  # PIDs of the processes that have the tokenizer

    def __enter__(self) -> Self:
        try:
            for _ in range(self.number):
                process = subprocess.Popen(
                    # -P: a module in the current folder must not replace a package.
                    [sys.executable, "-P", "-m", "finetale.tokenizing"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for this process, which then ends the others
                )
                self._processes.append(process)
                self._free.put(process)
        except OSError as error:
            self.__exit__()
            raise EncodingStoppedError(f"can't be started ({error.strerror})") from error
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)  # no thread waits for a process that was killed
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what it did not read
                        pipe.close()
            process.wait()

    def encode(self, texts: Sequence[str]) -> Future[list[NDArray[np.int64]]]:
        """Encode texts in the next free process. The result may raise EncodingStoppedError."""
        return self._threads.submit(self._encode, texts)

    def _encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        process = self._free.get()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if process.pid not in self._ready:
                send_texts(process.stdin, [self._rules])
                self._ready.add(process.pid)
            send_texts(process.stdin, texts)
            answer = receive_ids(process.stdout)
        except OSError:  # it has ended
            answer = None
        finally:
            self._free.put(process)
        if answer is None:
            raise EncodingStoppedError(_how_ended(process))
        return answer


def _how_ended(process: subprocess.Popen[bytes]) -> str:
    try:
        code = process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        return "closed its output"
    return f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended early (exit code {code})"


def send_texts(pipe: IO[bytes], texts: Sequence[str]) -> None:
    """Write texts to a pipe."""
    lengths = np.array([len(text) for text in texts], "<i8")
    data = "".join(texts).encode()
    _send(pipe, lengths, data)


def receive_texts(pipe: IO[bytes]) -> list[str] | None:
    """Read texts from a pipe. None at its end."""
    if (found := _receive(pipe)) is None:
        return None
    lengths, data = found
    text, ends = data.decode(), np.cumsum(lengths).tolist()
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def send_ids(pipe: IO[bytes], encoded: Sequence[NDArray[np.int64]]) -> None:
    """Write the ids of texts to a pipe."""
    lengths = np.array([len(ids) for ids in encoded], "<i8")
    _send(pipe, lengths, np.concatenate([np.zeros(0, np.int64), *encoded]).astype("<u4").tobytes())


def receive_ids(pipe: IO[bytes]) -> list[NDArray[np.int64]] | None:
    """Read the ids of texts from a pipe. None at its end."""
    if (found := _receive(pipe)) is None:
        return None
    lengths, data = found
    ids = np.frombuffer(data, "<u4").astype(np.int64)
    return np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else []


def _send(pipe: IO[bytes], lengths: NDArray[Any], data: bytes) -> None:
    pipe.write(_SIZES.pack(len(lengths), len(data)))
    pipe.write(lengths.tobytes())
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> tuple[NDArray[np.int64], bytes] | None:
    head = pipe.read(_SIZES.size)
    if len(head) < _SIZES.size:
        return None
    number, size = _SIZES.unpack(head)
    lengths, data = pipe.read(8 * number), pipe.read(size)
    if len(lengths) + len(data) < 8 * number + size:
        return None
    return np.frombuffer(lengths, "<i8").astype(np.int64), data
