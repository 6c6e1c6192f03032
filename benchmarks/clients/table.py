"""Run real clients against a served model, each in an environment of its own, and print what works.

    python benchmarks/clients/table.py [--install] [--folder FOLDER] [CLIENT...]

The model is tiny and has a chat template with tools. `--install` installs the clients from PyPI and npm into FOLDER,
which is kept; a client that is not there is skipped. lm-eval and guidellm need 6 GB each with PyTorch's default build.
A row is one entry of CLIENTS and one script beside this file.

Prints a table, and one JSON object as its last line. Exits with 1 if a check failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]
CHECKS = ("plain", "stream", "tools", "structured", "embeddings", "cancel")
TEMPLATE = (
    '{% if tools %}<tool_call>{"name": "", "arguments": {}}</tool_call>{% for tool in tools %}{{ tool | tojson }}'
    "{% endfor %}\n{% endif %}{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@dataclass(frozen=True)
class Client:
    """A client.

    Attributes:
        name: its name.
        script: the script of its checks.
        packages: what to install. Clients of JavaScript share one folder.
    """

    name: str
    script: str
    packages: tuple[str, ...]

    @property
    def is_node(self) -> bool:
        """Whether it is a client of JavaScript."""
        return self.script.endswith(".mjs")

    def place(self, folder: Path) -> Path:
        """Return the folder of its environment."""
        return folder / ("node" if self.is_node else self.script.removesuffix(".py"))

    def command(self, folder: Path) -> list[str] | None:
        """Return the command of its checks; None if it is not installed."""
        place = self.place(folder)
        if self.is_node:
            node = shutil.which("node")
            there = all((place / "node_modules" / name).is_dir() for name in self.packages)
            return [node, self.script] if node and there else None
        python = place / "bin" / "python"
        return [str(python), str(HERE / self.script)] if python.exists() else None

    def install(self, folder: Path) -> None:
        """Install it."""
        place = self.place(folder)
        place.mkdir(parents=True, exist_ok=True)
        if self.is_node:
            subprocess.run(["npm", "install", "--no-audit", "--no-fund", *self.packages], cwd=place, check=True)
        else:
            venv.create(place, with_pip=True, symlinks=True)
            subprocess.run([place / "bin" / "python", "-m", "pip", "install", "-q", *self.packages], check=True)


CLIENTS = (
    Client("openai (Python)", "openai_python.py", ("openai",)),
    Client("openai (Node)", "openai_node.mjs", ("openai",)),
    Client("LangChain (Python)", "langchain_python.py", ("langchain-openai",)),
    Client("LangChain (Node)", "langchain_node.mjs", ("@langchain/openai", "@langchain/core")),
    Client(
        "LlamaIndex", "llama_index_python.py", ("llama-index-llms-openai-like", "llama-index-embeddings-openai-like")
    ),
    Client("LiteLLM", "litellm_python.py", ("litellm",)),
    Client("instructor", "instructor_python.py", ("instructor",)),
    Client("llm", "llm_python.py", ("llm",)),
    Client("Vercel AI SDK", "ai_sdk_node.mjs", ("ai", "@ai-sdk/openai-compatible", "zod")),
    Client("ollama (Python)", "ollama_python.py", ("ollama",)),
    Client("ollama (Node)", "ollama_node.mjs", ("ollama",)),
    Client("lm-eval", "lm_eval_python.py", ("lm-eval[api]", "torch", "transformers", "accelerate")),
    Client("guidellm", "guidellm_python.py", ("guidellm",)),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clients", nargs="*", help="scripts without their suffix, as openai_node. Default: all.")
    parser.add_argument("--install", action="store_true", help="install the clients first")
    parser.add_argument("--folder", type=Path, default=Path("runs/clients"), help="where they are installed")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    chosen = [client for client in CLIENTS if not arguments.clients or Path(client.script).stem in arguments.clients]
    if arguments.install:
        for client in chosen:
            client.install(folder)
    with tempfile.TemporaryDirectory() as place:
        rows = run(chosen, folder, Path(place))
    print(f"\n| client | version | {' | '.join(CHECKS)} |\n|---|---|{'---|' * len(CHECKS)}")
    for name, row in rows.items():
        cells = ["–" if found is None else "yes" if found == "ok" else "NO" for found in map(row["checks"].get, CHECKS)]
        print(f"| {name} | {row['version']} | {' | '.join(cells)} |")
    failures = [
        f"{name}, {check}: {found}"
        for name, row in rows.items()
        for check, found in row["checks"].items()
        if found not in ("ok", None)
    ]
    print("", *failures, sep="\n")
    print(json.dumps(rows))
    return 1 if failures else 0


def run(chosen: list[Client], folder: Path, place: Path) -> dict[str, Any]:
    """Serve a tiny model; return the rows of the clients that are installed."""
    from finetale.models import load_tokenizer
    from serving import Serving
    from tiny import save_model

    model = save_model(place / "tiny", positions=4096)
    tokenizer = load_tokenizer(model)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model)
    rows = {}
    with Serving(place, "tiny", "--engine", "torch") as serving:
        values = {"FINETALE_URL": f"http://127.0.0.1:{serving.port}", "FINETALE_MODEL": str(model)}
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}
        for client in chosen:
            command = client.command(folder)
            if command is None:
                print(f"{client.name}: is not installed in {folder}", file=sys.stderr)
                continue
            cwd = client.place(folder) if client.is_node else place
            if client.is_node:  # modules are looked up from the script's own folder
                for script in HERE.glob("*.mjs"):
                    shutil.copy(script, cwd)
            began = time.perf_counter()
            ended = subprocess.run(
                command, cwd=cwd, env=os.environ | values | offline, capture_output=True, text=True, timeout=300
            )
            lines = ended.stdout.splitlines()
            if not lines or not lines[-1].startswith("{"):
                rows[client.name] = {"version": "?", "checks": {"plain": (ended.stdout + ended.stderr)[-600:]}}
            else:
                rows[client.name] = json.loads(lines[-1])
            seconds = time.perf_counter() - began
            print(f"{client.name}, {seconds:.0f} s: {rows[client.name]}", file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
