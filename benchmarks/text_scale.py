"""Measure the cost of reading text from 10 MB to 1 GB: `finetale check`, and the time to the first training step.

    python benchmarks/text_scale.py [--sizes MB ...] [--shapes SHAPE ...] [--checks CHECK ...] [--first-step MB ...]

The text is generated from a seed. Its words have a Zipf-like distribution and realistic lengths. It has sentences,
paragraphs, typographic quotes, digits, and a few e-mail addresses and telephone numbers. The shapes are

    english   one file of plain text
    chinese   one file of plain text without spaces
    files     many files of about 2,500 bytes in one folder
    lines     one file of short lines, read with --documents line
    jsonl     one file of records of about 1,000 bytes

and the checks are

    plain     `finetale check --no-screen`: does not search for personal data and near-duplicates, counts no tokens
    screen    `finetale check`: searches for both, counts no tokens
    tokens    `finetale check --model bundled`: searches for both, counts all tokens

Each measurement runs in a new process. The table shows MB (10^6 bytes) per CPU-second, peak memory, and the memory
above 500 MB per document. CPU-seconds are user and system time, with program start. `growth` is CPU time per byte,
relative to the smallest size and without program start: 1.00 is linear. Prints one JSON object as its last line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

MEGABYTE = 10**6
SHAPES = ("english", "chinese", "files", "lines", "jsonl")
CHECKS = {
    "plain": ["--no-screen"],
    "screen": [],
    "tokens": ["--model", "bundled"],
}
VOCABULARY = 60_000
CHARACTERS = 3_500
FREE_BYTES = 500 * MEGABYTE  # the memory that the goal allows apart from the documents
COMMON = """
    the of and a to in he was that it his her with as had she for at on not but be they him is you from by all have
    this which were so said one out there when what up or into no their would been if an them who could then now more
"""
ONSETS = "b br c ch cl cr d dr f fl fr g gl gr h j k l m n p pl pr qu r s sh sl sp st str t th tr v w wh y"
NUCLEI = "a e i o u ai ea ee ie oa oo ou"
CODAS = "b ck d ft g l ld ll m n nd ng nt p r rd rn s sh ss st t th x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=float, nargs="*", default=[2, 10], help="MB of text")
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=SHAPES)
    parser.add_argument("--checks", nargs="*", choices=tuple(CHECKS), default=tuple(CHECKS))
    parser.add_argument("--first-step", type=float, nargs="*", default=[], help="MB of text to start a run on")
    parser.add_argument("--folder", help="where the text is generated (default: the folder for temporary files)")
    parser.add_argument("--trainee", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.trainee:
        train_one_step(*map(Path, arguments.trainee))
        return
    from finetale.environment import hardware, versions

    found: dict[str, Any] = {"checks": [], "first_steps": []}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        place = Path(folder)
        start = {check: check_one(place, "english", 0.001, check)["cpu_seconds"] for check in arguments.checks}
        print("Start of the program, CPU-seconds:", ", ".join(f"{check} {start[check]:.1f}" for check in start))
        header = f"{'shape':<9}{'MB':>6}{'documents':>11} {'check':<8}{'CPU s':>8}{'MB/CPU s':>10}{'peak MB':>9}"
        print(f"{header}{'B/document':>12}{'growth':>8}", flush=True)
        for shape in arguments.shapes:
            first: dict[str, float] = {}
            for megabytes in sorted(arguments.sizes):
                for check in arguments.checks:
                    row = check_one(place, shape, megabytes, check)
                    own = max(1e-9, row["cpu_seconds"] - start[check]) / row["bytes"]
                    row["growth"] = own / first.setdefault(check, own)
                    found["checks"].append(row)
                    print(
                        f"{shape:<9}{row['bytes'] / MEGABYTE:>6.0f}{row['documents']:>11,} {check:<8}"
                        f"{row['cpu_seconds']:>8.1f}{row['megabytes_per_cpu_second']:>10.1f}"
                        f"{row['peak_bytes'] / MEGABYTE:>9.0f}{row['bytes_per_document']:>12.0f}{row['growth']:>8.2f}",
                        flush=True,
                    )
                remove(place / "text")
        for shape, megabytes in itertools.product(arguments.shapes, arguments.first_step):
            row = first_step(place, shape, megabytes)
            found["first_steps"].append(row)
            print(f"{shape} {megabytes:g} MB: first step after {row['seconds']:.1f} s, {row['cpu_seconds']:.1f} CPU s")
            for name, seconds in row["stages"]:
                print(f"    {seconds:7.1f} s  {name}", flush=True)
            remove(place / "text")
    print(json.dumps(found | {"hardware": hardware(), "versions": versions()}))


# -- measuring


def check_one(place: Path, shape: str, megabytes: float, check: str) -> dict[str, Any]:
    """Run one check in a new process."""
    source, size = generate(place / "text", shape, megabytes)
    words = ["-m", "finetale", "check", str(source), "--json", "--quiet", *CHECKS[check], *reading(shape)]
    output, usage = run([sys.executable, *words], place)
    report = json.loads(output)
    seconds = usage.ru_utime + usage.ru_stime
    documents, peak = report["text"]["documents"], usage.ru_maxrss * 1024
    return {
        "shape": shape,
        "check": check,
        "bytes": size,
        "documents": documents,
        "cpu_seconds": round(seconds, 2),
        "megabytes_per_cpu_second": round(size / MEGABYTE / seconds, 2),
        "peak_bytes": peak,
        "bytes_per_document": round(max(0, peak - FREE_BYTES) / documents, 1),
    }


def reading(shape: str) -> list[str]:
    """Return the settings to read a shape with."""
    return ["--documents", "line"] if shape == "lines" else []


def run(words: list[str], place: Path) -> tuple[str, Any]:
    """Run a process to its end; return its output and its resource usage."""
    environment = os.environ | {"FINETALE_CACHE": str(place / "cache")}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(words, stdout=output, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}:\n{text[-2000:]}")
    return text, usage


def first_step(place: Path, shape: str, megabytes: float) -> dict[str, Any]:
    """Start a run in a new process; return the seconds of each stage before the first step."""
    source, size = generate(place / "text", shape, megabytes)
    words = [sys.executable, __file__, "--trainee", str(source), str(place / "run"), "--shapes", shape]
    began = time.perf_counter()
    output, usage = run(words, place)
    seconds = time.perf_counter() - began
    remove(place / "run")
    stages: dict[str, Any] = json.loads(output.splitlines()[-1])
    return stages | {
        "shape": shape,
        "bytes": size,
        "seconds": round(seconds, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def train_one_step(source: Path, out: Path) -> None:
    """Train the bundled model on a text, and exit after the first step."""
    from finetale.config import Config
    from finetale.environment import calm_threads
    from finetale.schema import Event, StageEvent, TrainEvent, WarningEvent

    calm_threads()
    began = time.perf_counter()
    marks: list[tuple[str, float]] = [("Start of the program", began)]

    def listen(event: Event) -> None:
        name = event.message if isinstance(event, StageEvent) else event.event
        if not isinstance(event, WarningEvent) and name != marks[-1][0]:
            marks.append((name, time.perf_counter()))
        if isinstance(event, TrainEvent):
            spans = [[name, round(stop - start, 2)] for (name, start), (_, stop) in itertools.pairwise(marks)]
            print(json.dumps({"stages": spans}), flush=True)
            os._exit(0)

    from finetale.pipeline import train_run

    documents = "line" if source.suffix == ".txt" and source.stem == "lines" else "auto"
    settings = {"sources": (str(source),), "documents": documents, "model": "bundled", "out": out}
    train_run(Config.resolve(settings), listen)


def remove(path: Path) -> None:
    """Remove a file or folder if it exists."""
    subprocess.run(["rm", "-rf", str(path)], check=True)


# -- generating


def generate(place: Path, shape: str, megabytes: float) -> tuple[Path, int]:
    """Write text of a shape; return its path and its size in bytes. Existing text is reused."""
    place.mkdir(exist_ok=True)
    mark = place / f".{shape}-{megabytes}"
    wanted = int(megabytes * MEGABYTE)
    paragraphs = chinese(wanted) if shape == "chinese" else english(wanted, 12 if shape == "lines" else 90)
    if shape == "files":
        source = place / "files"
        if not mark.exists():
            source.mkdir()
            for number, text in enumerate(grouped(paragraphs, 2500)):
                folder = source / f"{number // 1000:04}"
                folder.mkdir(exist_ok=True)
                (folder / f"{number:07}.txt").write_text(text, encoding="utf-8")
    else:
        source = place / (shape + (".jsonl" if shape == "jsonl" else ".txt"))
        if not mark.exists():
            with source.open("w", encoding="utf-8") as file:
                if shape == "jsonl":
                    for number, text in enumerate(grouped(paragraphs, 1000)):
                        file.write(json.dumps({"id": number, "text": text}, ensure_ascii=False) + "\n")
                else:
                    end = "\n" if shape == "lines" else "\n\n"
                    file.writelines(text + end for text in paragraphs)
    if not mark.exists():
        size = sum(path.stat().st_size for path in (source.rglob("*.txt") if source.is_dir() else [source]))
        mark.write_text(str(size))
    return source, int(mark.read_text())


def grouped(paragraphs: Iterator[str], size: int) -> Iterator[str]:
    """Join paragraphs into texts of about `size` characters."""
    held: list[str] = []
    for paragraph in paragraphs:
        held.append(paragraph)
        if sum(map(len, held)) >= size:
            yield "\n\n".join(held)
            held.clear()
    if held:
        yield "\n\n".join(held)


def zipf(rng: np.random.Generator, number: int, size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Draw ranks below `number`, each with a probability proportional to 1 / (rank + 3)."""
    weights = 1 / (np.arange(number) + 3.0)
    return np.searchsorted(np.cumsum(weights) / weights.sum(), rng.random(size)).clip(max=number - 1)


def english(size: int, words_per_paragraph: int) -> Iterator[str]:
    """Yield English-like paragraphs, about `size` bytes in total."""
    rng = np.random.default_rng(7)
    vocabulary = np.array(english_words(rng), dtype=object)
    written = 0
    while written < size:
        ranks = zipf(rng, len(vocabulary), 200_000)
        words = vocabulary[ranks].tolist()
        lengths = 1 + rng.poisson(words_per_paragraph - 1, 1 + len(words) // words_per_paragraph)
        marks = rng.random(len(words))
        at = 0
        for length in lengths.tolist():
            paragraph = english_paragraph(words[at : at + length], marks[at : at + length])
            at += length
            if not paragraph:
                break
            written += len(paragraph.encode()) + 2
            yield paragraph
            if written >= size:
                return


def english_paragraph(words: list[str], marks: np.ndarray[Any, np.dtype[np.float64]]) -> str:
    """Build sentences from words; `marks` are random numbers from 0 to 1 that choose the punctuation."""
    for at in np.flatnonzero(marks < 0.2).tolist():
        mark = float(marks[at])
        if mark < 0.065:
            words[at] += "."
            if at + 1 < len(words):
                words[at + 1] = words[at + 1].capitalize()
        elif mark < 0.13:
            words[at] += ","
        elif mark < 0.14:
            words[at] = f"“{words[at]}”"
        elif mark < 0.147:
            words[at] += "’s"
        elif mark < 0.149:
            words[at] = str(1500 + round(1e9 * mark) % 600)
        elif mark < 0.14902:
            words[at] = f"{words[at]}.{round(1e9 * mark) % 97}@example.org"
        elif mark < 0.14904:
            words[at] = f"call (212) 555-{round(1e9 * mark) % 10000:04}"
    if words:
        words[0] = words[0].capitalize()
    return " ".join(words)


def english_words(rng: np.random.Generator) -> list[str]:
    """Return a vocabulary: the most common English words, then words of one to four syllables, shorter ones first."""
    words = dict.fromkeys(COMMON.split())
    onsets, nuclei, codas = ONSETS.split(), NUCLEI.split(), ["", *CODAS.split()]
    while len(words) < VOCABULARY:
        syllables = min(4, 1 + len(words) // 800) if len(words) < 3200 else int(rng.integers(2, 5))
        parts = [rng.choice(onsets) + rng.choice(nuclei) + rng.choice(codas) for _ in range(syllables)]
        words["".join(parts)] = None
    return list(words)


def chinese(size: int) -> Iterator[str]:
    """Yield Chinese-like paragraphs, about `size` bytes in total."""
    rng = np.random.default_rng(7)
    characters = rng.permutation(np.arange(0x4E00, 0x9FA5, dtype=np.uint32))[:CHARACTERS]
    written = 0
    while written < size:
        codes = characters[zipf(rng, CHARACTERS, 100_000)]
        marks = rng.random(len(codes))
        codes[marks < 0.09] = ord("，")
        codes[marks < 0.04] = ord("。")
        codes[marks < 0.004] = ord("\n")
        for paragraph in re.split("\n+", codes.tobytes().decode("utf-32-le")):
            if paragraph:
                written += 3 * len(paragraph) + 2
                yield paragraph
                if written >= size:
                    return


if __name__ == "__main__":
    main()
