"""Maps survive their packing, and a reader in a browser can choose among them without a network."""

from __future__ import annotations

import base64
import shutil
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bsbr.show import map_explorer
from bsbr.store.provenance import ROOT

LENGTHS, LAYERS, HEADS = {8: 8, 32: 16}, [0, 3], 2  # cells a side by n


def random_maps() -> map_explorer.Maps:
    """Two models' maps, equal at the shorter length."""
    draw = np.random.default_rng(0)

    def level(cells: int) -> np.ndarray:
        weights = np.tril(10.0 ** draw.uniform(-6, 0, (HEADS, cells, cells)))
        return map_explorer.quantise(np.where(weights < 1e-5, 0, weights))

    short = {layer: level(8) for layer in LAYERS}
    return map_explorer.Maps(
        {name: {8: short, 32: {layer: level(16) for layer in LAYERS}} for name in ("original", "converted")}
    )


# -- Packing --------------------------------------------------------------------------------------


def test_levels_tell_nothing_little_and_all() -> None:
    weights = np.array([0, 1e-9, map_explorer.FLOOR, 1])
    assert map_explorer.quantise(weights).tolist() == [0, 1, 1, map_explorer.LEVELS]


def test_a_weight_is_known_from_its_level_to_a_tenth() -> None:
    weights = np.geomspace(map_explorer.FLOOR, 1, 500)
    share = (map_explorer.quantise(weights) - 1.0) / (map_explorer.LEVELS - 1)
    np.testing.assert_allclose(map_explorer.FLOOR ** (1 - share), weights, rtol=0.1)


def test_what_is_packed_can_be_unpacked() -> None:
    maps = random_maps()
    packed = map_explorer.pack(maps)
    data = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), dtype=np.uint8).reshape(2, -1)
    whole = np.array([data[0], data[0] + data[1]])
    for name, levels in zip(maps.models, whole, strict=True):
        places = iter(packed["places"])
        for n, cells in LENGTHS.items():
            for layer in LAYERS:
                at = next(places)
                size = cells * (cells + 1) // 2
                found = levels[at : at + HEADS * size].reshape(HEADS, size)
                rows, columns = np.tril_indices(cells)
                assert np.array_equal(found, maps.levels[name][n][layer][:, rows, columns])


def test_a_model_that_reads_as_the_first_does_takes_no_room() -> None:
    maps = random_maps()
    one = {"original": maps.levels["original"]}
    lone, twice = (
        len(map_explorer.pack(map_explorer.Maps(levels))["data"]) for levels in (one, {**one, "copy": one["original"]})
    )
    assert twice < 1.1 * lone


# -- In a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The explorer alone on a page, as the site loads it: each layer from a file of its own."""
    folder = tmp_path_factory.mktemp("explorer")
    scripts = ("plotly/plotly.min.js", "charts.js", "attention_maps.js")
    (folder / "plotly").mkdir()
    for name in scripts:
        shutil.copyfile(ROOT / "book" / "_static" / name, folder / name)

    def write(name: str, script: str) -> str:
        (folder / name).write_text(script, encoding="utf-8")
        return name

    whole = map_explorer.view(random_maps(), "test", layer=3, head=1, n=32)["text/html"]
    markup = map_explorer.apart(whole, write)
    assert len(list(folder.iterdir())) == len(scripts) + len(LAYERS)
    loaded = "".join(f'<script src="{name}" defer></script>' for name in scripts[1:])
    html = f'<!doctype html><meta charset="utf-8">{loaded}<body style="width: 900px">{markup}</body>'
    (folder / "page.html").write_text(html, encoding="utf-8")
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    page.goto((folder / "page.html").as_uri())
    page.locator(".map-note", has_text="Layer").wait_for(timeout=10_000)
    page.wait_for_timeout(300)
    yield page
    page.close()


def drawn(page: Any) -> list[list[list[int | None]]]:
    return page.evaluate("document.querySelector('.plotly-graph-div').data.map(trace => trace.z)")


def choose(page: Any, **choices: str) -> None:
    for name, label in choices.items():
        page.locator(f"select[name={name}]").select_option(label=label)
    page.wait_for_timeout(200)


def test_each_choice_draws_that_map(page: Any) -> None:
    maps = random_maps()
    for layer, head, n, label in ((3, 1, 32, "32 tokens"), (0, 1, 32, "32 tokens"), (0, 0, 8, "8 tokens")):
        choose(page, layer=str(layer), head=str(head), length=label)
        for found, name in zip(drawn(page), maps.models, strict=True):
            expected = maps.levels[name][n][layer][head]
            below = [row[: i + 1] for i, row in enumerate(expected.tolist())]
            assert [row[: i + 1] for i, row in enumerate(found)] == below
        assert f"Layer {layer}, head {head}, {n} tokens" in page.locator(".map-note").inner_text()
        said = page.locator("figcaption").inner_text()
        assert said.startswith(f"Layer {layer}, head {head}, {n} tokens. Cells that carry any weight")
        for name in maps.models:
            cells = maps.levels[name][n][layer][head]
            share = 100 * np.count_nonzero(cells) / len(np.tril_indices(len(cells))[0])
            assert 0 < share < 100 and f"{name} {share:.3g} %" in said


def test_the_picture_on_the_screen_changes(page: Any) -> None:
    choose(page, layer="0", head="0", length="32 tokens")
    before = page.locator(".plotly-graph-div").screenshot()
    choose(page, head="1")
    assert page.locator(".plotly-graph-div").screenshot() != before


def test_hovering_over_a_cell_names_its_tokens_and_weight(page: Any) -> None:
    choose(page, layer="0", head="0", length="8 tokens")
    box = page.locator(".plotly-graph-div .nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 16, box["y"] + box["height"] * 15 / 16)
    text = page.locator(".hoverlayer .hovertext").first.text_content(timeout=3000)
    assert text.startswith("token 7 reads token 0: ")


def test_both_maps_zoom_together(page: Any) -> None:
    choose(page, length="32 tokens")
    page.evaluate("Plotly.relayout(document.querySelector('.plotly-graph-div'), {'xaxis.range': [0, 10]})")
    assert page.evaluate("document.querySelector('.plotly-graph-div')._fullLayout.xaxis2.range") == [0, 10]


def test_on_a_phone_the_maps_stand_one_above_the_other_and_cover_nothing(page: Any) -> None:
    page.evaluate("document.body.style.width = '360px'")
    page.set_viewport_size({"width": 390, "height": 800})
    page.wait_for_timeout(500)
    chart = page.locator(".plotly-graph-div").bounding_box()
    drawing = page.locator(".plotly-graph-div .main-svg").first.bounding_box()
    note = page.locator(".map-note").bounding_box()
    assert drawing["y"] + drawing["height"] <= chart["y"] + chart["height"] + 1 <= note["y"] + 2
    upper, lower = (page.locator(".plotly-graph-div .nsewdrag").nth(i).bounding_box() for i in (0, 1))
    assert upper["y"] + upper["height"] < lower["y"]
    assert drawing["width"] <= 362
