"""Read `hf:DATASET[/CONFIG][:SPLIT]` with the datasets library. Knows nothing of files and splitting rules.

DATASET is NAME or OWNER/NAME, so two names with a slash between them are ambiguous. They are tried as OWNER/NAME first,
then as NAME/CONFIG. Three names are OWNER/NAME/CONFIG.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

from finetale.errors import FinetaleError, HubError, SourceError
from finetale.extras import require
from finetale.text.account import FileAccount
from finetale.text.columns import LOOK_AHEAD, Raw, SourceColumns, record_documents
from finetale.text.documents import FileError, Split
from finetale.text.formats import Format, SourceFile
from finetale.text.sources import Input

PREFIX = "hf:"
BATCH_ROWS = 256
OWN_SPLITS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
HINT = (
    "Set HF_ENDPOINT to a mirror, use --offline when the dataset was downloaded before, or download its files "
    "elsewhere and give their folder."
)


def parse(source: str) -> tuple[list[tuple[str, str | None]], str | None]:
    """Return ([(dataset, config), …] in the order to try, split).

    Raises:
        SourceError: the source is not of the form hf:DATASET[/CONFIG][:SPLIT].
    """
    names, _, split = source.removeprefix(PREFIX).partition(":")
    pieces = names.split("/")
    if not 1 <= len(pieces) <= 3 or not all(pieces) or (":" in source.removeprefix(PREFIX) and not split):
        raise SourceError(
            f"{source!r} does not name a dataset.",
            "Write hf:NAME, hf:OWNER/NAME or hf:OWNER/NAME/CONFIG, then :SPLIT if wanted.",
        )
    if len(pieces) == 1:
        return [(names, None)], split or None
    if len(pieces) == 3:
        return [("/".join(pieces[:2]), pieces[2])], split or None
    return [(names, None), (pieces[0], pieces[1])], split or None


def find_splits(source: str, role: Split, *, streaming: bool, offline: bool) -> tuple[dict[Split, Input], list[str]]:
    """Find the splits of a dataset that a role reads.

    Args:
        source: hf:DATASET[/CONFIG][:SPLIT].
        role: the split to find. For "train" without SPLIT, the dataset's own validation and test splits are returned
            too.
        streaming: read rows as they are needed instead of downloading the dataset first. Ignored with `offline`.
        offline: use only what was downloaded before.

    Returns:
        (an input for each split found, names of the dataset's other splits).

    Raises:
        HubError: the hub can't be reached, or has no such dataset.
        SourceError: the config or split does not exist, or the dataset can't be read without running its code.
    """
    candidates, split = parse(source)
    rows = _load(source, candidates, split, streaming=streaming and not offline, offline=offline)
    if split is not None:
        return {role: Input(source, DATASET, rows=rows, source=source)}, []
    found: dict[Split, Input] = {}
    names = list(rows)
    for wanted, own_names in OWN_SPLITS.items():
        name = next((name for name in own_names if name in rows), None)
        if name is not None and (wanted == role or role == "train"):
            found[wanted] = Input(f"{source}:{name}", DATASET, rows=rows[name], source=source)
    if role not in found and len(names) == 1:
        found[role] = Input(f"{source}:{names[0]}", DATASET, rows=rows[names[0]], source=source)
    if role not in found:
        raise SourceError(
            f"{source} has no split for {role}; its splits are {', '.join(names)}.",
            f"Name one, as in {source}:{names[0]}." if names else "Choose another dataset.",
        )
    used = {entry.name for entry in found.values()}
    return found, [f"{source}:{name}" for name in names if f"{source}:{name}" not in used]


def dataset_documents(rows: Any, columns: SourceColumns, account: FileAccount) -> Iterator[tuple[int, Raw]]:
    """Yield (record number from 1, raw text or example) of each row of a Dataset or IterableDataset.

    If the dataset names its columns, only the column with the text is read. The other columns are measured in the
    first rows.

    Raises:
        FileError: the column is missing or holds no text, or most of the text is in other columns.
        HubError: the connection to the hub failed.
    """
    try:
        features = rows.features
        if not features:
            records = chain.from_iterable(_rows_of(batch) for batch in rows.iter(batch_size=BATCH_ROWS))
            yield from record_documents(enumerate(records, 1), columns, account)
            return
        # Only columns with strings are selected, because pictures and sounds would be decoded.
        with_text = [name for name, feature in features.items() if _holds_strings(feature)]
        ahead = list(islice(rows.select_columns(with_text), LOOK_AHEAD)) if with_text else []
        choice = columns.choose(ahead or [dict.fromkeys(features)], account.file, 1, list(features))
        account.text_column = choice.taken
        num_rows = getattr(rows, "num_rows", None) or len(ahead)
        for record in ahead:
            choice.measure(record, num_rows / len(ahead))
        choice.judge(account.file, at_end=False)
        selected = rows.select_columns(choice.names_read(list(features)))
        batches = (_rows_of(batch) for batch in selected.iter(batch_size=BATCH_ROWS))
        for number, record in enumerate(chain.from_iterable(batches), 1):
            yield number, choice.raw(record, account, number)
    except FinetaleError:
        raise
    except Exception as error:
        if not _is_network(error):
            reason = f"its rows can't be read ({_first_line(error)})"
            raise FileError(
                account.file, None, "unreadable", reason, "Try without streaming, or another dataset."
            ) from None
        raise HubError(f"{account.file} can't be read to its end: {_first_line(error)}.", HINT) from None


def _holds_strings(feature: Any) -> bool:
    """Return whether a feature of a dataset holds strings, at any depth."""
    if isinstance(feature, dict):
        return any(_holds_strings(inner) for inner in feature.values())
    if isinstance(feature, list):
        return any(_holds_strings(inner) for inner in feature)
    if (inner := getattr(feature, "feature", None)) is not None:
        return _holds_strings(inner)
    return getattr(feature, "dtype", "") in ("string", "large_string")


def _rows_of(batch: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    return (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))


def _load(
    source: str, candidates: list[tuple[str, str | None]], split: str | None, *, streaming: bool, offline: bool
) -> Any:
    require("datasets", f"Reading {source}")
    import datasets

    with _only_local(offline):
        for name, config in candidates:
            try:
                return datasets.load_dataset(name, config, split=split, streaming=streaming)
            except datasets.exceptions.DatasetNotFoundError:
                continue
            except Exception as error:
                if offline and _is_network(error):
                    continue
                if _is_network(error):
                    raise HubError(f"{source}: the hub can't be reached ({_first_line(error)}).", HINT) from None
                raise SourceError(
                    f"{source} can't be used: {_first_line(error)}.",
                    "Check the names of config and split. A dataset that needs its own code is not supported.",
                ) from None
    tried = " or ".join(name if config is None else f"{name} with config {config}" for name, config in candidates)
    if offline:
        raise HubError(f"{source}: {tried} was not downloaded before, and this is offline mode.", HINT)
    raise HubError(
        f"{source}: the hub has no dataset {tried}, or you have no access to it.", "Check the name, or log in."
    )


@contextmanager
def _only_local(offline: bool) -> Iterator[None]:
    """Switch the libraries to offline mode during a call. They read the environment only at import."""
    from datasets import config
    from huggingface_hub import constants

    before = config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    try:
        if offline:
            config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
        yield
    finally:
        config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before


def _is_network(error: BaseException) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        module = type(seen).__module__.partition(".")[0]
        if isinstance(seen, ConnectionError | TimeoutError) or module in (
            "httpx",
            "httpx2",
            "httpcore",
            "httpcore2",
            "aiohttp",
            "requests",
        ):
            return True
        seen = seen.__cause__
    return False


def _first_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")


def _read(file: SourceFile) -> Iterator[tuple[int, Raw]]:
    return dataset_documents(file.rows, file.columns, file.account)


DATASET = Format("dataset", "table", (), "documents", _read)
"""A split of a dataset. It is not a file, so the registry does not have it."""
