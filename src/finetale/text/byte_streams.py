"""Read the bytes of one file in blocks: plain, gzip, Zstandard, standard input. Knows nothing of text."""

from __future__ import annotations

import gzip
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import zstandard

from finetale.text.documents import FileError

BLOCK_BYTES = 1 << 20
ZSTD_INPUT_BYTES = 1 << 13
"""Bytes that are decompressed at once: 4 of them can become 128 KiB, so 8 KiB at most 256 MiB."""
COMPRESSED = (".gz", ".zst")
STANDARD_INPUT = "-"

UNREADABLE_HINT = "Check the file and its permissions, or leave such files out with --skip-unreadable."
DAMAGED_HINT = "Get the file again, or unpack the intact part of it and use that."


def blocks(name: str, path: Path | None, open_member: Callable[[], IO[bytes]] | None = None) -> Iterator[bytes]:
    """Yield the uncompressed bytes of a file in blocks that are not empty. `path` None means standard input.

    Args:
        open_member: opens a member of the archive `path`, whose bytes are yielded instead.

    Raises:
        FileError: the file can't be opened or read, or its compressed data is corrupted or cut off.
    """
    try:
        if path is None:
            yield from _stdin_blocks(name)
            return
        with path.open("rb") if open_member is None else open_member() as file:
            yield from uncompressed_blocks(name, file, path.suffix.lower() if open_member is None else "")
    except OSError as error:
        raise FileError(
            name,
            None,
            "unreadable",
            f"can't be read ({error.strerror or error})",
            UNREADABLE_HINT,
        ) from None


def uncompressed_blocks(name: str, file: IO[bytes], suffix: str) -> Iterator[bytes]:
    """Yield the uncompressed bytes of an open file. Suffixes other than .gz and .zst mean that it is not compressed.

    Raises:
        FileError: its compressed data is corrupted or cut off.
    """
    if suffix == ".gz":
        yield from _gzip_blocks(name, file)
    elif suffix == ".zst":
        yield from _zstd_blocks(name, file)
    else:
        while block := file.read(BLOCK_BYTES):
            yield block


def seekable(name: str, path: Path) -> IO[bytes]:
    """Open a file for random access. The caller closes it. A compressed file is unpacked to a temporary file.

    Raises:
        FileError: as for `blocks`.
    """
    if path.suffix.lower() not in COMPRESSED:
        try:
            return path.open("rb")
        except OSError as error:
            reason = f"can't be read ({error.strerror or error})"
            raise FileError(name, None, "unreadable", reason, UNREADABLE_HINT) from None
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the caller
    try:
        for block in blocks(name, path):
            file.write(block)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file


def _stdin_blocks(name: str) -> Iterator[bytes]:
    hint = "Send text into it, as in `cat story.txt | finetale check -`, or name a file."
    if sys.stdin is None or sys.stdin.closed:
        raise FileError(name, None, "closed", "standard input is closed", hint)
    if sys.stdin.isatty():
        raise FileError(name, None, "terminal", "standard input is a terminal, not text", hint)
    while block := sys.stdin.buffer.read(BLOCK_BYTES):
        yield block


def _gzip_blocks(name: str, file: IO[bytes]) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=file) as stream:
            while block := stream.read(BLOCK_BYTES):
                yield block
    except EOFError:
        raise FileError(name, None, "damaged", "its gzip data is cut off before the end", DAMAGED_HINT) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise FileError(name, None, "damaged", f"its gzip data is damaged ({error})", DAMAGED_HINT) from None


def _zstd_blocks(name: str, file: IO[bytes]) -> Iterator[bytes]:
    # zstandard's stream reader ends silently where a frame is cut off, so the frames are decompressed one by one here.
    make = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
    frame, started = make(), False
    try:
        while data := file.read(ZSTD_INPUT_BYTES):
            while data:
                started = True
                block = frame.decompress(data)
                if block:
                    yield block
                data = frame.unused_data if frame.eof else b""
                if frame.eof:
                    frame, started = make(), False
    except zstandard.ZstdError as error:
        raise FileError(name, None, "damaged", f"its Zstandard data is damaged ({error})", DAMAGED_HINT) from None
    if started:
        raise FileError(name, None, "damaged", "its Zstandard data is cut off before the end", DAMAGED_HINT)
