"""List and open the members of an archive: zip, and tar, also compressed. Knows nothing of formats and of text.

Nothing is written to the disk, so names such as `../x` and links lead nowhere. Sizes are counted during decompression,
because a header can state any size.
"""

from __future__ import annotations

import bz2
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from finetale.text.byte_streams import BLOCK_BYTES, COMPRESSED, DAMAGED_HINT, UNREADABLE_HINT, uncompressed_blocks
from finetale.text.documents import FileError
from finetale.text.formats import HEAD_BYTES, Format, format_of
from finetale.text.formats.zipped import Container, Limits

MAX_MEMBERS = 100_000
"""Maximum number of members of an archive, folders included."""
MAX_DIRECTORY_BYTES = 32 << 20
"""Maximum size of the directory of a zip archive."""
MAX_HEADER_BYTES = 1 << 20
"""Maximum size of the extended header of a member of a tar archive."""
MAX_MEMBER_BYTES = 4 << 30
"""Maximum uncompressed size of one member."""
MAX_TOTAL_BYTES = 64 << 30
"""Maximum uncompressed size of all members."""
MAX_RATIO = 200
"""Maximum ratio of uncompressed to compressed bytes, of one member and of the archive, above `RATIO_FROM_BYTES`."""
RATIO_FROM_BYTES = 64 << 20
_XZ_BYTES = 256 << 20
"""Maximum memory for unpacking xz."""

_BOMB_HINT = "Unpack it yourself if you trust it, and name the folder."
_LIMITS = Limits(MAX_MEMBERS, MAX_DIRECTORY_BYTES, MAX_MEMBER_BYTES, MAX_TOTAL_BYTES, MAX_RATIO, RATIO_FROM_BYTES)
_TAR = {
    ".tar": "", ".tar.gz": ".gz", ".tgz": ".gz", ".tar.zst": ".zst", ".tzst": ".zst",
    ".tar.bz2": ".bz2", ".tbz2": ".bz2", ".tbz": ".bz2", ".tar.xz": ".xz", ".txz": ".xz",
}  # fmt: skip
"""Suffix of a tar archive → suffix of its compression."""
ARCHIVES = (".zip", *_TAR)
"""Suffixes of archives."""
_OFFICE = (("word", ".docx"), ("xl", ".xlsx"), ("ppt", ".pptx"))
_MIMETYPES = {
    "application/epub+zip": ".epub",
    "application/vnd.oasis.opendocument.text": ".odt",
    "application/vnd.oasis.opendocument.spreadsheet": ".ods",
}
_METHODS = {
    zipfile.ZIP_STORED: "", zipfile.ZIP_DEFLATED: "deflate", zipfile.ZIP_BZIP2: "bzip2", 9: "deflate64",
    zipfile.ZIP_LZMA: "LZMA", 93: "Zstandard", 95: "xz", 98: "PPMd",
}  # fmt: skip
_READ_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)
_UTF8_NAME, _ENCRYPTED = 0x800, 1
_UNICODE_PATH = 0x7075
_LOCAL_HEADER_BYTES = 30


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        path: where it is in the archive.
        open: opens its bytes. If its name ends in .gz or .zst, they are decompressed.
        head: its first bytes, if its name has no suffix.
        locked: the reason why it can't be read, such as "encrypted". Empty if it can.
    """

    path: PurePosixPath
    open: Callable[[], IO[bytes]]
    head: bytes = b""
    locked: str = ""


@dataclass
class Listing:
    """The members of an archive.

    Attributes:
        members: its files, by path. Those of a compressed tar archive have the order of the archive, because going
            back in it means to unpack it again.
        special: names of links, devices and the like.
        mimetype: content of the member `mimetype` at the top, which identifies some documents.
    """

    members: list[Member] = field(default_factory=list)
    special: list[str] = field(default_factory=list)
    mimetype: str = ""


def archive_suffix(path: Path) -> str:
    """Return the suffix that makes a file an archive, such as ".tar.gz". Empty if it has none."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    joined = "".join(suffixes)
    return joined if joined in ARCHIVES else suffixes[-1] if suffixes and suffixes[-1] in ARCHIVES else ""


def document_format(listing: Listing) -> Format | None:
    """Return the format of a document whose container has another suffix or none. None for an archive."""
    names = {str(member.path) for member in listing.members}
    suffix = _MIMETYPES.get(listing.mimetype, "")
    if "[Content_Types].xml" in names:
        folders = {name.partition("/")[0] for name in names}
        suffix = next((suffix for folder, suffix in _OFFICE if folder in folders), "")
    return format_of(Path(f"document{suffix}"))


_listed: dict[tuple[str, int, int], Listing] = {}
"""Listings by path, size and modification time, because listing a compressed tar archive reads all of it."""


def list_archive(path: Path, suffix: str) -> Listing:
    """Return the members of an archive.

    Raises:
        FileError: it can't be opened, is damaged, or exceeds a limit.
    """
    try:
        facts = path.stat()
        key = (str(path.absolute()), facts.st_size, facts.st_mtime_ns)
        if key not in _listed:
            compression = _TAR.get(suffix, "")
            listing = _list_zip(path) if suffix == ".zip" else _list_tar(path, compression)
            if not compression:
                listing.members.sort(key=lambda member: member.path.parts)
            _listed[key] = listing
        return _listed[key]
    except OSError as error:
        raise FileError(
            str(path), None, "unreadable", f"can't be read ({error.strerror or error})", UNREADABLE_HINT
        ) from None


# -- limits


class _Meter:
    """Counts the uncompressed bytes of an archive's members."""

    def __init__(self, name: str, packed: int) -> None:
        self._name = name
        self._packed = max(1, packed)
        self._sizes: dict[int, int] = {}
        self._total = 0

    def counted(self, blocks: Iterator[bytes], key: int, packed: int) -> Iterator[bytes]:
        """Yield the blocks of a member. `key` identifies it; `packed` is its compressed size.

        Raises:
            FileError: a limit is exceeded.
        """
        size, packed = 0, max(1, min(packed, self._packed))
        for block in blocks:
            size += len(block)
            if size > self._sizes.get(key, 0):  # not read before
                self._total += size - self._sizes.get(key, 0)
                self._sizes[key] = size
            _check_size(self._name, "a member", size, packed, MAX_MEMBER_BYTES)
            _check_size(self._name, "the archive", self._total, self._packed, MAX_TOTAL_BYTES)
            yield block


def _check_size(name: str, what: str, size: int, packed: int, most: int) -> None:
    if size > most:
        detail = f"can't be read ({what} unpacks to more than {most >> 30} GiB)"
    elif size > RATIO_FROM_BYTES and size > MAX_RATIO * packed:
        detail = f"can't be read ({what} unpacks to more than {MAX_RATIO} times its size)"
    else:
        return
    raise FileError(name, None, "unreadable", detail, _BOMB_HINT)


def _too_many(name: str) -> FileError:
    return FileError(name, None, "unreadable", f"can't be read (it has over {MAX_MEMBERS:,} members)", _BOMB_HINT)


# -- zip


def _list_zip(path: Path) -> Listing:
    name = str(path)
    listing = Listing()
    meter = _Meter(name, path.stat().st_size)
    try:
        with Container(name, path.open("rb"), _LIMITS) as container:
            infos = container.infos
    except FileError as error:
        hint = _BOMB_HINT if error.kind == "zip_bomb" else error.hint
        raise FileError(name, None, "unreadable", f"can't be read ({error.detail})", hint) from None
    for info in infos:
        where = _inside(_zip_name(info))
        if info.is_dir() or info.orig_filename.endswith("\\") or where is None:
            continue
        mode = info.external_attr >> 16
        if mode and (mode & 0o170000) not in (0, 0o100000):
            listing.special.append(str(where))
            continue
        locked = ""
        if info.flag_bits & _ENCRYPTED:
            locked = "encrypted"
        elif info.compress_type not in _READ_METHODS:
            locked = f"compressed with {_METHODS.get(info.compress_type, f'method {info.compress_type}')}"
        opened = partial(_open_zip_member, path, where, info, meter)
        head = b""
        if not where.suffix and not locked:
            with opened() as file:
                head = file.read(HEAD_BYTES)
        if str(where) == "mimetype":
            listing.mimetype = head.decode("ascii", "replace").strip()
        listing.members.append(Member(where, opened, head, locked))
    return listing


def _open_zip_member(path: Path, where: PurePosixPath, info: zipfile.ZipInfo, meter: _Meter) -> IO[bytes]:
    blocks = _decompressed(_joined(path, where), _zip_blocks(path, where, info), where.suffix.lower())
    return _as_file(meter.counted(blocks, info.header_offset, info.compress_size))


def _zip_blocks(path: Path, where: PurePosixPath, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the uncompressed bytes of a member. Its data is found through the directory, without reading that again."""
    name = _joined(path, where)
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER_BYTES)
        if len(header) < _LOCAL_HEADER_BYTES or not header.startswith(b"PK\x03\x04"):
            raise _damaged(name, "its header is missing")
        file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), io.SEEK_CUR)
        checksum = size = 0
        for block in _unpacked(name, _at_most(file, info.compress_size), info.compress_type):
            checksum = zlib.crc32(block, checksum)
            size += len(block)
            yield block
    if size < info.file_size:
        raise _damaged(name, "it is cut off before the end")
    if checksum != info.CRC:
        raise _damaged(name, "its checksum is wrong")


def _unpacked(name: str, packed: Iterator[bytes], method: int) -> Iterator[bytes]:
    if method == zipfile.ZIP_STORED:
        yield from packed
    elif method == zipfile.ZIP_BZIP2:
        yield from _stream_blocks(name, packed, bz2.BZ2Decompressor)
    else:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            for data in packed:
                while data:
                    if block := inflater.decompress(data, BLOCK_BYTES):
                        yield block
                    data = inflater.unconsumed_tail
            if block := inflater.flush():
                yield block
        except zlib.error as error:
            raise _damaged(name, str(error)) from None


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Return the name of a member. Old programs write it in UTF-8, GBK or the code page of DOS and do not say which."""
    name = info.orig_filename
    if info.flag_bits & _UTF8_NAME:
        found = name
    else:
        raw = name.encode("cp437")
        found = _unicode_path(info.extra, raw) or _decoded(raw)
    return found if "/" in found else found.replace("\\", "/")


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """Return the name in Info-ZIP's extra field, if there is one for this name."""
    while len(extra) >= 4:
        kind, size = int.from_bytes(extra[:2], "little"), int.from_bytes(extra[2:4], "little")
        content, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == _UNICODE_PATH and content[:1] == b"\x01" and content[1:5] == zlib.crc32(raw).to_bytes(4, "little"):
            return content[5:].decode("utf-8", "replace")
    return None


def _decoded(raw: bytes) -> str:
    for encoding in ("utf-8", "gb2312"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            pass
    return raw.decode("cp437")


# -- tar


def _list_tar(path: Path, compression: str) -> Listing:
    name = str(path)
    source = _TarFile(path, compression)
    listing = Listing()
    try:
        with source.open() as stream:
            bounded = _Bounded(stream)
            tar = tarfile.TarFile(fileobj=bounded, encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]
            count = 0
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]
                if (count := count + 1) > MAX_MEMBERS:
                    raise _too_many(name)
                where = _inside(_decoded(member.name.encode("utf-8", "surrogateescape")))
                if where is None or member.isdir():
                    pass
                elif not member.isreg() or member.issparse():
                    listing.special.append(str(where))
                else:
                    head = b"" if where.suffix else bounded.read(min(member.size, HEAD_BYTES))
                    at = member.offset_data
                    source.end = at + member.size
                    listing.members.append(Member(where, partial(source.open_member, where, at, member.size), head))
            if bounded.last.strip(b"\0"):  # TarFile ends silently at a header that is damaged
                raise tarfile.ReadError("a header is damaged")
            while stream.read(BLOCK_BYTES):  # the checksum is at the end of the compressed data
                pass
    except _TooMuch:
        raise FileError(name, None, "unreadable", "can't be read (a header is too large)", _BOMB_HINT) from None
    except FileError as error:
        detail = error.detail if error.detail.startswith("can't be read") else f"can't be read ({error.detail})"
        raise FileError(name, None, "unreadable", detail, error.hint) from None
    except (tarfile.TarError, ValueError, EOFError) as error:
        detail = f"can't be read (its tar data is damaged: {error})"
        raise FileError(name, None, "unreadable", detail, DAMAGED_HINT) from None
    return listing


class _TarFile:
    """The uncompressed bytes of a tar archive. Its members share one stream, which restarts to go back."""

    def __init__(self, path: Path, compression: str) -> None:
        self._path = path
        self._compression = compression
        self._packed = path.stat().st_size
        self._meter = _Meter(str(path), self._packed)
        self.end = 0  # of the last member
        self._shared: IO[bytes] | None = None
        self._position = 0

    def open(self) -> IO[bytes]:
        """Open the archive. A compressed one can be read forwards only."""
        return _as_file(self._blocks()) if self._compression else self._path.open("rb")

    def _blocks(self) -> Iterator[bytes]:
        size = 0
        with self._path.open("rb") as file:
            packed = iter(partial(file.read, 1 << 13), b"")
            for block in _decompressed(str(self._path), packed, self._compression):
                size += len(block)
                _check_size(str(self._path), "the archive", size, self._packed, MAX_TOTAL_BYTES)
                yield block

    def open_member(self, where: PurePosixPath, offset: int, size: int) -> IO[bytes]:
        """Open the member at an offset."""
        name = _joined(self._path, where)
        blocks = _decompressed(name, self._member_blocks(name, offset, size), where.suffix.lower())
        return _as_file(self._meter.counted(blocks, offset, size))

    def _member_blocks(self, name: str, offset: int, size: int) -> Iterator[bytes]:
        if not self._compression:
            with self._path.open("rb") as file:
                file.seek(offset)
                yield from _at_most(file, size)
            return
        end = offset + size
        while offset < end:
            self._go_to(name, offset)
            block = self._read(name, end - offset)
            offset += len(block)
            if self._shared is not None and offset >= self.end:
                self._shared.close()
                self._shared = None
            yield block

    def _go_to(self, name: str, offset: int) -> None:
        if self._shared is None or self._position > offset:
            self._shared, self._position = self.open(), 0
        while self._position < offset:
            self._read(name, offset - self._position)

    def _read(self, name: str, size: int) -> bytes:
        assert self._shared is not None
        block = self._shared.read(min(BLOCK_BYTES, size))
        self._position += len(block)
        if not block:
            raise _damaged(name, "it is cut off before the end")
        return block


class _TooMuch(Exception):
    """More bytes were requested at once than the limit allows."""


class _Bounded:
    """A file for `tarfile` that can seek forwards. It refuses large reads, because a header can state any size."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._position = 0
        self.last = b""

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position or position > MAX_TOTAL_BYTES:
            raise tarfile.ReadError("a header points back")
        while self._position < position:
            if not self._take(min(BLOCK_BYTES, position - self._position)):
                raise tarfile.ReadError("it is cut off before the end")

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise _TooMuch
        self.last = self._take(size)
        return self.last

    def _take(self, size: int) -> bytes:
        block = self._file.read(size)
        self._position += len(block)
        return block


# -- streams


def _decompressed(name: str, packed: Iterator[bytes], suffix: str) -> Iterator[bytes]:
    """Yield the bytes of a file with this suffix. Other suffixes than those of compressed files change nothing."""
    if suffix == ".bz2":
        return _stream_blocks(name, packed, bz2.BZ2Decompressor)
    if suffix == ".xz":
        return _stream_blocks(name, packed, partial(lzma.LZMADecompressor, memlimit=_XZ_BYTES))
    if suffix in COMPRESSED:
        return uncompressed_blocks(name, _as_file(packed), suffix)
    return packed


def _stream_blocks(name: str, packed: Iterator[bytes], make: Callable[[], Any]) -> Iterator[bytes]:
    """Yield what a decompressor of bz2 or lzma makes of the data, in blocks of bounded size."""
    unpacker, started = make(), False
    try:
        for data in packed:
            while data or not unpacker.needs_input:
                started = True
                if block := unpacker.decompress(data, BLOCK_BYTES):
                    yield block
                data = unpacker.unused_data if unpacker.eof else b""
                if unpacker.eof:
                    unpacker, started = make(), False
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise _damaged(name, str(error)) from None
    if started:
        raise _damaged(name, "it is cut off before the end")


def _at_most(file: IO[bytes], size: int) -> Iterator[bytes]:
    while size > 0 and (block := file.read(min(BLOCK_BYTES, size))):
        size -= len(block)
        yield block


class _BlockFile(io.RawIOBase):
    """The bytes of blocks as a file that is read forwards."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._blocks, b""))
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def close(self) -> None:
        if not self.closed and isinstance(self._blocks, Generator):
            self._blocks.close()
        super().close()


def _as_file(blocks: Iterator[bytes]) -> IO[bytes]:
    return io.BufferedReader(_BlockFile(blocks), BLOCK_BYTES)


# -- names


def _inside(name: str) -> PurePosixPath | None:
    """Return where a member is in its archive. Parts that lead out of the archive are left out of its name."""
    parts = [part for part in name.split("\0")[0].split("/") if part not in ("", ".", "..")]
    if parts and len(parts[0]) == 2 and parts[0][1] == ":":  # the letter of a drive
        parts = parts[1:]
    return PurePosixPath(*parts) if parts else None


def _joined(path: Path, where: PurePosixPath) -> str:
    return f"{path}/{where}"


def _damaged(name: str, detail: str) -> FileError:
    return FileError(name, None, "damaged", f"its data in the archive is damaged ({detail})", DAMAGED_HINT)
