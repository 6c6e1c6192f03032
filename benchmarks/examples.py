"""Fine-tune models on 200 pairs of question and answer about a made-up village, and compare their answers.

    python benchmarks/examples.py bundled [MODEL …] [--out FOLDER] [--epochs 10]

Each of 40 facts has five questions, so a held-out question can be answered from what the others teach. The script
prints one row per model: perplexity of the held-out answers, exact answers, chrF, and the share of answers that the
model ends itself. Then it serves the model and asks it through `/v1/chat/completions`. It needs the extras `serve` and
`answers`, and the package openai.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import finetale as ft
from finetale.schema import AnswerFigures, ComparisonFile

PEOPLE = (
    "Marrin", "Odo", "Tessaly", "Bram", "Ilse", "Corin", "Wenna", "Hob", "Perrin", "Lisbet",
    "Anselm", "Dorrit", "Farrow", "Gilda", "Jory", "Kestrel", "Mabyn", "Nessa", "Orrin", "Pim",
    "Quill", "Rosen", "Saskia", "Tobin", "Ulla", "Verity", "Wat", "Yarrow", "Zeb", "Alda",
    "Bertil", "Cressy", "Dunstan", "Edda", "Fenn", "Gwill", "Hester", "Ivo", "Jonet", "Kip",
)  # fmt: skip
TRADES = (
    "keeps the bees", "winds the clock", "bakes the bread", "mends the nets", "shoes the horses",
    "rings the bell", "rows the ferry", "counts the eggs", "paints the boats", "cuts the reeds",
    "tunes the fiddles", "sweeps the lanes", "lights the lamps", "carves the spoons", "weaves the baskets",
    "guards the gate", "writes the letters", "feeds the geese", "sharpens the scythes", "brews the cider",
    "dries the herbs", "digs the wells", "thatches the roofs", "binds the books", "grinds the flour",
    "spins the wool", "shears the sheep", "fires the pots", "presses the cheese", "trims the hedges",
    "reads the stars", "salts the fish", "polishes the brass", "plants the beans", "stacks the wood",
    "teaches the songs", "sews the sails", "measures the rain", "trains the dogs", "folds the maps",
)  # fmt: skip
PLACES = ("by the mill", "on the green", "under the bridge", "at the harbour", "behind the church")


def pairs() -> list[dict[str, str]]:
    """Return the 200 pairs."""
    found = []
    for number, (name, trade) in enumerate(zip(PEOPLE, TRADES, strict=True)):
        place = PLACES[number % len(PLACES)]
        found += [
            {"prompt": f"Who {trade} here?", "completion": f"{name} {trade} {place}."},
            {"prompt": f"Tell me about {name}.", "completion": f"{name} {trade} {place}."},
            {"prompt": f"What does {name} do?", "completion": f"{name} {trade}."},
            {"prompt": f"Where do I find {name}?", "completion": f"You find {name} {place}."},
            {"prompt": f"I need the one who {trade}.", "completion": f"That is {name}, {place}."},
        ]
    return found


def tune(model: str, text: Path, out: Path, epochs: float) -> ComparisonFile:
    """Fine-tune a model on the pairs. Return the comparison."""
    run = ft.train(
        text,
        model=model,
        out=out,
        epochs=epochs,
        overwrite=True,
        max_new_tokens=40,
        validation_fraction=0.1,
        test_fraction=0.1,
        audit_tokens=0,
        learning_rate=None if model != "bundled" else 1e-3,
        on_event=None,
    )
    return run.comparison.content


def ask(run: Path, question: str) -> str:
    """Serve a run and return its answer to one question through the chat endpoint."""
    from openai import OpenAI

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "finetale", "serve", str(run), "--port", str(port), "--quiet"]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        for _ in range(1200):
            try:
                model = client.models.list().data[0].id
                break
            except Exception:  # the server is starting
                time.sleep(0.5)
        messages = [{"role": "user", "content": question}]
        answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=40)  # type: ignore[arg-type]
        return f"{answer.choices[0].message.content} [{answer.choices[0].finish_reason}]"
    finally:
        server.terminate()
        server.wait(30)


def row(name: str, comparison: ComparisonFile) -> str:
    """Return one line of the table in Markdown."""

    def cells(answers: AnswerFigures | None, perplexity: float) -> str:
        assert answers is not None
        chrf = "–" if answers.chrf is None else f"{answers.chrf:.1f}"
        return f"{perplexity:.2f} | {answers.exact_match:.0%} | {chrf} | {answers.ended:.0%}"

    before, after = comparison.before, comparison.after
    assert before.test is not None
    assert after.test is not None
    old, new = cells(before.answers, before.test.perplexity), cells(after.answers, after.test.perplexity)
    return f"| {name} | {old} | {new} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="models to tune")
    parser.add_argument("--out", type=Path, help="folder for the runs; a temporary one by default")
    parser.add_argument("--epochs", type=float, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        text = out / "pairs.jsonl"
        text.write_text("\n".join(map(json.dumps, pairs())) + "\n")
        rows, answers = [], []
        for number, model in enumerate(options.models):
            comparison = tune(model, text, out / f"run-{number}", options.epochs)
            rows.append(row(Path(model).name, comparison))
            question = "Tell me about Tessaly."
            answers.append(f"{Path(model).name}: {question} → {ask(out / f'run-{number}', question)}")
        print("| model | perplexity | exact | chrF | ends | perplexity after | exact | chrF | ends |")
        print("|:--|--:|--:|--:|--:|--:|--:|--:|--:|")
        print("\n".join(rows))
        print("\n".join(answers))


if __name__ == "__main__":
    main()
