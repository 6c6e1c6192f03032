"""Test that the sampler is reproducible, does not depend on the batch, and agrees with transformers."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertTokenizer,
    BloomConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoXConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
    TopPLogitsWarper,
)

from finetale.config import SamplingSettings
from finetale.errors import GenerationError
from finetale.generate import Generator
from finetale.generate.sampler import Sampler, _TopP, random_stream
from finetale.generate.text import TextStream
from finetale.tokens import train_tokenizer

SENTENCES = [
    "The miller told a tale of the river and the old bridge.",
    "A heron stood in the river, and nobody told the miller.",
    "Every tale has a bridge; every bridge has a toll.",
]
TOKENIZER = train_tokenizer(SENTENCES * 4, 300)
END = TOKENIZER.eos_token_id
PADDED_VOCAB = 320
CONTEXT = 64
PROMPTS = ["The river", "", "Every bridge in the tale was old, and the miller", "A heron", "toll"]


def make_model(**changes: Any) -> GPT2LMHeadModel:
    torch.manual_seed(1)
    values = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT, "vocab_size": PADDED_VOCAB}
    # A large initializer range gives the random model clear preferences.
    config = GPT2Config(**values | changes, initializer_range=0.5, bos_token_id=END, eos_token_id=END)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return make_model()


@pytest.fixture(scope="module")
def generator(model: GPT2LMHeadModel) -> Generator:
    return Generator(model, TOKENIZER)


def settings(**changes: Any) -> SamplingSettings:
    return SamplingSettings(**{"max_new_tokens": 24, "temperature": 1.0, "top_p": 1.0, "seed": 5} | changes)


def texts(generator: Generator, prompts: list[str], chosen: SamplingSettings, **options: Any) -> list[list[str]]:
    return [[sample.text for sample in samples] for samples in generator.generate(prompts, chosen, **options)]


def ids_of(prompt: str) -> list[int]:
    return TOKENIZER.encode(prompt, add_special_tokens=False) or [END]


def continuation(output: torch.Tensor, prompt: str) -> str:
    """Return the text that model.generate added to a prompt."""
    return TOKENIZER.decode(output[len(ids_of(prompt)) :], skip_special_tokens=True)


def reference(model: Any, prompt: str, **options: Any) -> list[str]:
    """Return the texts of model.generate for the same prompt, without padded ids."""
    ids = torch.tensor([ids_of(prompt)])
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": END, "pad_token_id": END} | options
    padded = list(range(len(TOKENIZER), model.config.vocab_size))
    found = model.generate(ids, attention_mask=torch.ones_like(ids), suppress_tokens=padded, **options)
    return [continuation(row, prompt) for row in found]


# Seeds and random streams


def test_same_seed_gives_the_same_text_and_another_seed_another(generator: Generator) -> None:
    first, again, other = (texts(generator, PROMPTS, settings(seed=seed)) for seed in (5, 5, 6))
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_samples_differ_and_do_not_depend_on_their_number(generator: Generator) -> None:
    (four,) = texts(generator, ["The river"], settings(), n=4)
    (two,) = texts(generator, ["The river"], settings(), n=2)
    assert len(set(four)) == 4
    assert four[:2] == two


def test_sample_carries_prompt_seed_and_count(generator: Generator) -> None:
    ((sample,),) = generator.generate(["The river"], settings(max_new_tokens=3))
    assert (sample.prompt, sample.seed, sample.finish_reason, sample.num_tokens) == ("The river", 5, "length", 3)


def test_prompts_have_different_random_streams() -> None:
    """With one stream, a weak model would write similar text after every prompt."""
    flat = make_model()
    with torch.no_grad():
        for weight in flat.parameters():
            weight.zero_()  # all tokens are equally likely after every prompt
    texts = [
        samples[0].text
        for samples in Generator(flat, TOKENIZER).generate(["The river", "A fox", "The river"], settings())
    ]
    assert texts[0] == texts[2]
    assert texts[0] != texts[1]


def test_neighbouring_random_streams_are_uncorrelated() -> None:
    draws = [torch.rand(1, generator=random_stream(seed, sample)).item() for seed in range(20) for sample in range(20)]
    assert len(set(draws)) == 400
    assert abs(sum(draws) / 400 - 0.5) < 0.06  # four standard errors


def test_global_random_state_and_modes_do_not_change() -> None:
    model = make_model()
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()
    inference = []
    model.register_forward_hook(lambda *_: inference.append(torch.is_inference_mode_enabled()))
    generator = Generator(model, TOKENIZER)
    plain = texts(generator, ["The river"], settings(), n=2)
    texts(generator, ["The river"], settings(num_beams=2))
    pieces = generator.stream("The river", settings())
    streamed = next(pieces)
    assert [module.training for module in model.modules()] == modes
    assert not torch.is_inference_mode_enabled()
    streamed += "".join(pieces)
    assert streamed == plain[0][0]
    assert len(inference) > 48
    assert all(inference)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    # Dropout (0.1 in this model) was off during generation.
    assert plain == texts(Generator(make_model(), TOKENIZER), ["The river"], settings(), n=2)


def test_mode_is_restored_after_an_error() -> None:
    model = make_model().train()
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(torch.nan)
    with pytest.raises(GenerationError, match="NaN"):
        Generator(model, TOKENIZER).generate(["The river"], settings())
    assert model.training


# Batches

FAMILIES = {
    "gpt2": lambda: GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=CONTEXT),
    "gpt_neo": lambda: GPTNeoConfig(
        hidden_size=32, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], window_size=8,
        max_position_embeddings=CONTEXT,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=CONTEXT,
    ),
    "opt": lambda: OPTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64, word_embed_proj_dim=32,
        max_position_embeddings=CONTEXT, pad_token_id=1,
    ),
    "qwen2": lambda: Qwen2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=64,
        max_position_embeddings=CONTEXT,
    ),
    "bloom": lambda: BloomConfig(hidden_size=32, n_layer=2, n_head=2),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_gives_the_same_texts_as_single_prompts(family: str) -> None:
    config: PreTrainedConfig = FAMILIES[family]()
    config.vocab_size = PADDED_VOCAB
    config.bos_token_id = config.eos_token_id = END
    config.initializer_range = config.init_std = 0.3
    torch.manual_seed(2)
    generator = Generator(AutoModelForCausalLM.from_config(config).eval(), TOKENIZER)
    chosen = settings(max_new_tokens=16)
    together = texts(generator, PROMPTS, chosen, n=2)
    assert together == [texts(generator, [prompt], chosen, n=2)[0] for prompt in PROMPTS]
    assert together == texts(generator, PROMPTS, chosen, n=2, batch_size=3)
    greedy = texts(generator, PROMPTS, settings(max_new_tokens=16, temperature=0))
    assert greedy == [reference(generator.model, prompt, max_new_tokens=16) for prompt in PROMPTS]


def test_a_batch_with_history_penalties_gives_the_same_texts_as_single_prompts(generator: Generator) -> None:
    chosen = settings(no_repeat_ngram_size=2, repetition_penalty=1.3, stop="e")
    together = generator.generate(PROMPTS, chosen)
    assert together == [generator.generate([prompt], chosen)[0] for prompt in PROMPTS]
    # The prompts finish at different times.
    assert len({sample.num_tokens for (sample,) in together}) > 1


def test_padding_does_not_count_as_history() -> None:
    # The second row has one token. Its padding is token 0, which is its choice unless a penalty applies.
    ids = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 3]])
    scores = torch.tensor([[3.0, 2.0, 1.0, 1.0, 2.5], [3.0, 2.0, 1.0, 1.0, 2.5]])
    for changes in ({"repetition_penalty": 2.0}, {"no_repeat_ngram_size": 1}):
        sampler = Sampler(settings(temperature=0, **changes), 5, [], {})
        assert sampler.choose(scores, ids, [0, 3], [(0,), (0,)]).tolist() == [4, 0]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo"])
def test_padding_does_not_exceed_the_context(family: str) -> None:
    # GPT-Neo's causal mask has as many columns as the model has positions, padding included.
    config = FAMILIES[family]()
    config.vocab_size = PADDED_VOCAB
    generator = Generator(AutoModelForCausalLM.from_config(config).eval(), TOKENIZER)
    generator.ends = ()  # no token ends the text
    long = TOKENIZER.decode(TOKENIZER.encode(" ".join(SENTENCES))[:50])
    samples = generator.generate([long, "toll"], settings(max_new_tokens=500))
    lengths = [len(ids_of(sample.prompt)) + sample.num_tokens for (sample,) in samples]
    assert lengths == [CONTEXT, CONTEXT]
    assert [sample.finish_reason for (sample,) in samples] == ["length", "length"]


def test_empty_prompt_lists_and_zero_samples(generator: Generator) -> None:
    assert generator.generate([], settings()) == []
    with pytest.raises(GenerationError, match="n = 0"):
        generator.generate(["a"], settings(), n=0)
    with pytest.raises(TypeError, match="sequence"):
        generator.generate("The river", settings())


def test_bfloat16_model_is_reproducible() -> None:
    generator = Generator(make_model().to(torch.bfloat16), TOKENIZER)
    first = texts(generator, ["The river"], settings(top_p=0.9, min_p=0.01), n=2)
    assert first == texts(generator, ["The river"], settings(top_p=0.9, min_p=0.01), n=2)
    assert first[0][0] != first[0][1]


# Agreement with transformers


def test_greedy_search_equals_that_of_transformers(model: GPT2LMHeadModel, generator: Generator) -> None:
    expected = [reference(model, prompt) for prompt in PROMPTS]
    assert texts(generator, PROMPTS, settings(temperature=0)) == expected
    assert texts(generator, PROMPTS, settings(top_k=1)) == expected
    assert texts(generator, PROMPTS[:1], settings(temperature=0), n=3) == [expected[0] * 3]


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}])
def test_history_penalties_equal_those_of_transformers(
    model: GPT2LMHeadModel, generator: Generator, options: dict[str, Any]
) -> None:
    expected = [reference(model, prompt, **options) for prompt in PROMPTS]
    assert texts(generator, PROMPTS, settings(temperature=0, **options)) == expected
    assert expected != [reference(model, prompt) for prompt in PROMPTS]


def test_no_ngram_occurs_twice(model: GPT2LMHeadModel) -> None:
    generator = Generator(model, TOKENIZER)
    rows = generator._rows(["The river"] * 3, settings(temperature=0.3, no_repeat_ngram_size=2), 1, False)
    (batch,) = generator._batches(rows, settings(temperature=0.3, no_repeat_ngram_size=2), 4)
    for _ in range(20):
        batch.step()
    pairs = [tuple(batch.ids[0, place : place + 2].tolist()) for place in range(batch.width - 1)]
    assert len(pairs) == len(set(pairs)) >= 20


def test_a_text_ends_if_every_token_is_forbidden() -> None:
    generator = Generator(make_model(n_positions=512), TOKENIZER)
    ((sample,),) = generator.generate([""], settings(max_new_tokens=500, no_repeat_ngram_size=1))
    # The prompt is one end-of-text, and each other token can occur once.
    assert (sample.num_tokens, sample.finish_reason) == (len(TOKENIZER) - 1, "length")


def test_beam_search_equals_that_of_transformers(model: GPT2LMHeadModel, generator: Generator) -> None:
    for options in ({}, {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2}):
        expected = [reference(model, prompt, num_beams=3, num_return_sequences=2, **options) for prompt in PROMPTS]
        assert texts(generator, PROMPTS, settings(num_beams=3, **options), n=2) == expected
    pieces = list(generator.stream(PROMPTS[0], settings(num_beams=3, **options)))
    assert pieces == [expected[0][0]]


def test_beams_end_at_stop_strings(generator: Generator) -> None:
    ((whole,),) = texts(generator, ["The river"], settings(num_beams=3))
    stop = whole[4:7]
    ((sample,),) = generator.generate(["The river"], settings(num_beams=3, stop=stop))
    assert (sample.text, sample.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_more_samples_than_beams_are_refused(generator: Generator) -> None:
    with pytest.raises(GenerationError, match=r"n = 4 .* 3 beams"):
        generator.generate(["a"], settings(num_beams=3), n=4)


# Choosing a token


def choose(logits: list[float], times: int = 1, **changes: Any) -> list[int]:
    scores = torch.tensor([logits])
    sampler = Sampler(settings(**changes), len(logits), [], {(0,): random_stream(0, 0)})
    return [sampler.choose(scores, torch.zeros(1, 1, dtype=torch.long), [0], [(0,)]).item() for _ in range(times)]


def test_tokens_have_the_frequencies_of_the_softmax() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    counts = torch.bincount(torch.tensor(choose(probabilities.log().tolist(), 4000)), minlength=4)
    assert torch.allclose(counts / 4000, probabilities, atol=0.03)  # about four standard errors
    # Halving the temperature squares the probabilities.
    squared = probabilities**2 / (probabilities**2).sum()
    counts = torch.bincount(torch.tensor(choose(probabilities.log().tolist(), 4000, temperature=0.5)), minlength=4)
    assert torch.allclose(counts / 4000, squared, atol=0.03)


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.75}, {0, 1}),  # 0.5 + 0.3 is the first sum to reach it
        ({"top_p": 0.85}, {0, 1, 2}),
        ({"min_p": 0.2}, {0, 1, 2}),  # at least 0.2 · 0.5
        ({"min_p": 0.5}, {0, 1}),
        ({"temperature": 0.0}, {0}),
    ],
)
def test_top_k_top_p_and_min_p_mask_the_right_tokens(changes: dict[str, Any], allowed: set[int]) -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert set(choose(logits, 400, **changes)) == allowed


def test_ids_without_text_are_never_chosen() -> None:
    model = make_model()
    with torch.no_grad():  # padded ids get by far the largest scores
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.lm_head.weight[len(TOKENIZER) :] = 50 * model.transformer.ln_f.weight
        model.transformer.ln_f.bias.fill_(1.0)
        ids = torch.tensor([ids_of("The river")])
        assert model(ids).logits[0, -1].argmax() >= len(TOKENIZER)
    generator = Generator(model, TOKENIZER)
    for changes in ({}, {"temperature": 0}, {"num_beams": 2}):
        ((sample,),) = generator.generate(["The river"], settings(**changes))
        assert sample.num_tokens > 0
        assert sample.text
    tokens = Sampler(settings(), 4, [2], {(0,): random_stream(0, 0)}).choose(
        torch.tensor([[0.0, 0.0, 99.0, 0.0, 99.0]]), torch.zeros(1, 1, dtype=torch.long), [0], [(0,)]
    )
    assert tokens.item() in {0, 1, 3}


def test_padding_the_vocabulary_does_not_change_the_text() -> None:
    padded = make_model()
    trimmed = make_model(vocab_size=len(TOKENIZER))
    weights = {name: weight[: len(TOKENIZER)] if weight.shape[0] == PADDED_VOCAB else weight
               for name, weight in padded.state_dict().items()}  # fmt: skip
    trimmed.load_state_dict(weights)
    results = [texts(Generator(model, TOKENIZER), PROMPTS, settings(), n=2) for model in (padded, trimmed)]
    assert results[0] == results[1]


# The end of a text


def test_generation_ends_at_end_of_text(model: GPT2LMHeadModel, generator: Generator) -> None:
    chosen = settings(max_new_tokens=50, temperature=2.0)
    samples = [sample for row in generator.generate([""], chosen, n=64) for sample in row]
    ended = [sample for sample in samples if sample.finish_reason == "end"]
    assert ended
    assert all(sample.num_tokens < 50 and TOKENIZER.eos_token not in sample.text for sample in ended)
    assert all(sample.num_tokens == 50 for sample in samples if sample.finish_reason == "length")


def test_a_prompt_that_leaves_room_for_one_token(generator: Generator) -> None:
    prompt = TOKENIZER.decode(TOKENIZER.encode(" ".join(SENTENCES) * 4)[: CONTEXT - 1])
    assert len(ids_of(prompt)) == CONTEXT - 1
    ((sample,),) = generator.generate([prompt], settings())
    assert sample.num_tokens <= 1
    with pytest.raises(GenerationError, match=rf"has {CONTEXT} tokens.* context of {CONTEXT} "):
        generator.stream(prompt + "e", settings())


def test_a_long_prompt_is_refused_or_cut_at_its_start(generator: Generator) -> None:
    prompt = " ".join(SENTENCES) * 6
    ids = ids_of(prompt)
    with pytest.raises(GenerationError, match=f"has {len(ids)} tokens.* context of {CONTEXT}") as caught:
        generator.generate([prompt], settings())
    assert "truncate" in caught.value.hint
    generator.ends, ends = (), generator.ends
    try:
        ((sample,),) = generator.generate([prompt], settings(temperature=0), truncate=True)
        ((greedy,),) = generator.generate([prompt], settings(temperature=0, max_new_tokens=1000), truncate=True)
    finally:
        generator.ends = ends
    # 24 new tokens fit after the last 40 of the prompt. 1,000 never fit, so half of the context is kept.
    assert (sample.num_tokens, greedy.num_tokens) == (24, CONTEXT // 2)
    kept = torch.tensor([ids[-40:]])
    padded = list(range(len(TOKENIZER), PADDED_VOCAB))
    found = generator.model.generate(
        kept, attention_mask=torch.ones_like(kept), do_sample=False, max_new_tokens=24, suppress_tokens=padded,
        eos_token_id=-10, pad_token_id=END,
    )  # fmt: skip
    assert sample.text == TOKENIZER.decode(found[0, 40:], skip_special_tokens=True)
    assert "".join(generator.stream(prompt, settings(), truncate=True))


# Streams and stop strings


def test_a_stream_adds_up_to_the_text(generator: Generator) -> None:
    pieces = list(generator.stream("The river", settings()))
    ((sample,),) = generator.generate(["The river"], settings())
    assert "".join(pieces) == sample.text
    assert len(pieces) > 5


def test_a_stream_returns_the_sample(generator: Generator) -> None:
    returned = []

    def consume() -> Iterator[str]:
        returned.append((yield from generator.stream("The river", settings())))

    assert list(consume())
    assert returned == generator.generate(["The river"], settings())[0]


def test_stop_strings_end_texts_and_streams(generator: Generator) -> None:
    ((whole,),) = texts(generator, ["The river"], settings())
    checked = 0
    for size in (1, 2, 5, 9):
        for start in range(3, len(whole) - size, 4):
            stop = whole[start : start + size]
            chosen = settings(stop=(stop, "never in here"))
            ((sample,),) = generator.generate(["The river"], chosen)
            assert sample.text == whole[: whole.index(stop)]
            assert sample.finish_reason == "stop"
            assert "".join(generator.stream("The river", chosen)) == sample.text
            checked += 1
    assert checked > 20


def assembled(
    tokens: list[int], stop: tuple[str, ...] = (), tokenizer: Any = TOKENIZER
) -> tuple[list[str], TextStream]:
    """Return the pieces of a stream of given tokens."""
    text = TextStream(tokenizer, [], stop)
    pieces = []
    for token in tokens:
        text.add(token)
        pieces.append(text.take(final=text.stopped))
        if text.stopped:
            break
    text.finish()
    return [*pieces, text.take(final=True)], text


def test_no_part_of_a_stop_string_is_streamed() -> None:
    tokens = [TOKENIZER.encode(letter)[0] for letter in "tal tale: END."]
    pieces, text = assembled(tokens, ("tale: END",))
    assert pieces == ["", "", "", "tal ", *[""] * 9, ""]
    assert text.stopped
    assert text.text == "tal "
    # The beginning of a stop string is streamed if the text continues otherwise or ends.
    pieces, text = assembled(tokens[:-2], ("tale: END",))
    assert not text.stopped
    assert "".join(pieces) == "tal tale: EN"
    assert pieces[-1] == "tale: EN"


def test_the_earliest_of_several_stop_strings_ends_the_text() -> None:
    tokens = TOKENIZER.encode("The miller told a tale")
    assert assembled(tokens, ("tale", "told", "iller told"))[1].text == "The m"


def test_characters_of_several_tokens_stream_whole() -> None:
    text = "a 你好 é 🐦‍⬛ z"
    tokens = TOKENIZER.encode(text)
    assert len(tokens) > len(text)  # byte by byte
    pieces, _ = assembled(tokens)
    assert "".join(pieces) == text
    assert "你" in pieces
    assert "🐦" in pieces
    assert not any("\ufffd" in piece for piece in pieces)
    # An incomplete character at the end is decoded by the tokenizer.
    pieces, _ = assembled(tokens[:4])
    assert "".join(pieces) == TOKENIZER.decode(tokens[:4]) == "a \ufffd"
    assert not any("\ufffd" in piece for piece in pieces[:-1])


def test_pieces_of_random_bytes_add_up_to_the_text() -> None:
    stream = random_stream(0, 0)
    for _ in range(50):
        tokens = torch.randint(0, len(TOKENIZER), (60,), generator=stream).tolist()
        pieces, _ = assembled(tokens)
        assert "".join(pieces) == TOKENIZER.decode(tokens, skip_special_tokens=True)


def test_invalid_bytes_are_streamed_after_a_limit() -> None:
    lead = TOKENIZER.encode("é")[0]
    pieces, _ = assembled([lead] * 20)
    assert "".join(pieces) == TOKENIZER.decode([lead] * 20) == "\ufffd" * 20
    assert [len(piece) for piece in pieces] == [0] * 3 + [1] * 17 + [3]


def test_a_long_text_is_decoded_in_a_window() -> None:
    tokens = TOKENIZER.encode(" ".join(SENTENCES) * 5)
    text = TextStream(TOKENIZER, [], ())
    widest = 0
    for token in tokens:
        text.add(token)
        widest = max(widest, len(text._window))
    assert text.text == " ".join(SENTENCES) * 5
    assert widest <= 2 < len(tokens)


def test_tokenizer_that_puts_spaces_between_characters() -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"你好河水桥", "mill", "##er"]
    tokenizer = BertTokenizer(vocab={word: place for place, word in enumerate(words)})
    tokens = tokenizer.encode("你好 miller 河水", add_special_tokens=False)
    pieces, _ = assembled(tokens, tokenizer=tokenizer)
    assert "".join(pieces) == tokenizer.decode(tokens) == "你 好 miller 河 水"
    assert len([piece for piece in pieces if piece]) == 6
    model = make_model(vocab_size=len(words))
    generator = Generator(model, tokenizer)
    assert (generator.begin, generator.ends) == (2, (3,))
    chosen = settings(max_new_tokens=12)
    ((sample,),) = generator.generate(["你好"], chosen)
    assert "".join(generator.stream("你好", chosen)) == sample.text
    assert sample.num_tokens > 1


def test_penalties_ignore_the_prompt() -> None:
    scores = torch.tensor([[5.0, 4.0, 3.0, 0.0]] * 2)
    ids = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0]])

    def pick(**changes: float) -> list[int]:
        sampler = Sampler(settings(temperature=0, **changes), 4, [], {})
        return sampler.choose(scores, ids, [0, 0], [(0,), (0,)], [[0, 0], []]).tolist()

    assert pick() == [0, 0]
    assert pick(presence_penalty=0.9) == [0, 0]
    assert pick(presence_penalty=1.5) == [1, 0]
    assert pick(frequency_penalty=0.4) == [0, 0]
    assert pick(frequency_penalty=0.6) == [1, 0]
    assert pick(presence_penalty=1.5, frequency_penalty=1.0) == [1, 0]


def test_the_logit_bias_is_added_first() -> None:
    scores = torch.tensor([[5.0, 4.0, 3.0]])
    sampler = Sampler(settings(temperature=0), 3, [], {}, bias={0: -100.0, 2: 1.5})
    assert sampler.choose(scores, torch.zeros(1, 1, dtype=torch.long), [0], [(0,)]).tolist() == [2]


def test_a_penalised_text_repeats_itself_less(generator: Generator) -> None:
    plain, penalised = (
        generator.generate(["The lamp"], settings(temperature=0, max_new_tokens=40, frequency_penalty=value))[0][0].text
        for value in (0.0, 2.0)
    )
    assert plain != penalised
    assert len(set(penalised)) > len(set(plain))
    with pytest.raises(GenerationError, match="beam"):
        generator.generate(["The lamp"], settings(num_beams=2, presence_penalty=1.0))


@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0, 20.0])
def test_skipped_noise_would_not_have_been_chosen(spread: float) -> None:
    settings = SamplingSettings.resolve({"temperature": 1.0, "top_p": 1.0, "top_k": 0})
    torch.manual_seed(int(spread * 10))
    scores = torch.randn(40, 5000) * spread
    scores[:20, ::3] = -torch.inf
    rows = [(row // 2,) for row in range(40)]  # pairs share a stream

    def sampler() -> Sampler:
        return Sampler(settings, 5000, [], {stream: random_stream(0, stream[0]) for stream in rows})

    found = sampler().choose(scores, torch.zeros(40, 1, dtype=torch.long), [0] * 40, rows)
    assert found.tolist() == (scores + sampler()._noise(rows)).argmax(-1).tolist()


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0])
def test_top_p_keeps_the_same_tokens_as_a_full_sort(top_p: float, spread: float) -> None:
    torch.manual_seed(0)
    scores = torch.randn(8, 6000) * spread
    scores[0, :4000] = -torch.inf
    found, expected = _TopP(top_p)(torch.zeros(8, 1), scores), TopPLogitsWarper(top_p)(torch.zeros(8, 1), scores)
    if spread:
        assert torch.equal(found, expected)
    else:  # all tokens are equally likely, so rounding decides where the sum reaches top_p
        assert (found.isinf().sum(-1) - expected.isinf().sum(-1)).abs().max() <= 1


def test_stop_strings_are_found_wherever_the_text_is_cut() -> None:
    drawn = random.Random(0)
    found = 0
    for _ in range(300):
        whole = "".join(drawn.choice("ab") for _ in range(40))
        stop = "".join(drawn.choice("ab") for _ in range(drawn.randrange(1, 9)))
        text = TextStream(TOKENIZER, [], (stop, "never"))
        shown, at = "", 0
        while at < len(whole) and not text.stopped:
            size = drawn.randrange(1, 9)
            text._append(whole[at : at + size])
            at += size
            shown += text.take(final=text.stopped)
        shown += text.take(final=True)
        assert text.stopped == (stop in whole)
        assert shown == whole.partition(stop)[0]
        found += text.stopped
    assert 50 < found < 300


def test_the_cost_of_a_stop_string_does_not_depend_on_its_length() -> None:
    seconds = []
    for stop in ("a" * 5 + "b", "a" * 100_000 + "b"):
        text = TextStream(TOKENIZER, [], (stop,))
        began = time.process_time()
        for _ in range(2000):
            text._append("a")
            text.take(final=False)
        seconds.append(time.process_time() - began)
    assert seconds[1] < 20 * seconds[0] + 0.1
