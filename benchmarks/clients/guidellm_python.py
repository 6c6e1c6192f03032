"""A load of guidellm, by its command."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from checks import MODEL, ROOT, expect, run

here = pathlib.Path(tempfile.mkdtemp())


def load(*words):
    command = [sys.executable, "-m", "guidellm", "benchmark", "run", "--target", ROOT]
    command += ["--model", MODEL, "--processor", os.environ["FINETALE_MODEL"], "--max-requests", "8"]
    command += ["--data", "prompt_tokens=32,output_tokens=16", "--outputs", "json", "--output-dir", str(here), *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280)
    expect(ended.returncode == 0, (ended.stdout + ended.stderr)[-500:])
    found = json.loads(next(here.glob("*.json")).read_text())
    (benchmark,) = found["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    expect(totals["successful"] == 8 and totals["errored"] == 0, totals)


def stream():
    load("--rate-type", "concurrent", "--rate", "4")


run("guidellm", {"stream": stream})
