"""The results of the Python interface: `Run`, `Comparison` and its `Figures`."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from finetale.errors import RunError
from finetale.formatting import count, measure
from finetale.library.html import block, table
from finetale.rundir import RunDirectory
from finetale.schema import ComparisonFile, DataFile, EvaluationEvent, RunManifest, Side, TrainEvent

if TYPE_CHECKING:
    import pyarrow as pa

    from finetale.library.writer import Writer


class Figures:
    """One model's figures in a comparison.

    `validation` and `test` hold loss, perplexity, word_perplexity, bits_per_byte, counts and intervals, or are None.
    `perplexity`, `loss` and `bits_per_byte` are those of the test text, or of the validation text without one.
    """

    def __init__(self, side: Side) -> None:
        self.name = side.name
        self.validation = side.validation
        self.test = side.test
        self.samples = side.samples
        self.sample_metrics = side.sample_metrics

    def __repr__(self) -> str:
        held_out = self.test or self.validation
        figures = "no held-out text" if held_out is None else f"perplexity {measure(held_out.perplexity)}"
        return f"<Figures of {self.name}: {figures}>"

    @property
    def loss(self) -> float:
        """Mean loss, nats per token."""
        return self._figure("loss")

    @property
    def perplexity(self) -> float:
        """Perplexity per token."""
        return self._figure("perplexity")

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of UTF-8."""
        return self._figure("bits_per_byte")

    def _figure(self, name: str) -> float:
        held_out = self.test or self.validation
        if held_out is None:
            raise RunError(
                "There was no held-out text, so there are no figures.", "Train with a validation or test text."
            )
        return float(getattr(held_out, name))


class Comparison:
    """The figures before and after training. `content` is the content of `comparison.json`."""

    def __init__(self, content: ComparisonFile) -> None:
        self.content = content
        self.before = Figures(content.before)
        self.after = Figures(content.after)
        self.verdict = content.verdict
        self.improved = content.improved

    def __str__(self) -> str:
        return self.verdict

    def __repr__(self) -> str:
        return f"<Comparison: {self.verdict}>"

    def _repr_html_(self) -> str:
        return block("Comparison", self.verdict, self._table())

    def _table(self) -> str:
        from finetale.report.table import table_rows

        rows = []
        for row in table_rows(self.content):
            if row.group in ("validation", "test", "watched", "answers"):
                change = f"{row.change} ({row.intervals[2]})" if row.intervals[2] else row.change
                what = row.what if row.group in ("watched", "answers") else f"{row.what}, {row.group} text"
                rows.append((what, row.before, row.after, change))
        return table(("", self.before.name, self.after.name, "change (95% interval)"), rows) if rows else ""


_LEGEND = "<small>Grey: training loss, per step and smoothed. Blue: validation loss. Below: learning rate.</small>"


class Run:
    """A run directory. Each property reads its file when it is used."""

    def __init__(self, path: str | Path) -> None:
        self._directory = RunDirectory.open(path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"<Run {self.path}: {self._summary()}>"

    def _repr_html_(self) -> str:
        from finetale.report.charts import WIDE, loss_chart, read_curves

        curves = read_curves(self._directory.read_events())
        chart = loss_chart(curves, WIDE) + _LEGEND if curves.training else ""
        figures = self.comparison._table() if self._directory.comparison.is_file() else ""
        return block(f"Run {self.path}", self._summary(), figures + chart)

    def _summary(self) -> str:
        if self._directory.comparison.is_file():
            return self.comparison.verdict
        manifest = self.manifest
        steps = (
            "" if manifest.total_steps is None else f", {count(manifest.steps)} of {count(manifest.total_steps)} steps"
        )
        return f"{manifest.status}{steps}"

    @property
    def path(self) -> Path:
        """Return the path of the run directory."""
        return self._directory.root

    @property
    def manifest(self) -> RunManifest:
        """Return the content of `run.json`."""
        return self._directory.read_manifest()

    @property
    def data(self) -> DataFile:
        """Return the content of `data.json`: the token account and the data report."""
        return self._directory.read_data()

    @property
    def comparison(self) -> Comparison:
        """Return the comparison of the run with its base.

        Raises:
            RunError: the run was not finished.
        """
        return Comparison(self._directory.read_comparison())

    @property
    def metrics(self) -> pa.Table:
        """Return training steps and evaluations as a table. `run.metrics.to_pandas()` makes a data frame.

        Columns: event (`train` or `evaluation`), step, tokens, epoch, loss (nats per token), perplexity, learning_rate,
        grad_norm, tokens_per_second, memory_bytes, best. Values that an event does not have are null.
        """
        import pyarrow as pa

        events = [e for e in self._directory.read_events() if isinstance(e, TrainEvent | EvaluationEvent)]
        return pa.Table.from_pylist([event.model_dump(include=set(_COLUMNS)) for event in events], schema=_schema())

    @cached_property
    def model(self) -> Writer:
        """Return the run's best model, loaded once: `run.model.generate("Once upon a time")`."""
        from finetale.library.writer import load

        return load(self)

    @property
    def report(self) -> Path:
        """Return the path of the HTML report."""
        return self._directory.report


_COLUMNS = {
    "event": "string",
    "step": "int64",
    "tokens": "int64",
    "epoch": "float64",
    "loss": "float64",
    "perplexity": "float64",
    "learning_rate": "float64",
    "grad_norm": "float64",
    "tokens_per_second": "float64",
    "memory_bytes": "int64",
    "best": "bool",
}


def _schema() -> pa.Schema:
    import pyarrow as pa

    kinds = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
    return pa.schema([(name, kinds[kind]) for name, kind in _COLUMNS.items()])
