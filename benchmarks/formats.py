"""Measure the readers of file formats: speed, peak memory, and whether paragraphs and chapters come back equal.

    python benchmarks/formats.py [--megabytes N] [--formats SUFFIX ...]

A manuscript of N MB (10^6 bytes, default 1) is generated from a seed: chapters with headings, and paragraphs of
sentences with typographic quotes. It is written as each format with the program in the table: pandoc, LibreOffice
(soffice), calibre, openpyxl, or this script. A format whose program is not installed is left out and named.

Each file is read in a new process, three times, and the fastest counts. `MB/s` is MB of the manuscript's text per
CPU-second, without the start of Python and without imports. `ratio` is this speed relative to plain
text. `memory` is the peak above that of the same process before it reads, so it includes the text itself. `paragraphs`
and `chapters` are how many of the manuscript's come back equal, at their place in its order. Prints one JSON object as
its last line.
"""

from __future__ import annotations

import argparse
import difflib
import html
import json
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MEGABYTE = 10**6
REPEATS = 3
WORDS = (
    "harbour", "ledger", "candle", "winter", "pilot", "copper", "orchard", "river", "lantern", "quarrel", "mender",
    "thimble", "saddle", "market", "window", "brother", "island", "feather", "granite", "kitchen", "journey",
    "barley", "whistle", "needle", "shadow", "castle", "meadow", "anchor", "basket", "silver", "walked", "carried",
    "answered", "listened", "forgot", "remembered", "followed", "counted", "opened", "closed", "waited", "promised",
    "borrowed", "the", "a", "of", "and", "to", "in", "that", "it", "was", "with", "for", "on", "at", "by", "from",
    "his", "her", "their", "old", "small", "quiet", "cold", "early", "never", "always", "again",
)  # fmt: skip
Chapters = list[tuple[str, list[str]]]


def manuscript(size: int) -> Chapters:
    """Return chapters of about `size` bytes in all: (title, paragraphs)."""
    source = random.Random(7)
    chapters: Chapters = []
    written = 0
    while written < size:
        paragraphs = []
        for _ in range(60):
            sentences = []
            for _ in range(source.randint(1, 6)):
                words = " ".join(source.choices(WORDS, k=source.randint(4, 22)))
                sentence = f"{words[0].upper()}{words[1:]}."
                sentences.append(f"“{sentence}”" if source.random() < 0.3 else sentence)
            paragraphs.append(" ".join(sentences))
        title = f"The {source.choice(WORDS)} of {source.choice(WORDS)} {len(chapters) + 1}"
        chapters.append((title, paragraphs))
        written += len(title) + sum(len(paragraph.encode()) + 2 for paragraph in paragraphs)
    return chapters


# -- writing


def as_text(chapters: Chapters) -> str:
    """Return the manuscript as plain text."""
    return "\n\n".join("\n\n".join((title, *paragraphs)) for title, paragraphs in chapters) + "\n"


def as_markdown(chapters: Chapters) -> str:
    """Return the manuscript as Markdown."""
    return "\n\n".join("\n\n".join((f"# {title}", *paragraphs)) for title, paragraphs in chapters) + "\n"


def as_html(chapters: Chapters) -> str:
    """Return the manuscript as a web page."""
    body = "\n".join(
        f"<h1>{html.escape(title)}</h1>\n" + "\n".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in paragraphs)
        for title, paragraphs in chapters
    )
    return f'<!DOCTYPE html><html><head><meta charset="utf-8"><title>x</title></head><body>{body}</body></html>'


def as_mail(chapters: Chapters) -> str:
    """Return the manuscript as a mailbox: a mail per chapter."""
    head = "From somebody Mon Jan  1 00:00:00 2024\nFrom: a@example.org\nSubject: {}\n"
    head += "Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n"
    return "".join(head.format(title) + "\n\n".join(paragraphs) + "\n\n" for title, paragraphs in chapters)


def as_subtitles(chapters: Chapters) -> str:
    """Return the manuscript as subtitles: a cue per paragraph."""
    paragraphs = [paragraph for title, rest in chapters for paragraph in (title, *rest)]
    cues = []
    for number, paragraph in enumerate(paragraphs):
        stamp = f"{number // 360:02}:{number // 6 % 60:02}:{number % 6 * 10:02}"
        cues.append(f"{number + 1}\n{stamp},000 --> {stamp},900\n{paragraph}\n")
    return "\n".join(cues)


def write_table(chapters: Chapters, path: Path) -> None:
    """Write the manuscript as a workbook with a row per paragraph."""
    import openpyxl

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("Paragraphs")
    sheet.append(["id", "text"])
    for number, paragraph in enumerate(each for title, rest in chapters for each in (title, *rest)):
        sheet.append([number, paragraph])
    book.save(path)


def run(*command: str | Path) -> None:
    """Run a program that converts the manuscript."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def by_pandoc(form: str) -> Callable[[Chapters, Path], None]:
    """Return a function that writes a format with pandoc."""

    def write(chapters: Chapters, path: Path) -> None:
        source = path.with_name("pandoc-source.md")
        source.write_text(as_markdown(chapters), encoding="utf-8")
        run("pandoc", "-s", "-f", "markdown-smart", "-t", form, "--metadata", "pagetitle=x", source, "-o", path)

    return write


def by_soffice(chapters: Chapters, path: Path) -> None:
    """Write a format with LibreOffice, from pandoc's .odt or openpyxl's .xlsx."""
    source = path.with_name(f"soffice-source-{path.suffix[1:]}" + (".xlsx" if path.suffix == ".ods" else ".odt"))
    if path.suffix == ".ods":
        write_table(chapters, source)
    else:
        by_pandoc("odt")(chapters, source)
    profile = f"-env:UserInstallation=file://{path.parent}/profile"
    run("soffice", profile, "--headless", "--convert-to", path.suffix[1:], "--outdir", path.parent / "out", source)
    shutil.move(path.parent / "out" / f"{source.stem}{path.suffix}", path)


def by_calibre(chapters: Chapters, path: Path) -> None:
    """Write an e-book with calibre."""
    source = path.with_name("calibre-source.html")
    source.write_text(as_html(chapters), encoding="utf-8")
    run("ebook-convert", source, path, "--chapter", "//h:h1", "--no-default-epub-cover")


def by_python(make: Callable[[Chapters], str]) -> Callable[[Chapters, Path], None]:
    """Return a function that writes text."""

    def write(chapters: Chapters, path: Path) -> None:
        path.write_text(make(chapters), encoding="utf-8")

    return write


def zipped(chapters: Chapters, path: Path) -> None:
    """Write a zip archive with a text file per chapter."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, chapter in enumerate(chapters):
            archive.writestr(f"{number:05}.txt", as_text([chapter]))


def tarred(chapters: Chapters, path: Path) -> None:
    """Write a compressed tar archive with a text file per chapter."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(path, "w:gz") as archive:
        for number, chapter in enumerate(chapters):
            file = Path(folder) / f"{number:05}.txt"
            file.write_text(as_text([chapter]), encoding="utf-8")
            archive.add(file, file.name)


WRITERS: dict[str, tuple[str, Callable[[Chapters, Path], None]]] = {
    "txt": ("", by_python(as_text)),
    "md": ("", by_python(as_markdown)),
    "html": ("", by_python(as_html)),
    "docx": ("pandoc", by_pandoc("docx")),
    "soffice.docx": ("soffice", by_soffice),
    "odt": ("soffice", by_soffice),
    "rtf": ("soffice", by_soffice),
    "epub": ("pandoc", by_pandoc("epub")),
    "calibre.epub": ("ebook-convert", by_calibre),
    "tex": ("pandoc", by_pandoc("latex-smart")),
    "pdf": ("soffice", by_soffice),
    "mbox": ("", by_python(as_mail)),
    "srt": ("", by_python(as_subtitles)),
    "xlsx": ("", write_table),
    "ods": ("soffice", by_soffice),
    "zip": ("", zipped),
    "tar.gz": ("", tarred),
}
"""Suffix, after the program where there are two → (program that is needed, function that writes the file)."""


# -- reading


def read(path: Path, expected: Path) -> dict[str, Any]:
    """Read a file in this process and compare it with the manuscript."""
    import resource
    from collections import Counter

    import lxml.etree  # noqa: F401 - the time does not include the import
    import pypdfium2  # noqa: F401

    from finetale.config import TextSettings
    from finetale.text.account import TextReport
    from finetale.text.columns import SourceColumns, record_documents
    from finetale.text.formats import SourceFile, formats
    from finetale.text.plain import chapter_documents, plain_documents
    from finetale.text.sources import Search, find_inputs

    def peak() -> int:
        own, child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return (own + child) * 1024

    def spent() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used)

    formats()  # imports the readers
    settings = TextSettings(documents="chapter")
    columns = SourceColumns(str(path), None, [], [])
    before, start, wall = peak(), spent(), time.perf_counter()
    texts: list[str] = []
    left_out: Counter[str] = Counter()
    report = TextReport([str(path)])
    for entry in find_inputs(str(path), Search(report)):
        account = report.open_file(entry.name, entry.format.name)
        file = SourceFile(
            entry.name, account, settings, path=entry.path, open_member=entry.open_member, columns=lambda: columns
        )
        form = entry.format
        documents: Iterator[tuple[int, Any]]
        if form.yields == "chapters":
            documents = chapter_documents(form.read(file), "chapter", account)
        elif form.yields == "records":
            documents = record_documents(form.read(file), columns, account)
        elif form.yields == "text":
            documents = plain_documents(form.read(file), "auto", account)
        else:
            documents = form.read(file)
        texts += [str(text) for _, text in documents]
        left_out += account.left_out
    seconds, wall, memory = spent() - start, time.perf_counter() - wall, peak() - before

    chapters: Chapters = json.loads(expected.read_text(encoding="utf-8"))
    wanted = [each for title, rest in chapters for each in (title, *rest)]
    found = [" ".join(each.split()) for text in texts for each in re.split(r"\n\s*\n", text) if each.strip()]
    found = [each.removeprefix("# ") for each in found]
    if path.suffix == ".srt":
        found = [line for text in texts for line in text.split("\n") if line.strip()]
    return {
        "seconds": seconds,
        "wall": wall,
        "memory": memory,
        "paragraphs": common(wanted, found),
        "of": len(wanted),
        "chapters": len(texts),
        "of_chapters": len(chapters),
        "left_out": dict(left_out),
    }


def common(wanted: list[str], found: list[str]) -> int:
    """Return how many of the wanted paragraphs were found in their order."""
    if wanted == found:
        return len(wanted)
    matcher = difflib.SequenceMatcher(None, wanted, found, autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks())


def measure(path: Path, expected: Path) -> dict[str, Any]:
    """Read a file in new processes. Return the fastest reading."""
    results = []
    for _ in range(REPEATS):
        command = [sys.executable, __file__, "--read", str(path), str(expected)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{path.name}: {done.stderr[-3000:]}")
        results.append(json.loads(done.stdout.splitlines()[-1]))
    return min(results, key=lambda result: result["seconds"])


def main() -> None:
    """Write, read and print all formats."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=1.0)
    parser.add_argument("--formats", nargs="+", choices=list(WRITERS), default=list(WRITERS))
    parser.add_argument("--read", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read:
        print(json.dumps(read(*options.read)))
        return
    chapters = manuscript(round(options.megabytes * MEGABYTE))
    size = len(as_text(chapters).encode())
    results: dict[str, Any] = {}
    print(f"{size / MEGABYTE:.1f} MB of text in {len(chapters)} chapters\n")
    print("| format | program | file, MB | MB/s | ratio | memory, MB | paragraphs | chapters | left out |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = folder / "expected.json"
        expected.write_text(json.dumps(chapters), encoding="utf-8")
        baseline = None
        for kind in dict.fromkeys(("txt", *options.formats)):
            program, write = WRITERS[kind]
            if program and shutil.which(program) is None:
                print(f"| {kind} | {program} is not installed |")
                continue
            path = folder / f"manuscript.{kind}"
            write(chapters, path)
            found = measure(path, expected)
            speed = size / MEGABYTE / found["seconds"]
            baseline = baseline or speed
            results[kind] = found | {"file": path.stat().st_size, "megabytes_per_second": speed}
            left_out = ", ".join(f"{number} {what}" for what, number in found["left_out"].items())
            print(
                f"| {kind} | {program or 'this script'} | {path.stat().st_size / MEGABYTE:.2f} | {speed:.1f} "
                f"| {speed / baseline:.2f} | {found['memory'] / MEGABYTE:.0f} | {found['paragraphs']:,} of "
                f"{found['of']:,} | {found['chapters']} of {found['of_chapters']} | {left_out} |",
                flush=True,
            )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
