"""What is true of `TransformerLM` whatever its mechanism: nothing here names one, except where it compares two."""

import dataclasses
import json

import pytest
import torch
from torch import Tensor

from bsbr import MECHANISMS, ModelConfig, TransformerLM

VOCAB = 61
OPTIONS: list[dict] = [{"mechanism": name} for name in MECHANISMS] + [
    {"mechanism": "bsbr", "compression_factor": 2},
    {"mechanism": "bsbr", "compression_factor": 4, "local_chunks": 2},
    {"mechanism": "bsbr", "compression_factor": 8, "top_k": 2},
    {"mechanism": "bsbr", "local_chunks": 3, "top_k": 1},
]
every_mechanism = pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(str(v) for v in o.values()))


def make(dtype: torch.dtype = torch.float64, chunk_size: int = 8, **options) -> TransformerLM:
    torch.manual_seed(0)
    sizes = dict(vocab_size=VOCAB, hidden_dim=32, num_heads=2, num_layers=2, ff_dim=48, window_size=8)
    model = TransformerLM(ModelConfig(**{**sizes, "chunk_size": chunk_size, **options}))
    return model.to(dtype).eval()


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


@every_mechanism
def test_no_token_sees_the_future(options):
    """For n from 1 to 700 around every chunk boundary, changing tokens ≥ t changes no output before t at all."""
    model = make(chunk_size=64, **{**options, "window_size": 64})
    lengths = sorted({n for edge in range(0, 701, 64) for n in (edge - 1, edge, edge + 1) if 1 <= n <= 700} | {700})
    with torch.inference_mode():
        for n in lengths:
            ids = tokens(1, n)
            before = model.encode(ids)
            for t in {1, n // 2, n // 64 * 64, n - 1} & set(range(1, n)):
                changed = ids.clone()
                changed[:, t:] = (changed[:, t:] + 1) % VOCAB
                after = model.encode(changed)
                assert torch.equal(after[:, :t], before[:, :t]), (n, t)
                assert not torch.equal(after[:, t:], before[:, t:]), (n, t)


@every_mechanism
def test_no_token_sees_the_future_or_the_padding_when_padded(options):
    model = make(**options)
    for side in ("left", "right"):
        ids, mask = tokens(3, 29), padding_mask([29, 13, 1], side)
        before = model.encode(ids, mask)
        padding_changed = torch.where(mask, ids, (ids + 7) % VOCAB)
        assert torch.equal(model.encode(padding_changed, mask), before)
        later = torch.arange(29) >= 20
        future_changed = torch.where(later, (ids + 1) % VOCAB, ids)
        assert torch.equal(model.encode(future_changed, mask)[:, :20], before[:, :20])


@every_mechanism
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_gets_what_it_gets_alone(options, side):
    model = make(**options)
    lengths = [27, 16, 9, 1]
    ids, mask = tokens(4, 27), padding_mask(lengths, side)
    hidden = model.encode(ids, mask)
    for row in range(len(lengths)):
        alone = model.encode(ids[row][mask[row]][None])[0]
        torch.testing.assert_close(hidden[row][mask[row]], alone, rtol=1e-10, atol=1e-12)
    assert torch.equal(hidden[~mask], torch.zeros_like(hidden[~mask]))


@every_mechanism
@pytest.mark.parametrize("side", ["left", "right"])
def test_generating_equals_reading_the_prompt_again_for_each_token(options, side):
    model = make(**options)
    lengths = [21, 16, 7, 1]
    ids, mask = tokens(4, 21), padding_mask(lengths, side)
    generated = model.generate(ids, max_new_tokens=30, attention_mask=mask)[:, 21:]
    for row in range(len(lengths)):
        text = ids[row][mask[row]][None]
        for _ in range(30):
            text = torch.cat([text, model(text)[:, -1].argmax(-1, keepdim=True)], dim=1)
        assert torch.equal(generated[row], text[0, -30:])


@every_mechanism
def test_a_step_gives_the_logits_of_the_whole_sequence(options):
    model = make(**options)
    ids = tokens(2, 40)
    whole = model(ids)
    for split in (1, 7, 8, 9, 23, 39):
        logits, state = model.prefill(ids[:, :split])
        for t in range(split, 40):
            torch.testing.assert_close(logits, whole[:, t - 1], rtol=1e-10, atol=1e-12)
            logits, state = model.step(ids[:, t], state)
        torch.testing.assert_close(logits, whole[:, -1], rtol=1e-10, atol=1e-12)


def test_bsbr_with_one_chunk_is_standard_attention_with_the_same_weights():
    for chunk_size in (40, 41, 512):
        chunked, exact = make(mechanism="bsbr", chunk_size=chunk_size), make(mechanism="standard")
        exact.load_state_dict({name: t for name, t in chunked.state_dict().items() if "meta" not in name})
        ids = tokens(2, 40)
        torch.testing.assert_close(chunked(ids), exact(ids), rtol=1e-12, atol=1e-12)


@every_mechanism
def test_low_precision_training_step_and_dropout_stay_finite(options):
    for dtype in (torch.float32, torch.bfloat16):
        model = make(dtype, dropout=0.1, **options).train()
        for n in (1, 8, 45):
            loss = model(tokens(2, n)).float().logsumexp(-1).mean()
            loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert not torch.equal(model(tokens(2, 21)), model(tokens(2, 21)))  # dropout draws anew
        assert torch.equal(model.eval()(tokens(2, 21)), model(tokens(2, 21)))


@every_mechanism
def test_gradient_checkpointing_changes_no_gradient(options):
    model = make(**options).train()
    gradients = []
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        model(tokens(2, 21)).logsumexp(-1).mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(*gradients)


@every_mechanism
def test_a_saved_model_loads_to_the_same_logits(options, tmp_path):
    model = make(torch.bfloat16, **options)
    model.save_pretrained(tmp_path / "model")
    loaded = TransformerLM.from_pretrained(tmp_path / "model")
    assert loaded.config == model.config
    assert torch.equal(loaded(tokens(1, 21)), model(tokens(1, 21)))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_loading_says_what_is_wrong_with_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        TransformerLM.from_pretrained(tmp_path)
    make(mechanism="bsbr").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_dim": 64}))
    with pytest.raises(ValueError, match=r"not of the config beside it.*blocks.0.ff"):
        TransformerLM.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "flash": True}))
    with pytest.raises(ValueError, match="does not know: flash"):
        TransformerLM.from_pretrained(tmp_path)


def test_a_failed_save_leaves_the_old_files_whole(tmp_path, monkeypatch):
    make(mechanism="bsbr").save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full_disk(source, target):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        make(mechanism="standard").save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mechanism": "mamba"}, "mechanism must be one of standard, bsbr"),
        ({"hidden_dim": 30, "num_heads": 4}, "hidden_dim must be a multiple of 2 · num_heads"),
        ({"chunk_size": 0}, "chunk_size must be a whole number ≥ 1"),
        ({"num_layers": 1.5}, "num_layers must be a whole number ≥ 1"),
        ({"top_k": 0}, "top_k must be a whole number ≥ 1 or None"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
    ],
)
def test_a_config_that_makes_no_model_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ModelConfig(**{"mechanism": "bsbr", **options})


def test_a_compression_factor_that_does_not_divide_head_dim_is_refused():
    with pytest.raises(ValueError, match="compression_factor must divide head_dim = 16, but is 3"):
        make(mechanism="bsbr", compression_factor=3)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (torch.zeros(5, dtype=torch.long), None, r"input_ids must be .* of shape \(batch, n\)"),
        (torch.zeros(1, 5), None, "input_ids must be int64 or int32"),
        (torch.zeros(1, 0, dtype=torch.long), None, "input_ids must hold at least one row of one token"),
        (torch.zeros(0, 5, dtype=torch.long), None, "input_ids must hold at least one row of one token"),
        (torch.full((1, 5), VOCAB), None, f"input_ids must lie in 0 … {VOCAB - 1}"),
        (torch.full((1, 5), -1), None, "input_ids must lie in"),
        (tokens(1, 5), torch.ones(1, 4, dtype=torch.long), "attention_mask must have the shape of input_ids"),
        (tokens(1, 5), torch.ones(5, dtype=torch.long), "attention_mask must have the shape of input_ids"),
        (tokens(1, 5), torch.ones(1, 5), "attention_mask must be bool or whole numbers"),
        (tokens(1, 5), torch.full((1, 5), 2), "attention_mask must hold only 0"),
        (tokens(1, 5), torch.zeros(1, 5, dtype=torch.long), "attention_mask must mark at least one token"),
    ],
)
def test_bad_input_is_named(ids, mask, message):
    model = make(mechanism="bsbr")
    for call in (model.encode, model, model.prefill, lambda i, m: model.generate(i, 1, m)):
        with pytest.raises(ValueError, match=message):
            call(ids, mask)


def test_bad_generation_options_are_named():
    model = make(mechanism="bsbr")
    with pytest.raises(ValueError, match="max_new_tokens must be ≥ 0"):
        model.generate(tokens(1, 5), max_new_tokens=-1)
    with pytest.raises(ValueError, match="temperature must be ≥ 0"):
        model.generate(tokens(1, 5), max_new_tokens=1, temperature=-0.1)


def test_generation_stops_when_every_row_has_ended():
    model = make(mechanism="bsbr")
    free = model.generate(tokens(1, 5), max_new_tokens=20)[0, 5:]
    eos = int(free[3])
    stopped = model.generate(tokens(1, 5), max_new_tokens=20, eos_token_id=eos)[0, 5:]
    first = free.tolist().index(eos)
    assert stopped.tolist() == free.tolist()[: first + 1]


def test_sampling_is_repeatable_and_follows_the_temperature():
    model = make(mechanism="bsbr")
    draw = [
        model.generate(tokens(1, 5), 20, temperature=t, generator=torch.Generator().manual_seed(3)).tolist()
        for t in (1.0, 1.0, 1e-6)
    ]
    assert draw[0] == draw[1]
    assert draw[2] == model.generate(tokens(1, 5), 20).tolist()


def test_a_config_cannot_be_changed_under_a_model():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make(mechanism="bsbr").config.chunk_size = 4  # type: ignore[misc]


def padding_mask(lengths: list[int], side: str) -> Tensor:
    position = torch.arange(max(lengths))
    mask = position < torch.tensor(lengths)[:, None]
    return mask if side == "right" else mask.flip(1)
