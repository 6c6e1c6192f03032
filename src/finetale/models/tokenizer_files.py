"""Load a tokenizer from the files of a model, in the forms that are found in practice; refuse an empty one.

transformers chooses a class by config.json and tokenizer_config.json. Some classes rebuild a tokenizer from its
vocabulary by rules of their own, in place of the rules in tokenizer.json that the model was trained with. Folders that
name no class are read as what their files are.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from finetale.errors import TokenizerError
from finetale.extras import install_hint, is_installed
from finetale.models import adapter_files, gguf
from finetale.models.files import first_line, is_adapter
from finetale.models.hub import download
from finetale.models.names import BUNDLED_FOLDER, BUNDLED_NAME, check_name, is_hub_id, name_of_folder
from finetale.models.progress_bars import no_progress_bars
from finetale.models.safety import check_tokenizer_files
from finetale.tokens import check_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = (
    "It's 12:30, I'll say “yes” – the naïve café's 3.14 km.  Two  spaces,\n\n and lines\tand 2023 tabs \n  x_y a1b2 "
    "今天我们去河边，好吗？Ещё раз: да! それはペン、です。 1,000 rows -- 'tis so... e\u0301 ﬁn http://a.b/c?d=e END"
)
"""Text on which two ways to read a tokenizer are compared."""
_warnings: WeakKeyDictionary[PreTrainedTokenizerBase, str] = WeakKeyDictionary()


def tokenizer_warning(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return what `load_tokenizer` found unusual about a tokenizer, as a sentence for people."""
    return _warnings.get(tokenizer)


def load_tokenizer(
    source: str | Path, *, name: str | None = None, revision: str | None = None, offline: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a folder, a run, a GGUF file, the package (`bundled`) or the Hub; refuse an empty one.

    Raises:
        TokenizerError: it is missing, empty, loses all text, or needs a package that is not installed.
        ModelError, HubError: as in `loading.load`.
    """
    name = name or str(source)
    if (file := gguf.gguf_file(Path(source).expanduser())) is not None:
        tokenizer = gguf.read_tokenizer(file, name)
        check_tokenizer(tokenizer, name)
        return tokenizer
    folder = _folder(source if isinstance(source, str) else name_of_folder(source), revision, offline)
    if is_adapter(folder) and not (folder / "tokenizer_config.json").is_file():
        base, commit = adapter_files.named_base(folder, name)
        if base is not None:
            folder = _folder(name_of_folder(folder.parent / base) if base.startswith(".") else base, commit, offline)
    check_tokenizer_files(name, folder)
    tokenizer = _read(folder, name)
    _without_dropout(tokenizer)
    check_tokenizer(tokenizer, name)
    return tokenizer


def _folder(source: str, revision: str | None, offline: bool) -> Path:
    """Return the folder with the tokenizer of a model."""
    folder = Path(source).expanduser()
    if source == BUNDLED_NAME:
        check_name(BUNDLED_NAME)
        return BUNDLED_FOLDER
    if (folder / "run.json").is_file():
        return folder / "model"
    if not folder.is_dir():
        if not is_hub_id(source):
            raise TokenizerError(f"The tokenizer {source} is neither a folder nor a Hub id.", "Check the path.")
        folder = download(source, revision, offline, weights=False).folder
    return folder


def _without_dropout(tokenizer: PreTrainedTokenizerBase) -> None:
    """Turn off the dropout of merges, with which the same text gets other tokens each time."""
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if getattr(model, "dropout", None):
        model.dropout = None  # type: ignore[union-attr]


def _read(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a folder: as transformers does, else as what its files are."""
    files = {file.name for file in folder.iterdir()}
    pieces = sorted(file for file in files if file.endswith(".model"))
    if pieces and not files & {"tokenizer.json", "vocab.json", "vocab.txt"} and not is_installed("sentencepiece"):
        raise TokenizerError(
            f"The tokenizer of {name} is there only as {pieces[0]}, and reading it needs the package sentencepiece, "
            "which is not installed.",
            install_hint("sentencepiece"),
        )
    tokenizer: PreTrainedTokenizerBase | None = None
    problem: Exception | None = None
    try:
        tokenizer = _by_class(folder)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, ImportError … for the same problem
        problem = error
    if tokenizer is None or _is_empty(tokenizer):
        tokenizer = _by_files(folder, files) or tokenizer
    elif "tokenizer.json" in files:
        tokenizer = _by_rules(folder, name, tokenizer)
    elif pieces:
        tokenizer = _by_pieces(folder / pieces[0], name, tokenizer)
    if tokenizer is None:
        only = sorted(file for file in files if file.endswith((".model", ".tiktoken")))
        raise TokenizerError(
            f"The tokenizer of {name} can't be loaded: {first_line(problem) if problem else 'unknown reason.'}",
            f"It is there only as {only[0]}. Convert it to tokenizer.json, or give another tokenizer with --tokenizer."
            if only and not files & {"tokenizer.json", "vocab.json", "vocab.txt"}
            else "Its folder needs tokenizer.json (or vocab.json and merges.txt) and tokenizer_config.json; "
            "or give --tokenizer.",
        ) from problem
    return tokenizer


def _by_class(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer that transformers' AutoTokenizer chooses."""
    from transformers import AutoTokenizer  # imported late, because it takes seconds: the checks above come first

    with no_progress_bars():
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    return found


def _is_empty(tokenizer: PreTrainedTokenizerBase) -> bool:
    return len(tokenizer) <= len(set(tokenizer.all_special_ids))


def _by_files(folder: Path, files: set[str]) -> PreTrainedTokenizerBase | None:
    """Return the tokenizer of a folder that names no class, or a wrong one, by its files; None if they are none."""
    from transformers import BertTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

    kinds: list[Any] = []
    if "tokenizer.json" in files:
        kinds.append(PreTrainedTokenizerFast)
    if {"vocab.json", "merges.txt"} <= files:
        kinds.append(GPT2Tokenizer)
    if "vocab.txt" in files:
        kinds.append(BertTokenizer)
    for kind in kinds:
        try:
            found: PreTrainedTokenizerBase = kind.from_pretrained(str(folder), local_files_only=True)
        except Exception:
            continue
        if not _is_empty(found):
            return found
    return None


def _by_rules(folder: Path, name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer of tokenizer.json if the class that transformers chose gives other tokens, else the class's.

    Known cases are Granite 4 with transformers 5.0 to 5.8, and any tokenizer that is saved with a Qwen 2 model.
    """
    from transformers import PreTrainedTokenizerFast

    if _is_general(tokenizer):
        return tokenizer
    try:
        exact: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except Exception:  # an old or partial file; the class has another source
        return tokenizer
    if _is_empty(exact) or _probe(exact) == _probe(tokenizer):
        return tokenizer
    _warnings[exact] = (
        f"transformers reads the tokenizer of {name} as {type(tokenizer).__name__}, whose tokens differ from those of "
        "its tokenizer.json. Finetale uses tokenizer.json. In other programs, load it with "
        "PreTrainedTokenizerFast.from_pretrained."
    )
    return exact


def _by_pieces(file: Path, name: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a SentencePiece model: that of its class if the tokens are SentencePiece's, else ours.

    Some classes read any model as their own kind: GPT-2's loses all spaces, and Llama's reads a Unigram model as BPE.
    Words are compared, without the first of a text, because classes treat the spaces there differently on purpose.

    Raises:
        TokenizerError: no conversion gives SentencePiece's tokens.
    """
    import sentencepiece

    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError):  # another file, such as a tiktoken vocabulary
        return tokenizer
    if not _is_general(tokenizer) and not _words_that_differ(processor, tokenizer):
        return tokenizer
    converted = _converted(file)
    if words := _words_that_differ(processor, converted):
        raise TokenizerError(
            f"The tokenizer of {name} can't be used: transformers makes other tokens of {file.name} than "
            f"SentencePiece, such as for {words[0]!r}.",
            "Name its class as `tokenizer_class` in tokenizer_config.json, or give another with --tokenizer.",
        )
    return converted


def _is_general(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer has the general class of transformers, which adds no rules of its own."""
    return type(tokenizer).__name__ in ("PreTrainedTokenizerFast", "TokenizersBackend")


def _words_that_differ(processor: Any, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the words of the probe of which SentencePiece makes other tokens."""
    words = [word for word in _PROBE.split() if word.isascii()]  # some classes leave out Unicode normalisation
    found = []
    for word in words:
        text = f"a {word}"
        ids = tokenizer.encode(text, add_special_tokens=False)
        pieces = tokenizer.convert_ids_to_tokens(ids)  # the classes of some models count ids from another number
        if pieces[1:] != processor.id_to_piece(processor.encode(text))[1:]:
            found.append(word)
    return found


def _converted(file: Path) -> PreTrainedTokenizerBase:
    """Return a SentencePiece model as a fast tokenizer, with its rules for spaces, which transformers leaves out."""
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Regex, decoders, normalizers
    from transformers import PreTrainedTokenizerFast

    model: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    model.ParseFromString(file.read_bytes())
    rules = model.normalizer_spec
    found: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(str(file.parent), local_files_only=True)
    backend = found.backend_tokenizer
    steps: list[Any] = []
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    if rules.add_dummy_prefix:
        backend.decoder = decoders.Sequence([backend.decoder, decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return found


def _probe(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ids: list[int] = tokenizer.encode(_PROBE, add_special_tokens=False, verbose=False)
    return ids
