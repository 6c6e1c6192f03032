"""A load of guidellm, by its command."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

from checks import MODEL, ROOT, expect, run

here = pathlib.Path(tempfile.mkdtemp())


def stream():
    options = {
        "backend": f"kind=openai_http,target={ROOT},model={MODEL}",
        "profile": "kind=concurrent,streams=4",
        "constraint": "kind=max_requests,count=8",
        "tokenizer": f"kind=huggingface_auto,model={os.environ['FINETALE_MODEL']}",
        "data": "kind=synthetic_text,prompt_tokens=32,output_tokens=16",
        "output": f"kind=json,path={here / 'found.json'}",
    }
    command = [sys.executable, "-m", "guidellm", "run", "--disable-console"]
    command += [word for name, value in options.items() for word in (f"--{name}", value)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280)
    expect(ended.returncode == 0, (ended.stdout + ended.stderr)[-500:])
    (benchmark,) = json.loads((here / "found.json").read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    expect(totals["successful"] == 8 and totals["errored"] == 0, totals)


run("guidellm", {"stream": stream})
