"""A saved model is loaded as it was, or what is wrong with its folder is said."""

import json

import pytest
import torch
from models import every_mechanism, make, tokens
from safetensors.torch import load_file, save_file

from bsbr import TransformerLM


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
    (tmp_path / "config.json").write_text(json.dumps({**config, "chunk_size": 64}))
    with pytest.raises(ValueError, match=r"they differ in chunk_size \(64, saved 8\).*save the model again"):
        TransformerLM.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "dropout": 0.5}))
    assert TransformerLM.from_pretrained(tmp_path).config.dropout == 0.5
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors, tmp_path / "model.safetensors")  # as of a version that did not put the config inside
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_dim": 64}))
    with pytest.raises(ValueError, match=r"not of the config beside it.*blocks.0.ff"):
        TransformerLM.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({name: t.to(torch.int8) for name, t in tensors.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"must hold weights in float16.* is torch.int8; quantised"):
        TransformerLM.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "flash": True}))
    with pytest.raises(ValueError, match="does not know: flash"):
        TransformerLM.from_pretrained(tmp_path)


def test_a_model_saved_before_an_option_came_is_loaded_with_its_default(tmp_path):
    model = make(mechanism="bsbr")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("retrieval") == "states"
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors", {"config": json.dumps(config)})
    loaded = TransformerLM.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(tokens(1, 21)), model(tokens(1, 21)))


def test_a_failed_save_leaves_the_old_files_whole(tmp_path, monkeypatch):
    make(mechanism="bsbr").save_pretrained(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full_disk(source, target):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        make(mechanism="standard").save_pretrained(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_every_weight_keeps_its_dtype(tmp_path):
    model = make(torch.bfloat16, mechanism="bsbr")
    model.norm.float()
    model.save_pretrained(tmp_path)
    loaded = TransformerLM.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor) and loaded.state_dict()[name].dtype == tensor.dtype, name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>404</html>", "is a web page"),
        (None, "is cut short or damaged"),
    ],
    ids=["pointer", "empty", "html", "cut short"],
)
def test_weights_that_are_none_are_named_with_the_remedy(content, message, tmp_path):
    make(mechanism="linear").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500] if content is None else content)
    with pytest.raises(ValueError, match=f"model.safetensors in .* must be a whole safetensors file, but .*{message}"):
        TransformerLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must be JSON, but is cut short"),
        ("", "must be JSON, but is empty"),
        ("\udcff", "must be JSON"),
        ('["x"]', "must be an object that names a mechanism"),
        ('{"vocab_size": 61}', "must be an object that names a mechanism"),
    ],
)
def test_a_config_that_is_none_is_named(content, message, tmp_path):
    make(mechanism="linear").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        TransformerLM.from_pretrained(tmp_path)


CHUNKS_OF_8, CHUNKS_OF_4 = ({"mechanism": "bsbr", "chunk_size": size} for size in (8, 4))


def test_a_stop_between_the_two_files_of_a_save_is_seen(tmp_path, monkeypatch):
    """Options of a mechanism, and mechanisms with weights of the same names, would load silently otherwise."""
    for before, after in (({"mechanism": "standard"}, {"mechanism": "hopfield"}), (CHUNKS_OF_8, CHUNKS_OF_4)):
        make(**before).save_pretrained(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr("json.dumps", stop_at_the_config(json.dumps))
            with pytest.raises(KeyboardInterrupt):
                make(**after).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="a save may have been stopped between the two files"):
            TransformerLM.from_pretrained(tmp_path)


def stop_at_the_config(dumps):
    def dump(value, indent=None):
        if indent is not None:  # config.json alone is laid out
            raise KeyboardInterrupt
        return dumps(value)

    return dump


def test_paths_that_are_none_are_named(tmp_path):
    model = make(mechanism="standard")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="path must be a folder's path, but is 7"):
        model.save_pretrained(7)
    with pytest.raises(ValueError, match=r"path must be a folder, but .* is a file"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(ValueError, match="path must be a folder's path, but is None"):
        TransformerLM.from_pretrained(None)
