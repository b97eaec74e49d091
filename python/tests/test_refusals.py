"""What cannot be done is refused by name, and the cache is as it was before."""

from __future__ import annotations

import threading

import pytest
import torch
import transformers
from conftest import CACHE, cache_for, generate, prompt, tiny

import mikv
import mikv.hf


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
    errors = []

    def run():
        try:
            for _ in range(10):
                forward(llama, filled, torch.tensor([[5]]))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert errors and all(isinstance(error, mikv.Error | ValueError) for error in errors)
    filled.reset()
    forward(llama, filled, prompt(30)["input_ids"])
    as_before(llama, filled)


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


def test_files(llama, filled, tmp_path):
    path = tmp_path / "cache.zip"
    filled.save(path)
    as_before(llama, mikv.hf.Cache.load(path, config=llama.config))
    data = path.read_bytes()
    for damaged in (
        data[:-40],
        data[:200],
        b"",
        b"PK" + data[7:],
        data[: len(data) // 2] + b"\1\2\3" + data[len(data) // 2 + 3 :],
    ):
        with pytest.raises(ValueError):
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
