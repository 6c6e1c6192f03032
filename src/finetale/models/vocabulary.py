"""Tokens that a tokenizer has and its model has no embedding for: new ones by request, and those of the files.

The embedding of a new token begins as the mean of the embeddings of the tokens that its text was before (Gee, Zugarini,
Rigutini and Torroni, "Fast Vocabulary Transfer for Language Model Compression", EMNLP 2022). So the model reads the
token as it read the text, about. A token without such a text gets the mean of all embeddings, which hardly changes the
probabilities of the others (Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", 2021). The
output layer begins in the same way, and stays tied to the embedding where it is.
"""

from __future__ import annotations

import errno
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetale.errors import ConfigError, TokenizerError
from finetale.formatting import plural

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MAX_NEW = 50_000
_MAX_CHARACTERS = 200
_MAX_MISSING = 1_000
"""Maximum number of added tokens without an embedding; with more, the tokenizer is that of another model."""
_SHOWN = 5
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "HANGUL")
"""First words of the names of letters of scripts that put no space between words, or endings without a space."""


@dataclass(frozen=True)
class NewToken:
    """A token that was added to a tokenizer.

    Attributes:
        text: its text.
        id: its id.
        pieces: ids of the tokens that its text was before.
    """

    text: str
    id: int
    pieces: tuple[int, ...]


def read_new_tokens(entries: Iterable[str]) -> list[str]:
    """Return the tokens that `--new-tokens` names: the lines of each entry that is a file, and the other entries.

    Spaces within and before a token count. Empty lines and repeated tokens are left out.

    Raises:
        ConfigError: a file can't be read, or a token is too long.
    """
    found: dict[str, None] = {}
    for entry in entries:
        lines = _lines(entry)
        for line in [entry] if lines is None else lines:
            if len(line) > _MAX_CHARACTERS:
                raise ConfigError(
                    f"The new token {line[:40]!r}… has {len(line):,} characters, more than {_MAX_CHARACTERS}.",
                    "Give one token per line.",
                )
            if line.strip():
                found[line] = None
    if not found:
        raise ConfigError("--new-tokens names no token.", "Give a token, or a file with one token per line.")
    if len(found) > _MAX_NEW:
        raise ConfigError(f"{len(found):,} new tokens are too many; at most {_MAX_NEW:,} are allowed.", "Give fewer.")
    return list(found)


def _lines(entry: str) -> list[str] | None:
    """Return the lines of a file; None for an entry that is no file."""
    try:
        if not Path(entry).expanduser().is_file():
            if entry.lower().endswith(".txt"):
                raise ConfigError(f"The file of new tokens {entry} does not exist.", "Check the path.")
            return None
        return Path(entry).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"The file of new tokens {entry} is not UTF-8 (byte {error.start:,}).", "Save it as UTF-8."
        ) from None
    except ValueError:  # a NUL
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise ConfigError(f"{entry} can't be read: {error.strerror or error}.", "Check the file.") from None


def add_new_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> tuple[list[NewToken], list[str]]:
    """Add tokens to a tokenizer. The ids of its other tokens stay the same.

    A token of letters is a whole word: it is not found within longer words, except in scripts without spaces.

    Returns:
        The new tokens, and the texts that are tokens already, which are left out.

    Raises:
        TokenizerError: no text is new, or the tokenizer can't add one.
    """
    from transformers import AddedToken

    before = {text: _encoded(tokenizer, text) for text in texts}
    existing = [text for text, ids in before.items() if len(ids) == 1 and _decoded(tokenizer, ids) == text]
    new = [text for text in texts if text not in existing]
    if not new:
        raise TokenizerError(
            f"The tokenizer has all tokens of --new-tokens already, such as {existing[0]!r}.",
            "Leave out --new-tokens, or give other tokens.",
        )
    known = set(tokenizer.get_vocab().values())
    tokenizer.add_tokens([AddedToken(text, normalized=False, single_word=_is_word(text)) for text in new])
    found = []
    for text in new:
        number = tokenizer.convert_tokens_to_ids(text)
        if not isinstance(number, int) or number in known or _encoded(tokenizer, text) != [number]:
            raise TokenizerError(f"The tokenizer can't add {text!r} as a token.", "Leave it out of --new-tokens.")
        found.append(NewToken(text, number, tuple(before[text])))
    _decode_exactly(tokenizer, found)
    return found, existing


def _decode_exactly(tokenizer: PreTrainedTokenizerBase, new: Sequence[NewToken]) -> None:
    """Change the decoder of a byte-level tokenizer so that new tokens come back as they are.

    It takes the letters of a token for bytes if all of them stand for bytes in its alphabet: é is the byte 0xE9 there.
    """
    from tokenizers import decoders, pre_tokenizers

    wrong = [token.text for token in new if _decoded(tokenizer, [token.id]).strip() != token.text.strip()]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not wrong or backend is None or not isinstance(backend.decoder, decoders.ByteLevel):
        return
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    steps = [decoders.Replace(text, spelled.pre_tokenize_str(text)[0][0]) for text in wrong]
    backend.decoder = decoders.Sequence([*steps, decoders.ByteLevel()])


def check_vocabulary(rows: int, tokenizer: PreTrainedTokenizerBase, name: str) -> str | None:
    """Compare a tokenizer with the number of embeddings of a model. Fewer tokens than embeddings are fine.

    Returns:
        A warning if added tokens of the files have no embedding. None if all have one.

    Raises:
        TokenizerError: other tokens have none.
    """
    missing = {number: text for text, number in tokenizer.get_vocab().items() if number >= rows}
    if not missing:
        return None
    added = set(tokenizer.added_tokens_decoder)
    if not set(missing) <= added or len(missing) > _MAX_MISSING:
        raise TokenizerError(
            f"The tokenizer does not fit {name}: it has ids up to {max(missing)}, and the model has {rows} embeddings.",
            "Use the tokenizer the model was trained with (leave --tokenizer out).",
        )
    names = ", ".join(map(repr, list(missing.values())[:_SHOWN])) + (" …" if len(missing) > _SHOWN else "")
    return (
        f"{plural(len(missing), 'added token')} of the tokenizer of {name} ({names}) had no embedding in the model. "
        "Each begins with the mean of all embeddings."
    )


def grow(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, new: Sequence[NewToken] = ()) -> None:
    """Give each token of a tokenizer a row in the embedding and in the output layer of its model.

    A row that exists already is used; models often have more rows than tokens. Tied layers stay tied.

    Args:
        new: the tokens of `add_new_tokens`; others without a row get the mean of all rows.
    """
    import torch

    rows = model.get_input_embeddings().weight.shape[0]
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > rows:
        model.resize_token_embeddings(needed, mean_resizing=False)
    head = model.get_output_embeddings()
    weights = [model.get_input_embeddings().weight]
    if head is not None and head.weight is not weights[0]:
        weights.append(head.weight)
    if getattr(head, "bias", None) is not None:
        weights.append(head.bias)
    with torch.no_grad():
        for matrix in weights:
            _fill(matrix, rows, new)


def _fill(matrix: torch.Tensor, rows: int, new: Sequence[NewToken]) -> None:
    """Set the rows of new tokens, and all rows from `rows` on, in place. Shape (tokens, width) or (tokens,)."""
    if len(matrix) > rows:
        matrix[rows:] = matrix[:rows].mean(0)
    means = [matrix[list(token.pieces)].mean(0) for token in new if token.pieces]
    for token, mean in zip([token for token in new if token.pieces], means, strict=True):
        matrix[token.id] = mean


def _encoded(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    return text


def _is_word(text: str) -> bool:
    """Return whether a text begins and ends with letters or digits of a script that puts spaces between words."""
    ends = (text[0], text[-1])
    spaced = not any(unicodedata.name(character, "").startswith(_UNSPACED) for character in ends)
    return spaced and all(character.isalnum() for character in ends)
