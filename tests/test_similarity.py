"""The measures of likeness, held to their definitions on a model small enough to write them out."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bsbr import ConversionConfig, convert
from bsbr.studies import similarity


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = dict(vocab_size=50, hidden_size=24, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2)
    return LlamaForCausalLM(LlamaConfig(num_key_value_heads=1, initializer_range=0.5, **sizes)).eval()


def tokens(n: int) -> torch.Tensor:
    return torch.randint(50, (1, n), generator=torch.Generator().manual_seed(n))


def test_a_model_is_itself() -> None:
    reading = similarity.read(tiny_llama(), tokens(40))
    found = similarity.compare(reading, reading)
    assert found.perplexity_ratio == 1 and found.mse == 0
    assert found.agreement == {1: 100, 5: 100, 10: 100} and found.rank_agreement == [100] * 10
    assert found.kl == pytest.approx(0, abs=1e-9)
    assert found.cosine == pytest.approx(1) and found.hidden_cosine == pytest.approx([1] * 4)


@pytest.mark.parametrize("n", [2, 40, 300])
def test_measures_are_their_definitions(n: int) -> None:
    first, second, ids = tiny_llama(0), tiny_llama(1), tokens(n)
    found = similarity.compare(similarity.read(first, ids), similarity.read(second, ids))
    with torch.inference_mode():
        a, b = (model(ids, output_hidden_states=True) for model in (first, second))
    p, q = a.logits[0].double(), b.logits[0].double()
    assert found.original_perplexity == pytest.approx(math.exp(first(ids, labels=ids).loss.item()), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(second(ids, labels=ids).loss.item()), rel=1e-5)
    assert found.mse == pytest.approx((p - q).square().mean().item(), rel=1e-5)
    assert found.cosine == pytest.approx(((p * q).sum(-1) / p.norm(dim=-1) / q.norm(dim=-1)).mean().item(), rel=1e-5)
    kl = (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum(-1).mean()
    assert found.kl == pytest.approx(kl.item(), rel=1e-5)
    for k, agreement in found.agreement.items():
        shared = [
            len({*x.topk(k).indices.tolist()} & {*y.topk(k).indices.tolist()}) / k for x, y in zip(p, q, strict=True)
        ]
        assert agreement == pytest.approx(100 * sum(shared) / n)
    for rank, agreement in enumerate(found.rank_agreement):
        same = p.topk(10).indices[:, rank] == q.topk(10).indices[:, rank]
        assert agreement == pytest.approx(100 * same.double().mean().item())
    right = (q.argmax(-1)[:-1] == ids[0, 1:]).double().mean().item()
    assert found.next_token_accuracy == pytest.approx(100 * right)
    assert (len(found.loss), len(found.original_loss), len(found.divergence)) == (n - 1, n - 1, n)
    assert found.loss.mean().exp().item() == pytest.approx(found.perplexity, rel=1e-5)
    assert found.divergence.mean().item() == pytest.approx(found.kl, rel=1e-5)
    for layer, value in enumerate(found.hidden_cosine):
        x, y = a.hidden_states[layer][0], b.hidden_states[layer][0]
        assert value == pytest.approx(torch.cosine_similarity(x, y, dim=-1).mean().item(), rel=1e-4)


def test_memory_grows_with_a_slice_and_not_with_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    readings = [similarity.read(m, tokens(500)) for m in (model, convert(model, ConversionConfig(retrieval="none")))]
    sizes = []
    head = model.lm_head.forward
    monkeypatch.setattr(model.lm_head, "forward", lambda x: sizes.append(len(x)) or head(x))
    similarity.compare(readings[0], readings[0])
    assert max(sizes) <= similarity.POSITIONS_AT_ONCE and sum(sizes) == 2 * 500


def test_what_cannot_be_compared_is_refused() -> None:
    model = tiny_llama()
    with pytest.raises(ValueError, match="the same text"):
        similarity.compare(similarity.read(model, tokens(4)), similarity.read(model, tokens(5)))
    with pytest.raises(ValueError, match=r"got shape \(1, 1\)"):
        similarity.read(model, tokens(1))
    for wrong, said in (([[1, 2]], "got list"), (torch.zeros(1, 4), "got torch.float32")):
        with pytest.raises(ValueError, match=f"ids: expected a tensor of token ids, {said}"):
            similarity.read(model, wrong)
