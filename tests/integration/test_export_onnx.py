"""The format onnx: onnxruntime and transformers.js read the folder without Finetale, and write the model's tokens."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import architectures
from finetale import models, pipeline
from finetale.errors import ModelError
from finetale.export import onnx as exporter
from finetale.models.beginning import set_mark
from finetale.models.names import BUNDLED_FOLDER
from finetale.schema import Event, ExportFile

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
PROOF = {"README.md", "export.json", "manifest.json"}
FOLDER = {"config.json", "generation_config.json", "onnx", "tokenizer.json", "tokenizer_config.json"}
SCRIPT = """
import { AutoModelForCausalLM, AutoTokenizer, env } from "@huggingface/transformers";
const [root, name, dtype, prompt] = process.argv.slice(2);
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = root;
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name, { dtype });
const found = await model.generate({ ...tokenizer(prompt), max_new_tokens: 32, do_sample: false });
console.log(JSON.stringify(found.tolist()[0].map(Number)));
"""


def quiet(event: Event) -> None:
    """Receive an event."""


def export(kind: str, weights: str, folder: Path) -> tuple[Path, ExportFile]:
    """Export a tiny model that Finetale trained, as its config says."""
    architecture = next(each for each in architectures.ALL if each.name == kind)
    loaded = models.load(str(architecture.save(folder / "plain")))
    set_mark(loaded.model, True)
    models.save(loaded.model, loaded.tokenizer, folder / "base")
    return pipeline.export_model(str(folder / "base"), "onnx", quiet, weights=weights, out=folder / "out")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportFile]:
    return export("GPT-2", "fp32", tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportFile]:
    return export("Llama", "int8", tmp_path_factory.mktemp("onnx"))


def most_likely(place: Path, prompt: str, new: int) -> list[int]:
    """Return the tokens of a prompt and those that PyTorch finds most likely after it."""
    loaded = models.load(str(place.parent / "base"))
    ids = torch.tensor([loaded.tokenizer.encode(prompt, add_special_tokens=False)])
    with torch.no_grad():
        for _ in range(new):
            ids = torch.cat([ids, loaded.model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    return [int(token) for token in ids[0]]


def test_the_folder_is_that_of_transformers_js(gpt2: tuple[Path, ExportFile]) -> None:
    import onnx

    place, record = gpt2
    assert {file.name for file in place.iterdir()} == FOLDER | PROOF
    assert [file.name for file in (place / "onnx").iterdir()] == ["model.onnx"]
    assert record.runtime.startswith("onnxruntime")
    assert abs(record.change.percent) < 0.001
    assert record.greedy_equal == 1
    proto = onnx.load(place / "onnx/model.onnx")
    onnx.checker.check_model(proto, full_check=True)
    cache = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    assert [each.name for each in proto.graph.input] == [
        *("input_ids", "attention_mask", "position_ids"),
        *(f"past_key_values.{each}" for each in cache),
    ]
    assert [each.name for each in proto.graph.output] == ["logits", *(f"present.{each}" for each in cache)]
    assert [(each.domain, each.version) for each in proto.opset_import] == [("", 18)]
    data = (place / "onnx/model.onnx").read_bytes()
    assert b"site-packages" not in data
    assert b"finetale/export" not in data


def test_the_program_in_the_card_writes_the_most_likely_tokens(
    gpt2: tuple[Path, ExportFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, _ = gpt2
    found = re.search(r"```python\n(.*?)```", (place / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    assert "finetale" not in found[1]
    monkeypatch.chdir(place)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(found[1], names)
    assert names["text"] == most_likely(place, "<|endoftext|>Once upon a time", 50)
    assert printed.getvalue().startswith("Once upon a time")


def _scores(place: Path, ids: list[list[int]], mask: list[list[int]]) -> NDArray[np.float32]:
    runtime = exporter.OnnxRuntime(place)
    rows = len(ids)
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
    empty = {name: np.zeros((rows, *each.shape[1:]), np.float32) for name, each in runtime._empty.items()}
    inputs = {"input_ids": np.array(ids), "attention_mask": np.array(mask), "position_ids": positions}
    found: NDArray[np.float32] = runtime._session.run(["logits"], inputs | empty)[0]
    return found


def test_rows_of_different_lengths_are_padded_on_the_left(gpt2: tuple[Path, ExportFile]) -> None:
    long, short = [5, 9, 17, 33, 21], [40, 7, 12]
    both = _scores(gpt2[0], [long, [0, 0, *short]], [[1] * 5, [0, 0, 1, 1, 1]])
    np.testing.assert_allclose(both[0], _scores(gpt2[0], [long], [[1] * 5])[0], atol=1e-5)
    np.testing.assert_allclose(both[1, 2:], _scores(gpt2[0], [short], [[1] * 3])[0], atol=1e-5)


def test_int8_rounds_all_matrices_in_blocks_of_32(llama: tuple[Path, ExportFile]) -> None:
    import onnx

    place, record = llama
    assert [file.name for file in (place / "onnx").iterdir()] == ["model_quantized.onnx"]
    assert record.same_choice > record.smallest_same_choice == 0.9
    proto = onnx.load(place / "onnx/model_quantized.onnx")
    config = models.load(str(place.parent / "base")).model.config
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("MatMulNBits") == 7 * config.num_hidden_layers + 1
    assert "Transpose" in kinds, "of attention"
    matrices = [each.name for each in proto.graph.initializer if each.data_type == 1 and len(each.dims) == 2]
    assert matrices
    assert all(".scales" in name for name in matrices)


def test_a_table_that_is_also_the_output_layer_is_stored_once(tmp_path: Path) -> None:
    """And its rows are those of the model, rounded."""
    import onnx
    from onnx import numpy_helper

    place, _ = export("GPT-2", "int8", tmp_path)
    proto = onnx.load(place / "onnx/model_quantized.onnx")
    table = models.load(str(tmp_path / "base")).model.get_input_embeddings().weight.detach().numpy()
    stored = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    tables = [name for name, each in stored.items() if len(each) == len(table) and each.dtype == np.uint8]
    assert len(tables) == 1
    scales = stored[tables[0].replace("int8", "scales")][..., None]
    rounded = ((stored[tables[0]].astype(np.float32) - 128) * scales).reshape(len(table), -1)[:, : table.shape[1]]
    assert np.abs(rounded - table).max() <= scales.max() * 0.5001


def test_rows_that_no_block_fills_and_blocks_of_zeros_are_rounded() -> None:
    values = np.linspace(-1, 1, 80, dtype=np.float32).reshape(2, 40)
    values[1, :32] = 0
    codes, scales = exporter._in_blocks(values)
    assert codes.shape == (2, 2, 32)
    again = ((codes.astype(np.float32) - 128) * scales[..., None]).reshape(2, 64)[:, :40]
    np.testing.assert_allclose(again, values, atol=1 / 254)
    assert scales[1, 0] == 0


def test_a_model_that_is_too_large_for_one_file_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "MOST_BYTES", 100_000)
    with pytest.raises(ModelError, match=r"The model has 0\.\d GB in fp32; at most"):
        export("GPT-2", "int8", tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_transformers_js_writes_the_same_tokens(gpt2: tuple[Path, ExportFile], tmp_path: Path) -> None:
    """Its npm package, under Node."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("needs node and npm")
    # The install scripts only download what runs on GPUs.
    words = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "@huggingface/transformers@4"]
    if (installed := subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)).returncode:
        pytest.skip(f"npm can't install transformers.js: {installed.stderr[-200:]}")
    (tmp_path / "write.mjs").write_text(SCRIPT, encoding="utf-8")
    bundled, _ = pipeline.export_model("bundled", "onnx", quiet, weights="fp32", out=tmp_path / "bundled")
    quantised, _ = pipeline.export_model("bundled", "onnx", quiet, weights="int8", out=tmp_path / "quantised")
    prompt = "<|endoftext|>Once upon a time"

    def written(place: Path, dtype: str) -> list[int]:
        words = ["node", "write.mjs", f"{place.parent}/", place.name, dtype, prompt]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
        found: list[int] = json.loads(done.stdout)
        return found

    shutil.copytree(BUNDLED_FOLDER, tmp_path / "base")
    assert written(bundled, "fp32") == most_likely(bundled, prompt, 32)
    runtime = exporter.OnnxRuntime(quantised)
    expected = runtime.encode(prompt)
    scores = runtime.read(expected)
    for _ in range(32):
        expected.append(int(scores[-1].argmax()))
        scores = runtime.read(expected[-1:])
    assert written(quantised, "q8") == expected
    assert written(gpt2[0], "fp32") == most_likely(gpt2[0], prompt, 32)
