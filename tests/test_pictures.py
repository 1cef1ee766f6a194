"""What is said of emoji that no training has seen, and how pictures are put on a page."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pinned import skip_without

from bsbr import sources
from bsbr.show.pictures import markup
from bsbr.studies import pictures
from bsbr.training.heads import Classifier

PLAN = pictures.Plan({"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "ff_dim": 16}, 4, {"text": 2}, (0.1,), (1,))


@pytest.fixture(scope="module", autouse=True)
def fetched() -> None:
    skip_without("brown", "emails", "speeches", "emoji", "emoji_google")


class Knows(Classifier):
    """Tells rows that it knows, by heart."""

    def __init__(self, right: dict[tuple[int, ...], int]) -> None:
        super().__init__(SimpleNamespace(config=SimpleNamespace(hidden_dim=2)), 9)
        self.right = right

    def logits(self, input_ids: Any, attention_mask: Any = None) -> Any:
        rows = [tuple(ids[mask == 1].tolist()) for ids, mask in zip(input_ids, attention_mask, strict=True)]
        return torch.nn.functional.one_hot(torch.tensor([self.right.get(row, 0) for row in rows]), 9)


def knows(inputs: str, vendor: str) -> Any:
    """A run whose model tells each emoji of the test part as one vendor draws it, and one group of all others."""
    task = pictures.Pictures(pictures.INPUTS[inputs], vendor)
    batch = task.rows("test", range(task.size("test")))
    rows = zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    right = {tuple(ids[mask == 1].tolist()): int(label) for ids, mask, label in rows}
    return SimpleNamespace(learner=lambda: Knows(right))


@pytest.mark.parametrize("inputs", pictures.INPUTS)
def test_a_run_is_judged_on_the_test_part_of_each_vendor(inputs: str) -> None:
    found = {(row["metric"], row.get("vendor")): row for row in pictures.judge(inputs, knows(inputs, pictures.SEEN))}
    assert found["accuracy", None]["value"] > 99  # two emoji may be read alike
    vendors = {None} if inputs == "text" else {None, pictures.UNSEEN}
    assert {vendor for _, vendor in found} == vendors
    if inputs != "text":
        assert found["accuracy", pictures.UNSEEN]["value"] < 50
        swapped = pictures.judge(inputs, knows(inputs, pictures.UNSEEN))
        assert next(row for row in swapped if row.get("vendor"))["value"] > 99
    assert found["accuracy", None]["over"].startswith(f"{len(sources.load_emoji('test'))} emoji")


def test_words_tell_more_than_the_commonest_group() -> None:
    levels = {name: pictures.baseline(mechanism=name, input="text")[0]["value"] for name in pictures.BASELINES["text"]}
    assert levels[pictures.WORDS] > levels[pictures.MAJORITY] + 20
    with pytest.raises(ValueError, match="mechanism must be one of majority class, bag of words for text"):
        pictures.baseline(mechanism=pictures.PIXELS, input="text")
    with pytest.raises(ValueError, match="inputs must be one of text, image, joint"):
        pictures.contest(PLAN, "both")


def test_all_mechanisms_read_as_much_exactly() -> None:
    contest = pictures.contest(replace(PLAN, steps={"image": 2}), "image")
    assert set(contest.models) == set(PLAN.mechanisms)
    assert {(one.chunk_size, one.window_size) for one in contest.models.values()} == {(8, 8)}
    assert pictures.chunk_size("text") >= 2 and contest.classes == 9


def test_a_gallery_holds_its_pictures_and_tells_them_in_words() -> None:
    picture = np.random.default_rng(0).integers(256, size=(8, 6, 3)).astype(np.uint8)
    page = markup({"a <b>": [picture, picture[::-1]]}, ["drawn", "read"])
    files = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    shown = [np.asarray(Image.open(io.BytesIO(base64.b64decode(file)))) for file in files]
    assert (shown[0] == picture).all() and (shown[1] == picture[::-1]).all()
    assert 'alt="a &lt;b&gt;, drawn"' in page and "<b>" not in page.replace("a &lt;b&gt;", "")
    with pytest.raises(ValueError, match="a picture for each of 2 heads"):
        markup({"a": [picture]}, ["drawn", "read"])
