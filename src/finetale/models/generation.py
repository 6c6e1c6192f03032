"""Read and write generation_config.json: the tokens that end a text, and those that are never generated.

Chat models list several tokens that end a text, such as the end of a turn beside the end of a document. Each of them
ends a sample. Training keeps these ids, the padding id, `suppress_tokens` and `bad_words_ids`. It replaces the sampling
values (temperature, top_p, top_k, max_new_tokens …) by Finetale's defaults, which the comparison of a run uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetale.tokens import begin_and_end

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

_KEPT = ("suppress_tokens", "bad_words_ids")


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the ids that end a text: the tokenizer's end-of-text, then the others that the model lists.

    Ids outside the vocabulary are excluded. Without a generation_config.json, transformers takes the ids of
    config.json. Only a list counts there: a single id can be the default of the architecture, but an ordinary token.
    """
    value = getattr(model.generation_config, "eos_token_id", None)
    by_default = getattr(model.generation_config, "_from_model_config", False) and not isinstance(value, list)
    listed = [] if by_default else _ids(value)
    known = set(tokenizer.get_vocab().values())
    return tuple(dict.fromkeys([begin_and_end(tokenizer)[1], *(token for token in listed if token in known)]))


def suppressed_ids(model: PreTrainedModel) -> list[int]:
    """Return the ids that generation_config.json forbids (`suppress_tokens`)."""
    return _ids(getattr(model.generation_config, "suppress_tokens", None))


def drop_foreign_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Remove end ids that are not special tokens of the tokenizer, if the tokenizer is not the model's own."""
    config = model.generation_config
    if config is not None:
        special = _special_ids(tokenizer)
        config.eos_token_id = [token for token in _ids(config.eos_token_id) if token in special] or None
        for name in _KEPT:
            setattr(config, name, None)


def generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_new_tokens: int
) -> GenerationConfig:
    """Return the generation_config.json to save with a model."""
    from transformers import GenerationConfig

    before = model.generation_config
    begin, _ = begin_and_end(tokenizer)
    ends = end_ids(model, tokenizer)
    own_pad = _ids(getattr(before, "pad_token_id", None))
    pad = [tokenizer.pad_token_id, *(token for token in own_pad if token in tokenizer.get_vocab().values()), ends[0]]
    kept = {name: value for name in _KEPT if (value := getattr(before, name, None)) is not None}
    return GenerationConfig(
        bos_token_id=begin,
        eos_token_id=list(ends) if len(ends) > 1 else ends[0],
        pad_token_id=next(token for token in pad if token is not None),
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
        top_k=0,
        max_new_tokens=max_new_tokens,
        **kept,
    )


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    return {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}


def _ids(value: Any) -> list[int]:
    """Return one or several ids as a list, without invalid values of the file."""
    items = value if isinstance(value, list | tuple) else [value]
    return [item for item in items if isinstance(item, int) and not isinstance(item, bool)]
