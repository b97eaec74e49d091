"""What cannot be done is refused by name, and the cache is as it was before."""

from __future__ import annotations

import io
import threading
import zipfile

import pytest
import torch
import transformers
from conftest import CACHE, cache_for, generate, prompt, tiny

import mikv
import mikv.hf
from mikv.hf.rope import rope_of


def forward(model, cache, ids, **arguments):
    with torch.no_grad():
        return model(ids, **{CACHE: cache}, **arguments).logits


@pytest.fixture
def filled(llama):
    cache = cache_for(llama, "full")
    ids = prompt(30)["input_ids"]
    forward(llama, cache, ids)
    return cache


def as_before(model, cache):
    """The next token is what it would be without the failure."""
    assert cache.get_seq_length() == 30
    fresh = cache_for(model, "full")
    forward(model, fresh, prompt(30)["input_ids"])
    token = torch.tensor([[5]])
    torch.testing.assert_close(forward(model, cache, token), forward(model, fresh, token), atol=1e-5, rtol=1e-5)


def test_nan_is_refused(llama, filled):
    weight = llama.model.layers[1].self_attn.k_proj.weight
    keep = weight[3, 2].item()
    with torch.no_grad():
        weight[3, 2] = float("nan")
    try:
        with pytest.raises(ValueError, match="layer 1 .*not finite"):
            forward(llama, filled, torch.tensor([[5]]))
    finally:
        with torch.no_grad():
            weight[3, 2] = keep
    as_before(llama, filled)


def test_a_pass_that_is_interrupted_is_forgotten(llama, filled):
    def stop(*_):
        raise KeyboardInterrupt

    hook = llama.model.layers[2].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        forward(llama, filled, prompt(7)["input_ids"])
    hook.remove()
    as_before(llama, filled)


def test_another_attention_is_noticed(llama, filled):
    llama.set_attn_implementation("sdpa")
    with pytest.raises(mikv.Error, match="set_attn_implementation"):
        forward(llama, filled, torch.tensor([[5]]))
    llama.set_attn_implementation("mikv")
    as_before(llama, filled)


def test_another_cache_is_noticed(llama):
    llama.set_attn_implementation("mikv")
    with pytest.raises(mikv.Unsupported, match="mikv.hf.Cache"):
        forward(llama, transformers.DynamicCache(config=llama.config), torch.tensor([[5]]))


def test_another_model_is_noticed(llama, filled):
    other = tiny()
    other.set_attn_implementation("mikv")
    with pytest.raises(mikv.Mismatch, match="another model"):
        forward(other, filled, torch.tensor([[5]]))
    as_before(llama, filled)


def test_another_batch_size_is_noticed(llama, filled):
    with pytest.raises(ValueError, match="rows"):
        forward(llama, filled, torch.tensor([[5], [6]]))
    as_before(llama, filled)


def test_gradients_are_refused(llama, filled):
    with pytest.raises(mikv.Unsupported, match="no_grad"):
        llama(torch.tensor([[5]]), **{CACHE: filled})
    as_before(llama, filled)


def test_a_mask_of_four_dimensions_is_refused(llama, filled):
    with pytest.raises(mikv.Unsupported, match="padding mask"):
        forward(llama, filled, torch.tensor([[5]]), attention_mask=torch.zeros(1, 1, 1, 31))
    as_before(llama, filled)


def test_a_full_cache_says_what_to_do(llama):
    cache = cache_for(llama, "full", max_length=40)
    forward(llama, cache, prompt(30)["input_ids"])
    with pytest.raises(ValueError, match="max_length=45"):
        forward(llama, cache, prompt(15)["input_ids"])
    as_before(llama, cache)


def test_a_budget_is_an_exception(llama):
    cache = cache_for(llama, "full", budget=100_000)
    forward(llama, cache, prompt(30)["input_ids"])
    with pytest.raises(MemoryError, match="budget"):
        forward(llama, cache, prompt(600)["input_ids"])
    as_before(llama, cache)


def test_other_devices_and_types_are_refused(llama, filled):
    layer = filled.layers[0]
    ok = torch.zeros(1, 2, 1, 16)
    for bad, word in ((ok.to("meta"), "meta"), (ok.to(torch.float64), "float64"), (ok[0], "dimensions")):
        with pytest.raises((ValueError, mikv.Unsupported), match=word):
            layer.update(bad, bad)
    as_before(llama, filled)


def test_two_threads_on_one_cache(llama, filled):
    inside, goes_on = threading.Event(), threading.Event()
    first = threading.Thread(target=lambda: forward(llama, filled, torch.tensor([[5]])))

    def wait(*_):
        if threading.current_thread() is first:
            inside.set()
            assert goes_on.wait(60)

    hook = llama.model.layers[2].register_forward_pre_hook(wait)
    first.start()
    assert inside.wait(60)
    try:
        with pytest.raises(mikv.Error, match="another thread"):
            forward(llama, filled, torch.tensor([[5]]))
    finally:
        goes_on.set()
        first.join()
        hook.remove()
    assert filled.get_seq_length() == 31
    filled.crop(30)
    as_before(llama, filled)


def test_rows_that_cannot_be_moved_stay_where_they_are(llama, filled, monkeypatch):
    """More rows than the context has sequences want a larger one; there may be no memory for it."""
    filled.batch_repeat_interleave(2)

    def no_memory(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(mikv.Context, "load", no_memory)
    with pytest.raises(MemoryError, match="no room"):
        forward(llama, filled, torch.tensor([[5], [6]]))
    monkeypatch.undo()
    filled.batch_select_indices(torch.tensor([0]))
    as_before(llama, filled)


def test_a_mask_that_changes_for_stored_tokens_is_refused(llama, filled):
    mask = torch.ones(1, 31, dtype=torch.long)
    mask[0, 3] = 0
    with pytest.raises(mikv.Unsupported, match="padding mask that changes"):
        forward(llama, filled, torch.tensor([[5]]), attention_mask=mask)
    as_before(llama, filled)


def test_keys_cannot_be_assigned(filled):
    with pytest.raises(mikv.Unsupported, match="assigned"):
        filled.layers[0].keys = torch.zeros(1, 2, 10, 16)


def test_selecting_rows_of_an_empty_cache_does_nothing(llama):
    cache = cache_for(llama, "full")
    cache.batch_select_indices(torch.tensor([0, 0]))
    forward(llama, cache, prompt(30)["input_ids"])
    as_before(llama, cache)


def test_models_that_are_not_supported_are_named():
    config = transformers.T5Config()
    with pytest.raises(mikv.Unsupported, match="encoder-decoder"):
        mikv.hf.Cache("mikv", config=config)
    config = transformers.LlamaConfig(num_hidden_layers=2)
    config.layer_types = ["full_attention", "chunked_attention"]
    config.attention_chunk_size = 64
    with pytest.raises(mikv.Unsupported, match="chunked_attention"):
        mikv.hf.Cache("mikv", config=config)
    with pytest.raises(ValueError, match="kep"):
        mikv.hf.Cache("mikv:kep=1", config=transformers.LlamaConfig())


def test_layers_of_several_shapes_are_refused():
    model = tiny("llama")
    other = model.model.layers[1].self_attn = tiny("llama", num_key_value_heads=4).model.layers[1].self_attn
    other.config = model.config
    with pytest.raises(mikv.Unsupported, match="layers of one shape"):
        forward(model, cache_for(model, "full"), torch.tensor([[5, 6]]))


def test_layers_that_share_keys_are_refused():
    config = tiny("llama").config
    config.num_kv_shared_layers = 1
    with pytest.raises(mikv.Unsupported, match="shares keys"):
        mikv.hf.Cache("full", config=config)


@pytest.mark.parametrize(
    ("name", "adjacent"),
    [
        ("cohere", True),
        ("helium", True),
        ("glm4", True),
        ("ernie4_5_moe", True),
        ("gptj", True),
        ("llama", False),
        ("qwen2", False),
    ],
)
def test_pairs_of_rope_are_those_that_the_model_turns(name, adjacent):
    try:
        config = transformers.AutoConfig.for_model(name)
    except ValueError:
        pytest.skip(f"this version has no {name}")
    assert rope_of(config, "full_attention")[1] == adjacent


def archive(description):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as into:
        into.writestr("cache.json", description)
        into.writestr("tiers.bin", b"")
    return file.getvalue()


def test_files(llama, filled, tmp_path):
    path = tmp_path / "cache.zip"
    filled.save(path)
    assert path.stat().st_mode & 0o777 == 0o600  # a conversation is its owner's
    as_before(llama, mikv.hf.Cache.load(path, config=llama.config))
    data = path.read_bytes()
    for damaged in (
        data[:-40],
        data[:200],
        b"",
        b"PK" + data[7:],
        data[: len(data) // 2] + b"\1\2\3" + data[len(data) // 2 + 3 :],
        archive(b'{"format": 1}'),
        archive(b'{"format": 1, "spec": "full", "rows": [0], "length": 3, "shapes": {}, "padding": [[7]]}'),
    ):
        with pytest.raises(mikv.Damaged):
            mikv.hf.Cache.from_bytes(damaged, config=llama.config)
    with pytest.raises(mikv.Mismatch):
        mikv.hf.Cache.load(path, config=tiny("llama", num_hidden_layers=2).config)
    with pytest.raises(ValueError):
        mikv.hf.Cache.load(path, config=tiny("llama", num_key_value_heads=4).config)
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_compressed_cache_continues_from_its_file(llama, tmp_path):
    _, cache = generate(llama, prompt(400), "mikv", max_new_tokens=4)
    cache.save(tmp_path / "c")
    twin = mikv.hf.Cache.load(tmp_path / "c", config=llama.config)
    token = torch.tensor([[5]])
    assert torch.equal(forward(llama, cache, token), forward(llama, twin, token))
