"""Upload a run or a model folder to the Hub: collect its files, check what it would reveal, and send them at once."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path

from finetale import models
from finetale.config import read_settings_file
from finetale.errors import RunError
from finetale.formatting import count, plural, shell_command
from finetale.models import adapter_files
from finetale.models.cards import CARD_NAME
from finetale.notify import Notify, note, stage, warn
from finetale.report import model_card
from finetale.report.views import COPY_WARNING_WORDS
from finetale.rundir import MANIFEST_NAME, RunDirectory, is_sealed, sealed_sums, verify_folder
from finetale.schema import ComparisonFile, DataFile, PushedFile, PushResult
from finetale.text.findings import not_looked_for, personal_findings

_OF_A_MODEL = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.*"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", adapter_files.CONFIG_NAME),
    *(CARD_NAME, "LICENSE*", "NOTICE*", "report.html", "export.json"),
)
"""Patterns of the files of a model folder that is not of a run. Others may be texts, keys or pickles."""


@dataclass(frozen=True)
class Push:
    """What an upload consists of.

    Attributes:
        name: the run or folder.
        contents: content or local file by the path in the repository.
        result: the same for people and programs, before the upload.
    """

    name: str
    contents: dict[str, Path | bytes]
    result: PushResult

    def refuse_findings(self) -> None:
        """Check that nothing was found that others should not read.

        Raises:
            RunError: personal data or memorised passages were found.
        """
        if self.result.findings:
            raise RunError(
                f"{self.name} may reveal its text: {'; '.join(self.result.findings)}.",
                "Train again with --mask-personal-data or fewer epochs, or push it with --anyway.",
            )

    def send(self, notify: Notify) -> PushResult:
        """Upload the files in one commit.

        Raises:
            HubError: the Hub refuses, or can't be reached.
        """
        total = self.result.bytes
        stage(notify, f"Uploading to {self.result.repository}")

        def progress(name: str, done: int) -> None:
            stage(notify, f"Uploading {name}", done=done, total=total, unit="bytes")

        done = models.upload(
            self.result.repository,
            self.contents,
            public=self.result.public,
            what=Path(self.name).expanduser().resolve().name,
            progress=progress,
        )
        if done.private and self.result.public:
            warn(notify, f"{done.repository} exists and stays private. Its settings on the Hub make it public.")
        if done.removed:
            note(notify, f"Removed files of an earlier push: {', '.join(done.removed)}.")
        changed = {
            "repository": done.repository,
            "url": done.url,
            "commit": done.commit,
            "public": not done.private,
            "removed": list(done.removed),
        }
        return self.result.model_copy(update=changed)


def prepare_push(
    name: str, repository: str, notify: Notify, *, public: bool = False, with_report: bool | None = None
) -> Push:
    """Collect and check the files of an upload. Uses no network.

    Args:
        name: a run, or a folder with a model or an adapter.
        repository: NAME or OWNER/NAME on the Hub.
        public: whether everyone may read it.
        with_report: whether report.html of a run is part of it. None: only of what is private, because it quotes the
            text and names its files.

    Raises:
        HubError: the name of the repository is invalid.
        RunError: there is no run and no model folder, the run has no model, or a file is corrupted.
        ModelError: the folder holds no complete model in safetensors.
    """
    models.check_repository(repository)
    folder = Path(name).expanduser()
    run = RunDirectory(folder)
    left_out: list[str] = []
    if run.is_run():
        contents = _of_run(name, run, notify, with_report=not public if with_report is None else with_report)
    else:
        contents, left_out = _of_folder(name, folder)
        # A model folder of a run holds what the run learned.
        places = [RunDirectory(place) for place in (folder.resolve().parent, folder.resolve().parent.parent)]
        run = next((place for place in places if place.is_run()), run)
        if run.is_run() and CARD_NAME not in contents and folder.resolve() == run.adapter.resolve():
            contents[CARD_NAME] = _card(run, adapter=True)
    findings, unknown = _findings(run) if run.is_run() else ([], ["Where its text came from is not known."])
    files = [PushedFile(path=path, bytes=_size(content)) for path, content in contents.items()]
    result = PushResult(
        repository=repository,
        public=public,
        files=sorted(files, key=lambda file: (-file.bytes, file.path)),
        left_out=left_out,
        findings=findings,
        not_looked_for=unknown,
    )
    return Push(name, contents, result)


def _of_run(name: str, run: RunDirectory, notify: Notify, *, with_report: bool) -> dict[str, Path | bytes]:
    """Return the files of a run: the model with its card, the report, and the adapter."""
    if not run.model.is_dir():
        is_adapted = models.is_adapter(run.adapter)
        command = shell_command("finetale", "merge" if is_adapted else "resume", name)
        raise RunError(f"The run {name} has no model{'' if is_adapted else ' yet'}.", f"Make it with `{command}`.")
    contents: dict[str, Path | bytes] = {}
    # Older versions wrote model/ without checksums.
    contents |= _sealed(run.model, name) if is_sealed(run.model) else _of_folder(name, run.model)[0]
    if CARD_NAME not in contents:
        contents[CARD_NAME] = _card(run)
    if with_report and run.report.is_file():
        contents[run.report.name] = run.report
    if is_sealed(run.adapter):
        contents |= {f"adapter/{path}": file for path, file in _sealed(run.adapter, name).items()}
        base, _ = adapter_files.named_base(run.adapter, name)
        if base is not None and base != models.BUNDLED_NAME and not models.is_hub_id(base):
            warn(notify, f"The adapter names its base by a path that others do not have: {base}. The model is whole.")
    if run.read_manifest().status != "finished":
        warn(notify, f"The run {name} is not finished; this is its best model so far.")
    return contents


def _sealed(folder: Path, name: str) -> dict[str, Path]:
    """Return the files of a sealed folder, without the seal: it would make every later change of the card an error."""
    if problems := verify_folder(folder):
        raise RunError(
            f"{folder} is corrupted ({problems[0]}).",
            f"`{shell_command('finetale', 'compare', name)}` writes it again from the best checkpoint.",
        )
    return {path: folder / path for path in sealed_sums(folder)}


def _of_folder(name: str, folder: Path) -> tuple[dict[str, Path | bytes], list[str]]:
    """Return the files of a model folder or an adapter folder, and the names of its other files."""
    if not folder.is_dir():
        raise RunError(f"{name} is neither a run nor a model folder.", "`finetale runs` lists the runs here.")
    if is_sealed(folder) and (problems := verify_folder(folder, links=True)):
        raise RunError(
            f"{folder} is corrupted ({problems[0]}).",
            f"Restore the file, or delete {folder / MANIFEST_NAME} if the change was intended.",
        )
    if models.is_adapter(folder):
        adapter_files.check_files(name, [file.name for file in folder.iterdir()])
    else:
        models.locate(models.name_of_folder(folder), offline=True)
    contents: dict[str, Path | bytes] = {}
    left_out = []
    for file in sorted(folder.iterdir()):
        if file.is_file() and any(fnmatch.fnmatchcase(file.name, pattern) for pattern in _OF_A_MODEL):
            contents[file.name] = file
        elif file.name != MANIFEST_NAME:
            left_out.append(file.name)
    return contents, left_out


def _card(run: RunDirectory, *, adapter: bool = False) -> bytes:
    """Return the card of a run that was stopped before it wrote one, or of its adapter alone."""
    comparison, data = _records(run)
    settings = read_settings_file(run.config)
    return model_card(run.read_manifest(), comparison, data, settings=settings, adapter=adapter).encode()


def _records(run: RunDirectory) -> tuple[ComparisonFile | None, DataFile | None]:
    return (
        run.read_comparison() if run.comparison.is_file() else None,
        run.read_data() if run.data.is_file() else None,
    )


def _findings(run: RunDirectory) -> tuple[list[str], list[str]]:
    """Return what a run's records say of personal data and memorised passages, and what was not looked for."""
    comparison, data = _records(run)
    text = data.text if data else None
    findings = [finding.what for finding in (personal_findings(text) if text else ()) if finding.matters]
    unknown = (
        [] if text and text.personal_data is not None else [not_looked_for(text) or "Personal data was not looked for."]
    )
    memory = comparison.memorisation if comparison else None
    if memory is None or memory.training is None:
        unknown.append("Memorised passages were not looked for.")
    elif memory.training.passages:
        found = f"it writes {plural(memory.training.passages, 'passage')} of the training text word for word"
        private = memory.training.with_personal_data
        findings.append(f"{found}, {count(private)} of them with personal data" if private else found)
    match = comparison.after.sample_metrics.longest_match if comparison else None
    if match is not None and match.words >= COPY_WARNING_WORDS:
        findings.append(f"its samples repeat {plural(match.words, 'word')} of the training text in a row")
    return findings, unknown


def _size(content: Path | bytes) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
