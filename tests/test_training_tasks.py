"""What is trained on: rows are a function of part, settings and number, and nothing of one part is in another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pinned import skip_without

from bsbr import ModelConfig, TransformerLM, sources
from bsbr.training import baselines, token_losses
from bsbr.training.heads import IGNORED
from bsbr.training.ngrams import Ngrams
from bsbr.training.tasks import Classification, Pictures, Questions, Recall, Windows, ask, corpus_windows, text_windows
from bsbr.training.tasks.pictures import as_read, code_book, halved, joined, nearest, patches_of
from bsbr.training.tasks.questions import NAMES, exact_match, f1
from bsbr.training.tokens import byte_pairs, documents, encoded, tokenizer

PARTS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def fetched() -> None:
    skip_without("brown", "emails", "speeches", "emoji", "emoji_google")


TASKS = {
    "windows": lambda seed: corpus_windows(64),
    "brown": lambda seed: Classification("brown", 64, seed),
    "emails": lambda seed: Classification("emails", 64, seed),
    "recall": lambda seed: Recall(seed=seed),
    "questions": lambda seed: Questions(256, seed=seed),
    "pictures": lambda seed: Pictures("both"),
}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.usefixtures("fetched")
def test_rows_are_a_function_of_part_seed_and_number(name: str) -> None:
    task: Any = TASKS[name](0)
    for part in PARTS:
        both = task.rows(part, [3, 7])
        for number, index in enumerate((3, 7)):
            alone = task.rows(part, [index])
            for key, value in alone.items():
                wide = both[key][number]
                assert torch.equal(value[0], wide[: value.shape[1]] if value.ndim == 2 else wide), key
        assert all(torch.equal(value, task.rows(part, [3, 7])[key]) for key, value in both.items())
        assert both["input_ids"].min() >= 0 and both["input_ids"].max() < task.vocab_size
    assert not torch.equal(*(task.rows(part, [3])["input_ids"][:, :12] for part in ("train", "test")))
    assert task.fingerprint() == TASKS[name](0).fingerprint()
    other = TASKS[name](1)
    if name not in ("windows", "pictures"):
        assert not torch.equal(task.rows("train", [3])["input_ids"], other.rows("train", [3])["input_ids"])
        assert task.fingerprint() != other.fingerprint()


def test_windows_train_each_token_once() -> None:
    task = Windows({"train": np.arange(20)}, 6, 32)
    rows = task.rows("train", range(task.size("train")))
    assert rows["input_ids"].flatten().tolist() == list(range(18))
    assert torch.equal(rows["labels"], rows["input_ids"] + 1)
    with pytest.raises(ValueError, match="n must be below the 20 tokens of train, but is 20"):
        Windows({"train": np.arange(20)}, 20, 32)


def test_ones_own_texts_become_windows() -> None:
    texts = {"train": ["a first text\n" * 9, "and ünother"], "validation": ["a last text\n" * 5]}
    pairs = byte_pairs(texts["train"], 300)
    task = text_windows(texts, pairs, 8)
    stream = task.streams["train"].tolist()
    assert stream[-1] == 0 and stream.count(0) == 2 and task.vocab_size == pairs.get_vocab_size()
    assert sorted(pairs.decode(stream, skip_special_tokens=True)) == sorted("".join(texts["train"]))


@pytest.mark.usefixtures("fetched")
def test_a_row_of_a_document_is_of_that_document_and_its_label() -> None:
    task = Classification("brown", 32)
    rows = task.rows("train", range(task.documents("train")))
    texts = [" ".join(map(str, ids)) for ids in encoded("brown", "train")]
    found = [
        " ".join(map(str, ids[mask == 1].tolist()))
        for ids, mask in zip(*map(rows.get, ("input_ids", "attention_mask")), strict=True)
    ]
    which = [next(i for i, text in enumerate(texts) if window in text) for window in found[:20]]
    assert rows["labels"][:20].tolist() == task.targets("train")[which].tolist()
    again = task.rows("train", range(task.documents("train"), 2 * task.documents("train")))
    assert not torch.equal(again["input_ids"], rows["input_ids"])
    assert sorted(again["labels"].tolist()) == sorted(rows["labels"].tolist())  # each document once in an epoch


@pytest.mark.usefixtures("fetched")
def test_the_tokenizer_has_tokens_for_any_text() -> None:
    for text in ("The state of the union", "日本 ünïcode\t\n🙂", ""):
        assert tokenizer().decode(tokenizer().encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer().get_vocab_size() == 4096 and tokenizer().token_to_id("<|endoftext|>") == 0


# --- recall --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pairs", "n"), [(1, 4), (4, 64), (16, 64), (8, 256)])
def test_recall_asks_each_key_once_after_its_value(pairs: int, n: int) -> None:
    task = Recall(pairs, n, vocab_size=512)
    rows = task.rows("test", range(50))
    for ids, labels in zip(rows["input_ids"].tolist(), rows["labels"].tolist(), strict=True):
        values = dict(zip(ids[: 2 * pairs : 2], ids[1 : 2 * pairs : 2], strict=True))
        asked = {ids[i]: label for i, label in enumerate(labels) if label != IGNORED}
        assert asked == values and len(values) == pairs == sum(label != IGNORED for label in labels)
        assert all(1 <= key < 256 <= value < 512 for key, value in values.items())
        assert all(i >= 2 * pairs and i % 2 == 0 for i, label in enumerate(labels) if label != IGNORED)


def test_keys_mostly_come_again_soon() -> None:
    task = Recall(4, 256)
    labels = task.rows("train", range(300))["labels"]
    gaps = torch.nonzero(labels != IGNORED)[:, 1] - 8
    assert gaps.median() < 60 and gaps.max() > 200


def test_recall_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="n must be even and ≥ 4 · pairs = 64, but is 32"):
        Recall(16, 32)
    with pytest.raises(ValueError, match="vocab_size must be > n"):
        Recall(4, 64, vocab_size=64)


# --- questions -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("fetched")
def test_a_question_can_be_answered_from_its_text_and_from_nothing_less() -> None:
    task = Questions(512, people=4, kinds=2)
    for index in range(30):
        question = task.question("test", index)
        text = tokenizer().decode(question.prompt.tolist())
        told, asked = text.rsplit("\nQuestion:", 1)
        assert question.answer in told and question.answer not in asked and asked.endswith("Answer:")
        assert len(question.prompt) < 512 and 0 <= question.distance < len(question.prompt)
        before = question.prompt[: -len(tokenizer().encode(f"\nQuestion:{asked}").ids)]
        end = len(before) - question.distance
        assert question.answer in tokenizer().decode(before[end - 20 : end].tolist())
        assert question.answer not in tokenizer().decode(before[end:].tolist())
        name = next(word for word in asked.replace("?", " ").split() if word in NAMES)
        assert told.count(name) >= 2  # the same person has something else, too
    answers = {task.question("test", index).answer for index in range(60)}
    assert len(answers) > 40  # no answer is common enough to be guessed


@pytest.mark.usefixtures("fetched")
def test_labels_are_the_answer_and_its_end() -> None:
    rows = Questions(256, people=2).rows("test", range(8))
    for index, (ids, labels) in enumerate(zip(rows["input_ids"], rows["labels"], strict=True)):
        wanted = labels[labels != IGNORED].tolist()
        assert tokenizer().decode(wanted[:-1]).strip() == Questions(256, people=2).question("test", index).answer
        assert wanted[-1] == 0 and len(ids) == 256
    whole = Questions(256, people=2, whole_text=True)
    assert (whole.rows("train", [0])["labels"] != IGNORED).sum() > 230
    assert torch.equal(whole.rows("test", [0])["labels"], rows["labels"][:1])


@pytest.mark.usefixtures("fetched")
def test_the_text_of_a_question_is_of_its_part() -> None:
    texts = {part: [document.text for document in documents("brown", part)] for part in PARTS}
    for part in PARTS:
        prompt = tokenizer().decode(Questions(256, people=1, kinds=1).question(part, 5).prompt.tolist())
        start = prompt[10:60]
        holders = {other for other in PARTS if any(start in text for text in texts[other])}
        assert holders <= {part}


@pytest.mark.usefixtures("fetched")
def test_a_model_is_asked_and_its_words_up_to_the_end_are_its_answer() -> None:
    task = Questions(256, people=2)

    class Knows:
        """Answers the first question rightly, the second by half, and goes on talking after the third."""

        def parameters(self) -> Any:
            return iter([torch.zeros(1)])

        def generate(self, ids: torch.Tensor, new: int, mask: torch.Tensor, eos_token_id: int) -> torch.Tensor:
            rows = []
            said = (expected[0], f"{expected[1].split()[0]} chair", f"no <end> {expected[2]}")
            for row, words in enumerate(said):
                assert torch.equal(ids[row][mask[row] == 1], torch.from_numpy(task.question("test", row).prompt))
                parts = words.split("<end>")
                tokens = [token for part in parts for token in [*tokenizer().encode(f" {part.strip()}").ids, 0]]
                rows.append(torch.tensor([*tokens, *[0] * 20][:20]))
            return torch.cat([ids, torch.stack(rows)], dim=1)

    expected = [task.question("test", index).answer for index in range(3)]
    found = ask(Knows(), task, "test", range(3))
    assert [one.exact_match for one in found] == [1.0, 0.0, 0.0] and [one.f1 for one in found] == [1.0, 0.5, 0.0]
    assert [one.expected for one in found] == expected and found[2].given == "no"


@pytest.mark.usefixtures("fetched")
def test_a_real_model_can_be_asked() -> None:
    config = ModelConfig("bsbr", 4096, hidden_dim=16, num_layers=1, num_heads=2, ff_dim=16, chunk_size=16)
    found = ask(TransformerLM(config).eval(), Questions(256, people=2), "test", range(3), batch=2)
    assert len(found) == 3 and all(one.f1 <= 1 for one in found)


def test_the_loss_of_each_token_is_of_the_one_after() -> None:
    model = TransformerLM(ModelConfig("linear", 32, hidden_dim=16, num_layers=1, num_heads=2, ff_dim=16)).eval()
    ids = torch.randint(32, (2, 9))
    losses = token_losses(model, ids)
    assert losses.shape == (2, 8)
    with torch.no_grad():
        expected = -model(ids)[1, 4].log_softmax(-1)[ids[1, 5]]
    assert losses[1, 4].item() == pytest.approx(expected.item(), rel=1e-5)


def test_answers_are_scored_as_squad_does() -> None:
    assert exact_match("The Red Hat.", "red hat") == 1.0 and exact_match("red", "red hat") == 0.0
    assert f1("red", "red hat") == pytest.approx(2 / 3) and f1("a blue hat", "red hat") == 0.5 and f1("", "red") == 0.0


# --- pictures ------------------------------------------------------------------------------------


def test_a_patch_is_told_as_the_nearest_in_the_book() -> None:
    patches = np.repeat(np.array([[0] * 48, [100] * 48, [255] * 48]), 5, axis=0)
    book = code_book(patches, 3)
    assert sorted(book[:, 0].tolist()) == [0, 100, 255]
    assert (book[nearest(patches, book)] == patches).all()
    assert nearest(np.full((1, 48), 240), book) == nearest(np.full((1, 48), 255), book)


def test_patches_join_to_the_picture_that_was_cut() -> None:
    picture = np.random.default_rng(0).integers(256, size=(64, 64, 3)).astype(np.uint8)
    small = halved(picture)
    assert small[3, 5].tolist() == (picture[6:8, 10:12].astype(int).sum((0, 1)) // 4).tolist()
    assert (patches_of(small)[9] == small[4:8, 4:8].ravel()).all()  # the second patch of the second row
    assert (joined(patches_of(small)) == small).all()


@pytest.mark.usefixtures("fetched")
def test_what_a_model_is_shown_is_like_the_picture() -> None:
    emoji = sources.load_emoji("test")[:40]
    drawn = [halved(sources.load_picture(one)) for one in emoji]
    shown = [as_read(one).astype(int) for one in emoji]
    error = np.mean([np.abs(one - other).mean() for one, other in zip(drawn, shown, strict=True)])
    others = np.mean([np.abs(one - other).mean() for one, other in zip(drawn, shown[1:] + shown[:1], strict=True)])
    assert error < others / 2
    with pytest.raises(ValueError, match="vendor must be one of twitter, google"):
        as_read(emoji[0], "apple")


@pytest.mark.usefixtures("fetched")
def test_pictures_are_64_tokens_after_the_words_and_differ_by_vendor() -> None:
    name, picture, both = (Pictures(inputs).rows("test", [4])["input_ids"][0] for inputs in ("name", "picture", "both"))
    assert len(picture) == 64 and picture.min() >= 4096
    assert both.tolist() == [*name.tolist(), 0, *picture.tolist()]
    assert not torch.equal(picture, Pictures("picture", "google").rows("test", [4])["input_ids"][0])
    with pytest.raises(ValueError, match="vendor must be one of twitter, google"):
        Pictures("both", "apple")


# --- baselines -----------------------------------------------------------------------------------


def test_bigrams_are_smoothed_as_by_hand() -> None:
    # a b a b a c: ab 2, ba 2, ac 1, so D₂ = 1 / (1 + 2 · 2) = 0.2. Each of a, b and c follows on one token:
    # D₁ = 3 / 3 = 1, and p₁ is the same for all four tokens: 0.25.
    model = Ngrams(np.array([0, 1, 0, 1, 0, 2]), 2, 4)
    p = model.probabilities(np.array([0, 1]))
    assert p[0] == pytest.approx(0.25)
    assert p[1] == pytest.approx((2 - 0.2) / 3 + 0.2 * 2 / 3 * 0.25)
    assert model.probabilities(np.array([0, 3]))[1] == pytest.approx(0.2 * 2 / 3 * 0.25)
    assert model.probabilities(np.array([3, 1]))[1] == pytest.approx(0.25)  # after what was never seen


def test_unigrams_are_counts() -> None:
    p = Ngrams(np.array([0, 0, 1, 1, 1, 1]), 1, 2).probabilities(np.array([0, 1]))
    assert p == pytest.approx([2 / 6, 4 / 6])


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_of_all_next_tokens_add_up_to_one(order: int) -> None:
    stream = np.random.default_rng(0).integers(7, size=400)
    model = Ngrams(stream, order, 9)
    for history in ([], [3], [3, 1], [8, 8, 8], stream[:6].tolist()):
        total = sum(model.probabilities(np.array([*history, token]))[-1] for token in range(9))
        assert total == pytest.approx(1)
    with pytest.raises(ValueError, match="order must lie in 1 … 15 for 9 tokens, but is 16"):
        Ngrams(stream, 16, 9)


def test_longer_histories_predict_a_regular_stream_better() -> None:
    stream = np.tile([0, 1, 0, 2, 0, 3], 50)
    perplexities = [Ngrams(stream, order, 4).perplexity(stream) for order in (1, 2, 3)]
    assert perplexities == sorted(perplexities, reverse=True) and perplexities[2] < 1.1


def test_trivial_baselines() -> None:
    labels = ["b", "a", "a", "b", "c"]
    assert baselines.majority(labels, 2) == ["a", "a"]
    texts = ["red apple", "red cherry", "green leaf", "green grass"] * 3
    classes = ["fruit", "fruit", "plant", "plant"] * 3
    held = (["a red one", "a green one"], ["fruit", "plant"])
    assert baselines.bag_of_words(texts, classes, held, ["green tree", "red"]) == ["plant", "fruit"]
    assert baselines.accuracy(["a", "b"], ["a", "a"]) == 0.5
    assert baselines.macro_f1(["a", "a", "a"], ["a", "a", "b"]) == pytest.approx(0.4)


def test_single_pixels_tell_pictures_by_colour() -> None:
    chance = np.random.default_rng(0)

    def drawn(count: int) -> tuple[np.ndarray, list[str]]:
        colours = chance.integers(2, size=count)
        return (chance.integers(100, size=(count, 4, 4, 3)) + 50 * colours[:, None, None, None]).astype(np.uint8), [
            ("dark", "light")[colour] for colour in colours
        ]

    pictures, labels = drawn(60)
    new, right = drawn(40)
    given = baselines.pixels(pictures, labels, drawn(20), new)
    assert baselines.accuracy(given, right) == 1.0
    with pytest.raises(ValueError, match="pictures must be of one shape"):
        baselines.pixels(pictures, labels, drawn(20), new[:, :2])
    with pytest.raises(ValueError, match="pictures must differ"):
        baselines.pixels(np.zeros_like(pictures), labels, drawn(20), new)
