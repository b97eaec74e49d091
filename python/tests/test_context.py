"""mikv.Context and LayerCache: attention against the formula, errors as exceptions, threads, states."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import mikv
import mikv.context
import mikv.layer_cache
import mikv.spec

SHAPE = mikv.LayerShape(4, 2, 16, 16)


def rows(n: int, heads: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, heads, 16)).astype(np.float32)


def formula(q, k, v):
    """softmax(q.k / sqrt(D)) v, causal, one head after another."""
    out = np.zeros_like(q, np.float64)
    for t in range(len(q)):
        at = len(k) - len(q) + t
        for h in range(q.shape[1]):
            keys, values = k[: at + 1, h // 2].astype(float), v[: at + 1, h // 2].astype(float)
            weights = np.exp(keys @ q[t, h] / 4 - (keys @ q[t, h] / 4).max())
            out[t, h] = weights @ values / weights.sum()
    return out


def feed(context: mikv.Context, n: int, seed: int = 0, sequence: int = 0):
    at = context.length(sequence)
    with context.step([(sequence, n)]) as step:
        return step.attend(0, rows(n, 4, seed + at), rows(n, 2, seed + at + 1), rows(n, 2, seed + at + 2))


@pytest.fixture
def context():
    with mikv.Context("full", n_sequences=2, n_cells=512) as context:
        context.add_layer(0, SHAPE)
        yield context


@pytest.mark.parametrize("module", [mikv.spec, mikv.context, mikv.layer_cache])
def test_examples_of_the_documentation(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


def test_attention_is_what_the_formula_says(context):
    q, k, v = rows(40, 4, 1), rows(40, 2, 2), rows(40, 2, 3)
    with context.step([(0, 40)]) as step:
        out = step.attend(0, q, k, v)
    np.testing.assert_allclose(out, formula(q, k, v), atol=2e-3)  # K and V are halves


def test_the_library_has_the_version_of_the_package():
    assert mikv.library_version() == mikv.__version__


def test_arrays_with_strides_and_tensors_give_the_same(context):
    torch = pytest.importorskip("torch")
    q, k, v = rows(8, 4, 1), rows(8, 2, 2), rows(8, 2, 3)
    outs = []
    for convert in (
        lambda x: x,
        lambda x: np.asfortranarray(x),
        torch.from_numpy,
        lambda x: torch.from_numpy(x).requires_grad_(),
    ):
        context.clear()
        with context.step([(0, 8)]) as step:
            outs.append(step.attend(0, convert(q), convert(k), convert(v)))
    for out in outs[1:]:
        np.testing.assert_array_equal(out, outs[0])


def test_bad_arguments_raise_and_change_nothing(context):
    feed(context, 20)
    before = context.save(0)
    q, k, v = rows(2, 4, 1), rows(2, 2, 2), rows(2, 2, 3)
    nan = k.copy()
    nan[1, 1, 3] = np.nan
    for bad in (
        (q.astype(np.float64), k, v),
        (q, k[:, :1], v),
        (q, k, v[:1]),
        (q[:, :3], k, v),
        (q, nan, v),
        (q[0], k, v),
        (None, k, v),
    ):
        with pytest.raises(ValueError), context.step([(0, 2)]) as step:
            step.attend(0, *bad)
        assert context.length(0) == 20
    assert context.save(0) == before
    with pytest.raises(ValueError, match="layer 3"), context.step([(0, 2)]) as step:
        step.attend(3, q, k, v)
    with pytest.raises(ValueError, match="out of range"):
        context.begin_step(np.array([(7, 0, 1, 0)], mikv.context.TOKEN))
    feed(context, 3)


def test_tensors_of_another_device_or_type_are_refused(context):
    torch = pytest.importorskip("torch")
    q, k, v = (torch.from_numpy(x) for x in (rows(2, 4, 1), rows(2, 2, 2), rows(2, 2, 3)))
    for bad, word in ((q.to(torch.bfloat16), "bfloat16"), (q.to("meta"), "meta")):
        with pytest.raises(ValueError, match=word), context.step([(0, 2)]) as step:
            step.attend(0, bad, k, v)


def test_specs_are_checked():
    for bad in ("mikv:kep=0.2", "nonsense", "mikv:keep=2", "mikv\0"):
        with pytest.raises(ValueError):
            mikv.Spec(bad)
    assert mikv.Spec("mikv", keep=0.2) == mikv.Spec("mikv:keep=0.2")
    with pytest.raises(ValueError, match="n_cells"):
        mikv.Context(n_cells=0)


def test_a_budget_is_an_exception_of_two_kinds():
    context = mikv.Context("full", n_cells=4096, budget=100_000)
    context.add_layer(0, SHAPE)
    feed(context, 100)
    for kind in (mikv.OverBudget, MemoryError, mikv.Error):
        with pytest.raises(kind, match="budget"):
            feed(context, 3000)
    feed(context, 10)
    assert context.length() == 110


def test_log_lines_reach_python():
    lines: list[str] = []
    context = mikv.Context("full", n_cells=4096, budget=100_000, log=lines.append)
    context.add_layer(0, SHAPE)
    with pytest.raises(mikv.OverBudget):
        feed(context, 3000)
    assert any("budget" in line for line in lines)


def test_a_second_thread_is_told_so(context):
    problems: list[BaseException] = []

    def use() -> None:
        try:
            for _ in range(200):
                context.length(0)
        except BaseException as error:
            problems.append(error)

    inside = context._mine()
    with inside:
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
        with pytest.raises(mikv.Error, match="another thread"):
            context.close()
    assert len(problems) == 1 and isinstance(problems[0], mikv.Error) and "thread" in str(problems[0])
    feed(context, 3)


def test_a_closed_context_says_so(context):
    context.close()
    with pytest.raises(ValueError, match="closed"):
        context.length(0)


def test_states_travel_and_damage_is_found(context):
    feed(context, 30)
    saved = context.save(0)
    other = mikv.Context("full", n_sequences=2, n_cells=512)
    other.add_layer(0, SHAPE)
    other.load(saved, 1)
    assert other.length(1) == 30
    np.testing.assert_array_equal(feed(context, 1, 9), feed(other, 1, 9, 1))
    damaged = bytearray(saved)
    damaged[len(saved) // 2] ^= 1
    with pytest.raises(ValueError):
        other.load(bytes(damaged), 1)
    smaller = mikv.Context("full", n_cells=16)
    smaller.add_layer(0, SHAPE)
    with pytest.raises(mikv.Mismatch):
        smaller.load(saved, 0)


def test_tiers_are_listed():
    cache = mikv.LayerCache("mikv:keep=0.25", n_heads=4, n_kv_heads=2, head_dim=16, max_tokens=1024)
    cache.attend(rows(300, 4, 1), rows(300, 2, 2), rows(300, 2, 3))
    assert set(cache.tokens(1).tier) == {mikv.Tier.STAGED}
    cache.attend(rows(1, 4, 4), rows(1, 2, 5), rows(1, 2, 6))
    tokens = cache.tokens(1)
    assert list(tokens.position) == list(range(301))
    assert (tokens.tier == mikv.Tier.HI).sum() == 75
    cache.crop(10)
    assert len(cache) == 10


def test_punctuation_is_kept_where_the_spec_has_a_set_of_it():
    n, marks = 300, np.arange(300) % 4 == 0
    with mikv.Context("fastgen:recovery=0.15", n_cells=512, n_ubatch=n) as context:
        context.add_layer(0, SHAPE)
        with pytest.raises(ValueError, match="punctuation has the shape"), context.step([(0, n)], punctuation=[True]):
            pass
        with context.step([(0, n)], punctuation=marks) as step:
            step.attend(0, rows(n, 4, 1) / 4, rows(n, 2, 2) / 4, rows(n, 2, 3))
        feed(context, 1)
        tokens = context.tokens(0, 0)
        in_hi = set(tokens.position[tokens.tier == mikv.Tier.HI].tolist())
        assert in_hi == {1, 2, 3} | set(range(0, n, 4))


def test_a_missing_library_is_an_import_error(tmp_path):
    code = "import mikv"
    result = subprocess.run(
        [sys.executable, "-c", code], env={"MIKV_LIBRARY": str(tmp_path / "none.so"), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 1 and "ImportError: cannot load" in result.stderr


def test_a_context_that_lives_as_long_as_the_interpreter_ends_without_a_word():
    code = "import contextlib, mikv; contextlib.kept = mikv.Context(n_cells=256)"  # freed as one of the last
    environment = {"MIKV_LIBRARY": os.environ["MIKV_LIBRARY"], "PYTHONPATH": ":".join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
