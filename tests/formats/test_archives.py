"""Test that an archive reads like the packed folder, and the errors for bombs and damaged archives."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from finetale.config import TextSettings
from finetale.errors import SourceError
from finetale.text import archives
from finetale.text.account import TextReport
from finetale.text.fingerprint import file_hashes
from finetale.text.reading import read_parts
from finetale.text.sources import Search, find_inputs

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz")
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    "gz": gzip.compress,
    "tgz": gzip.compress,
    "zst": zstandard.compress,
    "tzst": zstandard.compress,
    "bz2": bz2.compress,
    "tbz2": bz2.compress,
    "tbz": bz2.compress,
    "xz": lzma.compress,
    "txz": lzma.compress,
}
FILES: dict[str, bytes] = {
    "a.txt": b"The first tale.\n" * 20,
    "part/b.md": "Ünïcode in the second.\n".encode(),
    "part/c.jsonl": b'{"text": "one"}\n{"text": "two"}\n',
    "part/d.csv": b"title,text\nx,three little words\n",
    "part/deep/e.txt.gz": gzip.compress(b"packed twice\n"),
    "part/f.txt.zst": zstandard.compress(b"packed twice by another\n"),
    "README": b"A file without a suffix.\n",
    "part/picture.png": b"\x89PNG\r\n\x1a\n" + b"\0" * 50,
    ".DS_Store": b"\0\0\0\1Bud1",
    "~$ovel.docx": b"\x06Author" + b"\0" * 155,
    "part/.hidden/x.txt": b"hidden",
    "part/.hidden/y.txt": b"hidden",
    "run/run.json": b"{}",
    "run/config.yaml": b"a: 1",
    "run/notes.txt": b"of a run",
    "empty.txt": b"",
}
ARCHIVES_WITHIN = {"part/inner.zip": b"PK\x03\x04", "part/inner.tar.gz": b"\x1f\x8b"}


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """Write an archive of the type of its suffix."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    kind = path.suffix.removeprefix(".").replace("tar", "")
    path.write_bytes(PACKERS[kind](data.getvalue()))
    return path


def unpack(folder: Path, files: dict[str, bytes]) -> Path:
    """Write the files to a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def read(*sources: Path, **settings: Any) -> tuple[list[tuple[str, int, str]], dict[str, Any]]:
    """Return (source, line, text) of each part, and the report."""
    fractions = {"validation_fraction": 0, "test_fraction": 0}
    parts, report = read_parts([str(source) for source in sources], TextSettings(**fractions | settings))
    return [(part.source, part.line, part.text) for part in parts], report.to_dict()


def refusal(path: Path, **settings: Any) -> str:
    """Read a file that is refused; return the error message."""
    with pytest.raises(SourceError) as error:
        read(path, **settings)
    return error.value.message.replace(str(path), path.name)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_archive_reads_like_the_packed_folder(suffix: str, tmp_path: Path) -> None:
    assert set(SUFFIXES) == set(archives.ARCHIVES)
    folder = unpack(tmp_path / "folder", FILES)
    archive = pack(tmp_path / f"book{suffix}", FILES | ARCHIVES_WITHIN)
    expected, folder_report = read(folder)
    found, report = read(archive)
    renamed = [(source.replace(str(archive), str(folder)), line, text) for source, line, text in found]
    if suffix in (".zip", ".tar"):  # compressed tar archives are read in archive order
        assert renamed == expected
    assert sorted(renamed) == sorted(expected)
    assert len(found) == 8
    assert folder_report["skipped"]["other"] == {".png": 1}
    others = {".gz": 1, ".png": 1, ".zip": 1}
    assert report["skipped"] == folder_report["skipped"] | {"other": others}
    assert (report["skipped"]["hidden"], report["skipped"]["run_directories"], report["skipped"]["empty"]) == (3, 1, 1)
    assert {Path(each["file"]).name: each["bytes"] for each in report["files"]} == {
        Path(each["file"]).name: each["bytes"] for each in folder_report["files"]
    }
    names = report["skipped_names"]
    assert names["hidden"] == [f"{archive}/.DS_Store", f"{archive}/part/.hidden", f"{archive}/~$ovel.docx"]
    assert f"{archive}/part/picture.png" in names["other"]


def test_archives_in_a_folder_are_read(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "folder", {"a.txt": b"first", "z.txt": b"last"})
    pack(folder / "b.zip", {"x.txt": b"second", "n.bin": b"\0\1"})
    pack(folder / "c.tar.gz", {"y.txt": b"third"})
    found, report = read(folder)
    assert [(Path(source).relative_to(folder).as_posix(), text) for source, _, text in found] == [
        ("a.txt", "first"), ("b.zip/x.txt", "second"), ("c.tar.gz/y.txt", "third"), ("z.txt", "last"),
    ]  # fmt: skip
    assert report["skipped"]["other"] == {".bin": 1}


def test_held_out_text_can_be_an_archive(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "folder", {"a.txt": b"for training"})
    held_out = pack(folder / "held.zip", {"x.txt": b"for validation"})
    parts, report = read_parts([str(folder)], TextSettings(validation=(str(held_out),)))
    assert [(part.split, part.text) for part in parts] == [("validation", "for validation"), ("train", "for training")]
    assert report.to_dict()["skipped"]["held_out_files"] == 1


def test_an_archive_is_hashed_once(tmp_path: Path) -> None:
    folder = unpack(tmp_path / "folder", {"a.txt": b"plain"})
    archive = pack(folder / "b.zip", {"x.txt": b"one", "y.txt": b"two"})
    hashes = file_hashes([str(folder), str(archive)], TextSettings())
    assert hashes is not None
    assert [name for (_, name), _ in hashes] == [str(folder / "a.txt"), str(archive), str(archive)]


def test_member_names_cannot_leave_the_archive_and_links_are_counted(tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for name in ("../../outside.txt", "/etc/absolute.txt", "in/./side.txt"):
            entry = tarfile.TarInfo(name)
            entry.size = 4
            tar.addfile(entry, io.BytesIO(b"text"))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            entry = tarfile.TarInfo(f"special{kind.decode()}.txt")
            entry.type, entry.linkname = kind, "/etc/passwd"
            tar.addfile(entry)
    path = tmp_path / "slips.tar"
    path.write_bytes(data.getvalue())
    found, report = read(path, deduplicate="off")
    names = ["slips.tar/etc/absolute.txt", "slips.tar/in/side.txt", "slips.tar/outside.txt"]
    assert sorted(source.removeprefix(f"{tmp_path}/") for source, _, _ in found) == names
    assert report["skipped"]["special"] == 4

    zipped = tmp_path / "slips.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        link = zipfile.ZipInfo("link.txt")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("C:/../drive.txt", "text")
        archive.writestr("__MACOSX/._drive.txt", "text")
    found, report = read(zipped)
    assert [source for source, _, _ in found] == [f"{zipped}/drive.txt"]
    assert (report["skipped"]["special"], report["skipped"]["hidden"]) == (1, 1)


def raw_zip(
    path: Path, name: bytes, content: bytes, *, flags: int = 0, method: int = 0, size: int | None = None
) -> Path:
    """Write a zip archive with one uncompressed member and a header that can be wrong."""
    size = len(content) if size is None else size
    fields = struct.pack("<HHHHHIIIHH", 20, flags, method, 0, 0, zlib.crc32(content), len(content), size, len(name), 0)
    local = b"PK\x03\x04" + fields + name + content
    directory = b"PK\x01\x02" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(directory), len(local), 0)
    path.write_bytes(local + directory + end)
    return path


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("第一章.txt".encode(), "第一章.txt"),
        ("第一章.txt".encode("gbk"), "第一章.txt"),
        ("Märchen.txt".encode(), "Märchen.txt"),
        ("Märchen.txt".encode("cp437"), "Märchen.txt"),
        (b"back\\slash.txt", "back/slash.txt"),
        (b"bell\x07.txt", "bell\\x07.txt"),
    ],
)
def test_names_of_members_are_decoded(raw: bytes, shown: str, tmp_path: Path) -> None:
    path = raw_zip(tmp_path / "names.zip", raw, b"text")
    found, _ = read(path)
    assert found == [(f"{path}/{shown}", 1, "text")]


def test_unreadable_members_are_reported_in_one_sentence(tmp_path: Path) -> None:
    encrypted = raw_zip(tmp_path / "encrypted.zip", b"a.txt", b"secret", flags=1)
    assert refusal(encrypted) == "encrypted.zip: can't be read (a.txt in it is encrypted)."
    deflate64 = raw_zip(tmp_path / "deflate64.zip", b"a.txt", b"secret", method=9)
    assert refusal(deflate64) == "deflate64.zip: can't be read (a.txt in it is compressed with deflate64)."
    folder = unpack(tmp_path / "folder", {"a.txt": b"plain"})
    encrypted.rename(folder / "encrypted.zip")
    found, report = read(folder, skip_unreadable=True)
    assert [text for _, _, text in found] == ["plain"]
    assert report["skipped"]["unreadable"] == 1
    nothing = pack(tmp_path / "nothing.tar", {"a.png": b"\x89PNG"})
    assert refusal(nothing) == "nothing.tar: holds no file that can be read (1 of other kinds)."


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_cut_or_changed_archive_is_an_error(suffix: str, tmp_path: Path) -> None:
    path = pack(tmp_path / f"book{suffix}", {f"{n}.txt": b"%d words " % n * 2000 for n in range(5)})
    data = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        assert "read (" in refusal(path)
    path.write_bytes(b"no archive at all")
    assert "can't be read (" in refusal(path)


def test_a_damaged_header_or_member_is_an_error(tmp_path: Path) -> None:
    tar = pack(tmp_path / "book.tar", {"a.txt": b"first", "b.txt": b"second"})
    data = bytearray(tar.read_bytes())
    data[1024 + 3] ^= 0xFF  # the header of b.txt
    tar.write_bytes(data)
    assert refusal(tar) == "book.tar: can't be read (its tar data is damaged: a header is damaged)."
    path = raw_zip(tmp_path / "changed.zip", b"a.txt", b"the words")
    path.write_bytes(path.read_bytes().replace(b"the words", b"the sword", 1))
    expected = "changed.zip/a.txt: its data in the archive is damaged (its checksum is wrong)."
    assert refusal(path) == expected
    longer = raw_zip(tmp_path / "longer.zip", b"a.txt", b"the words", size=100)
    assert refusal(longer) == "longer.zip/a.txt: its data in the archive is damaged (it is cut off before the end)."


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz", ".tar.zst", ".tar.bz2", ".tar.xz"])
def test_bombs_are_stopped_by_their_ratio(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "RATIO_FROM_BYTES", 1 << 20)
    path = pack(tmp_path / f"bomb{suffix}", {"a.txt": b"a" * (8 << 20)})
    what = "a member" if suffix == ".zip" else "the archive"
    assert refusal(path).endswith(f"can't be read ({what} unpacks to more than 200 times its size).")


def test_bombs_in_one_member_or_in_many_members_are_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "RATIO_FROM_BYTES", 1 << 20)
    inner = pack(tmp_path / "inner.zip", {"a.txt.gz": gzip.compress(b"a" * (8 << 20))})
    assert refusal(inner).endswith("can't be read (a member unpacks to more than 200 times its size).")
    monkeypatch.setattr(archives, "RATIO_FROM_BYTES", 64 << 20)
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 1 << 20)
    assert refusal(inner).endswith("can't be read (a member unpacks to more than 0 GiB).")
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 4 << 30)
    monkeypatch.setattr(archives, "MAX_TOTAL_BYTES", 3 << 20)
    many = pack(tmp_path / "many.zip", {f"{n}.txt": b"a" * (1 << 20) for n in range(4)})
    assert refusal(many).endswith("can't be read (the archive unpacks to more than 0 GiB).")


def test_the_number_of_members_and_the_headers_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = tarfile.TarInfo("a.txt")
    entry.pax_headers = {"comment": "x" * (2 << 20)}
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(entry)
    path = tmp_path / "header.tar"
    path.write_bytes(data.getvalue())
    assert refusal(path) == "header.tar: can't be read (a header is too large)."
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    tar_path = pack(tmp_path / "many.tar", {f"{n}.txt": b"a" for n in range(4)})
    assert refusal(tar_path) == "many.tar: can't be read (it has over 3 members)."


def test_members_are_read_in_one_pass_and_in_any_order(tmp_path: Path) -> None:
    files = {f"{n}.txt": b"%d" % n * 3000 for n in range(20)}
    path = pack(tmp_path / "book.tar.gz", files)
    listing = archives.list_archive(path, ".tar.gz")
    for member in [*listing.members, *reversed(listing.members)]:
        with member.open() as file:
            assert file.read() == files[str(member.path)]
    search = Search(TextReport([]))
    assert [entry.name for entry in find_inputs(str(path), search)] == [f"{path}/{name}" for name in files]
