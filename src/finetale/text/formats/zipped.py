"""Open a document that is a zip container (docx, odt, epub, xlsx), with limits against zip bombs.

Members are decompressed as they are read, and nothing is written to the disk. Sizes are counted during decompression,
because a header can state any size. Knows nothing of what the members hold.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any

from finetale.text.byte_streams import DAMAGED_HINT
from finetale.text.documents import FileError
from finetale.text.formats.base import SourceFile

OLE_MAGIC = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
"""First bytes of Microsoft's compound files: .doc, .xls, .ppt, and encrypted .docx, .xlsx, .pptx."""
_ENCRYPTED_PACKAGE = "EncryptedPackage".encode("utf-16-le")
_READ_BYTES = 1 << 18
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_OTHER_METHODS = {9: "deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "xz", 99: "AES encryption"}
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, LookupError,
    OverflowError, RuntimeError,
)  # fmt: skip
"""What `zipfile` raises for damaged containers; NotImplementedError is a RuntimeError."""
_BOMB_HINT = "No document that a writing program saves is like this. Leave it out, or save the document again."
_PASSWORD_HINT = "Save it without a password."


@dataclass(frozen=True)
class Limits:
    """Limits of a container.

    Attributes:
        members: number of members.
        directory_bytes: size of the directory at the container's end.
        member_bytes: uncompressed size of one member.
        total_bytes: uncompressed size of all members that are read.
        ratio: uncompressed size divided by compressed size of one member.
        ratio_from_bytes: uncompressed size from which on `ratio` applies.
    """

    members: int = 10_000
    directory_bytes: int = 4 << 20
    member_bytes: int = 512 << 20
    total_bytes: int = 1 << 30
    ratio: int = 200
    ratio_from_bytes: int = 16 << 20


DOCUMENT_LIMITS = Limits()


class Container:
    """An open zip container. A context manager; closing it closes the file.

    Args:
        name: name of the file, for messages.
        file: the container. It is closed with the container, also if this constructor raises.
        limits: limits against zip bombs.

    Attributes:
        infos: the entries of its directory, with folders.

    Raises:
        FileError: it is not a zip file, is encrypted, corrupted or cut off, or exceeds a limit.
    """

    def __init__(self, name: str, file: IO[bytes], limits: Limits = DOCUMENT_LIMITS) -> None:
        self.name = name
        self._limits = limits
        self._file = file
        self._total = 0
        try:
            self._size = file.seek(0, io.SEEK_END)
            file.seek(0)
            head = file.read(len(OLE_MAGIC))
            if head == OLE_MAGIC:
                raise self._compound_file()
            bounded = _Bounded(file, limits.directory_bytes)
            try:
                self._zip = zipfile.ZipFile(bounded)
            except _TooMuch:
                raise self._bomb("the directory of its zip data", limits.directory_bytes) from None
            except _DAMAGE as error:
                if head.startswith(b"PK\x03\x04"):
                    detail = "its zip data is cut off or damaged"
                else:
                    detail = "it is not zip data, as its name says"
                raise FileError(name, None, "damaged", f"{detail} ({error})", DAMAGED_HINT) from None
            bounded.limit = None
            infos = self._zip.infolist()
            if len(infos) > limits.members:
                detail = f"its zip data has {len(infos):,} members, and at most {limits.members:,} are read"
                raise FileError(name, None, "zip_bomb", detail, _BOMB_HINT)
            self.infos = infos
            self._infos = {info.filename: info for info in infos if info.filename and not info.is_dir()}
            self._folded = {_folded(member): member for member in reversed(self._infos)}
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> Container:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._zip.close()
        self._file.close()

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the members that are not folders, in the order of the directory."""
        return tuple(self._infos)

    def find(self, member: str) -> str | None:
        """Return the exact name of a member. Its case, a slash at its start and backslashes make no difference."""
        return member if member in self._infos else self._folded.get(_folded(member))

    def size(self, member: str) -> int:
        """Return the uncompressed size of a member as its header states it."""
        return self._infos[member].file_size

    def blocks(self, member: str) -> Iterator[bytes]:
        """Yield the uncompressed bytes of a member in blocks that are not empty.

        Raises:
            FileError: the member is missing, encrypted or corrupted, has an unknown compression, or exceeds a limit.
        """
        info, limits = self._checked(member), self._limits
        packed = max(1, min(info.compress_size, self._size))
        size = 0
        try:
            with self._zip.open(info) as stream:
                while block := stream.read(_READ_BYTES):
                    size += len(block)
                    self._total += len(block)
                    if size > limits.member_bytes:
                        raise self._bomb(f"the member {info.filename} of its zip data", limits.member_bytes)
                    if self._total > limits.total_bytes:
                        raise self._bomb("its zip data", limits.total_bytes)
                    if size > limits.ratio_from_bytes and size > limits.ratio * packed:
                        detail = (
                            f"the member {info.filename} of its zip data grows to more than {limits.ratio:,} times its "
                            "compressed size"
                        )
                        raise FileError(self.name, None, "zip_bomb", detail, _BOMB_HINT)
                    yield block
        except FileError:
            raise
        except _DAMAGE as error:
            detail = f"the member {info.filename} of its zip data is damaged ({error})"
            raise FileError(self.name, None, "damaged", detail, DAMAGED_HINT) from None

    def read(self, member: str) -> bytes:
        """Return the uncompressed bytes of a member. Raises the errors of `blocks`."""
        return b"".join(self.blocks(member))

    def _checked(self, member: str) -> zipfile.ZipInfo:
        found = self.find(member)
        if found is None:
            detail = f"its zip data has no member {member}"
            raise FileError(self.name, None, "damaged", detail, DAMAGED_HINT)
        info = self._infos[found]
        if info.flag_bits & 1:
            detail = f"the member {found} of its zip data is encrypted"
            raise FileError(self.name, None, "encrypted", detail, _PASSWORD_HINT)
        if info.compress_type not in _METHODS:
            method = _OTHER_METHODS.get(info.compress_type, f"method {info.compress_type}")
            detail = f"the member {found} of its zip data is compressed with {method}, and only deflate is read"
            raise FileError(self.name, None, "compression", detail, "Save the document again, or pack it with deflate.")
        if info.file_size > self._limits.member_bytes:
            raise self._bomb(f"the member {found} of its zip data", self._limits.member_bytes)
        return info

    def _bomb(self, what: str, limit: int) -> FileError:
        detail = f"{what} is larger than {limit >> 20:,} MiB uncompressed, the most that is read"
        return FileError(self.name, None, "zip_bomb", detail, _BOMB_HINT)

    def _compound_file(self) -> FileError:
        """Return the error for a compound file: an encrypted document, or an old one under a new suffix."""
        if holds_encrypted_package(self._file):
            return FileError(self.name, None, "encrypted", "it is encrypted with a password", _PASSWORD_HINT)
        detail = "it is a file of an old Office version (.doc, .xls or .ppt) with another suffix"
        hint = "Save it in the new format, or convert it with `soffice --headless --convert-to docx FILE` (or xlsx)."
        return FileError(self.name, None, "old_office", detail, hint)


def open_container(source: SourceFile, limits: Limits = DOCUMENT_LIMITS) -> Container | None:
    """Open the file that a reader received as a zip container. Its account counts the container's bytes.

    Returns:
        The container; None if the file is empty.

    Raises:
        FileError: as for `Container`, and where the file can't be opened.
    """
    file = source.seekable()
    if not source.account.bytes:
        file.close()
        return None
    return Container(source.name, file, limits)


def holds_encrypted_package(file: IO[bytes]) -> bool:
    """Return whether a compound file is a document that was saved with a password."""
    file.seek(0)
    tail = b""
    while block := file.read(1 << 20):
        if _ENCRYPTED_PACKAGE in tail + block:
            return True
        tail = block[-len(_ENCRYPTED_PACKAGE) :]
    return False


def _folded(member: str) -> str:
    return member.replace("\\", "/").lstrip("/").lower()


class _TooMuch(Exception):
    """More bytes were requested at once than the limit allows."""


class _Bounded:
    """A binary file that refuses large reads, because `zipfile` reads a directory of any size at once."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file = file
        self.limit: int | None = limit

    def read(self, size: int = -1) -> bytes:
        if self.limit is not None and size > self.limit:
            raise _TooMuch
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
