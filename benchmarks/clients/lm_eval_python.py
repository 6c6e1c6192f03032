"""EleutherAI's harness: a task of a local file, scored by the service and by the harness's own model."""

import json
import os
import pathlib
import tempfile

from checks import MODEL, ROOT, expect, run
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

os.environ["OPENAI_API_KEY"] = "none"
FOLDER = os.environ["FINETALE_MODEL"]
here = pathlib.Path(tempfile.mkdtemp())
rows = [
    {"question": f"Story {number}. The lamp stood on the", "choices": ["sill", "boat"], "answer": number % 2}
    for number in range(12)
]
(here / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
(here / "lamps.yaml").write_text(
    json.dumps(
        {
            "task": "lamps",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(here / "rows.jsonl")}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "acc"}],
        }
    )
)


def scored(kind, /, **values):
    found = simple_evaluate(
        model=kind,
        model_args=",".join(f"{name}={value}" for name, value in values.items()),
        tasks=["lamps"],
        task_manager=TaskManager(include_path=str(here), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
        device="cpu",
    )
    return [float(pair[0]) for sample in found["samples"]["lamps"] for pair in sample["filtered_resps"]]


def plain():
    url = f"{ROOT}/v1/completions"
    served = scored("local-completions", model=MODEL, base_url=url, tokenizer=FOLDER, num_concurrent=4, max_length=512)
    local = scored("hf", pretrained=FOLDER, dtype="float32")
    expect(len(served) == 24 and all(abs(a - b) < 1e-3 for a, b in zip(served, local, strict=True)), (served, local))


run("lm_eval", {"plain": plain})
