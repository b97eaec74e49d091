"""Known answers of each simulated quantiser, and the count of bits."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from mikv.rivals import METHODS, base, block_gtq, kitty, kivi, kvarn, oscar, parse, turboquant  # noqa: E402


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(name, n=512, heads=2, channels=64, k=None, v=None):
    layer = parse(name).layer()
    k = gaussian(1, heads, n, channels, seed=1) if k is None else k
    v = gaussian(1, heads, n, channels, seed=2) if v is None else v
    layer.prompt(gaussian(1, 2 * heads, n, channels), k, v)
    return layer, k, v


def bits_per_element(layer):
    elements = layer.keys.numel() + layer.values.numel()
    return layer.count().total / elements


# ------------------------------------------------------------ what they share


def test_rtn_known_answer():
    x = torch.tensor([[0.0, 0.4, 2.6, 3.0], [-1.0, -1.0, -1.0, -1.0]])
    assert base.rtn(x, 2, 1).tolist() == [[0.0, 0.0, 3.0, 3.0], [-1.0, -1.0, -1.0, -1.0]]


def test_rtn_clips_around_the_middle():
    # The range 0 to 4 becomes 1 to 3: one bit tells 1 from 3.
    assert base.rtn(torch.tensor([0.0, 1.4, 2.6, 4.0]), 1, 0, clip=0.5).tolist() == [1.0, 1.0, 3.0, 3.0]


def test_levels_are_those_of_lloyd_and_max():
    assert base.gaussian_levels(1).tolist() == pytest.approx([-0.7979, 0.7979], abs=1e-3)
    assert base.gaussian_levels(2).tolist() == pytest.approx([-1.5104, -0.4528, 0.4528, 1.5104], abs=1e-3)
    assert base.gaussian_levels(3)[4:].tolist() == pytest.approx([0.2451, 0.7560, 1.3439, 2.1520], abs=1e-3)


def test_rotations_are_orthonormal():
    for rotation in (base.hadamard(64), base.random_rotation(48, 3)):
        assert torch.allclose(rotation @ rotation.T, torch.eye(len(rotation)), atol=1e-5)
    with pytest.raises(ValueError, match="power of 2"):
        base.hadamard(96)


@pytest.mark.parametrize("method", METHODS)
def test_more_bits_are_closer(method):
    errors = [
        float((filled(f"{method}-{bits}")[0].keys - gaussian(1, 2, 512, 64, seed=1)).square().mean())
        for bits in (2, 3, 4)
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0


@pytest.mark.parametrize("method", METHODS)
def test_step_sees_new_tokens_exactly(method):
    layer, _, _ = filled(f"{method}-2")
    k, v = gaussian(1, 2, 1, 64, seed=5), gaussian(1, 2, 1, 64, seed=6)
    keys, values = layer.update(k, v)
    assert torch.equal(keys[:, :, -1:], k) and torch.equal(values[:, :, -1:], v)


def test_sinks_and_recent_tokens_stay():
    layer, k, _ = filled("turboquant-2:sink=4,recent=32")
    same = (layer.keys == k).all(-1).all(1)[0]
    assert same[:4].all() and same[-32:].all() and not same[4:-32].any()
    stored = layer.key_part.count(layer.keys[0])
    assert stored.window == 16 * 2 * 64 * 36
    assert stored.codes == 2 * 2 * 64 * (512 - 36)


# ------------------------------------------------------------ one by one


def test_kivi_keys_by_channel_values_by_token():
    levels = torch.tensor([0.0, 1.0, 2.0, 3.0])
    k = levels[torch.arange(64) % 4][None, None, :, None].expand(1, 2, 64, 64) * torch.arange(
        1, 65
    )  # a scale per channel
    v = levels[torch.arange(64) % 4].expand(1, 2, 64, 64) * torch.arange(1, 65)[:, None]  # a scale per token
    layer, _, _ = filled("kivi-2:group=32,residual=32", n=64, k=k.clone(), v=v.clone())
    assert torch.equal(layer.keys, k)
    assert torch.equal(layer.values, v)


def test_kivi_counts_scales_and_residual():
    layer, _, _ = filled("kivi-2:group=32,residual=32", n=100)
    keys = layer.key_part.count(layer.keys[0])  # 96 tokens in groups of 32, 4 left
    assert (keys.codes, keys.scales, keys.window) == (2 * 96 * 128, 32 * 3 * 128, 16 * 4 * 128)
    values = layer.value_part.count(layer.values[0])  # the last 32 stay
    assert (values.codes, values.scales, values.window) == (2 * 68 * 128, 32 * 68 * 4, 16 * 32 * 128)


def test_turboquant_has_the_distortion_of_its_levels():
    for bits, distortion in ((1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)):  # Max, 1960
        x = gaussian(4096, 128)
        back = turboquant.mse(x, bits, base.random_rotation(128, 1))
        assert float((back - x).square().sum() / x.square().sum()) == pytest.approx(distortion, rel=0.03)


def test_turboquant_prod_is_unbiased():
    x, y = gaussian(1, 1, 64), gaussian(64, seed=9)
    products = []
    for seed in range(400):
        back, _ = turboquant.Vectors(bits=2, prod=True, seed=2 * seed).encode(x)
        products.append(float(back[0, 0] @ y))
    mean, error = torch.tensor(products).mean(), torch.tensor(products).std() / math.sqrt(len(products))
    assert abs(float(mean) - float(x[0, 0] @ y)) < 4 * float(error)


def test_turboquant_half_bits():
    layer, _, _ = filled("turboquant-2.5")
    assert layer.count().codes == 2.5 * layer.keys.numel() * 2
    assert layer.count().scales == 2 * 16 * 2 * 2 * 512  # two norms per vector


def test_kvarn_balances_variances():
    x = gaussian(1, 128, 64) * torch.logspace(-2, 2, 128)[:, None] * torch.logspace(2, -1, 64)
    rows, columns = kvarn.balance(x)
    y = x / rows / columns
    assert float(y.std(-1).max() / y.std(-1).min()) < 1.05
    assert float(y.std(-2).max() / y.std(-2).min()) < 1.05


def test_kvarn_is_not_ruined_by_one_token():
    k = gaussian(1, 2, 128, 64)
    k[:, :, 7] *= 100
    plain = base.rtn((k @ base.hadamard(64)), 2, 2) @ base.hadamard(64)
    layer, _, _ = filled("kvarn-2", n=128, k=k.clone())
    others = torch.arange(128) != 7
    error = [float((back - k)[:, :, others].square().mean()) for back in (layer.keys, plain)]
    assert error[0] < 0.3 < 10 * error[0] < error[1]


def test_kvarn_survives_tiny_and_constant_values():
    layer, k, v = filled("kvarn-2", n=128, k=torch.full((1, 2, 128, 64), 3.0), v=gaussian(1, 2, 128, 64) * 1e-4)
    assert torch.isfinite(layer.keys).all() and torch.isfinite(layer.values).all()
    assert torch.allclose(layer.keys, k, rtol=1e-2)
    assert float((layer.values - v).square().mean() / v.square().mean()) < 0.4


def test_kvarn_counts_the_papers_bits():
    layer, _, _ = filled("kvarn-2", channels=128)
    assert bits_per_element(layer) == 2.375  # the paper says 2.3


def test_kitty_gives_large_channels_four_bits():
    k = gaussian(1, 1, 128, 64)
    k[..., 5] *= 10
    layer, _, _ = filled("kitty-2:sink=0,share=0.0157", n=128, heads=1, k=k.clone(), v=gaussian(1, 1, 128, 64))
    error = ((layer.keys - k).square().mean(2) / k.square().mean(2))[0, 0]
    assert error[5] < 0.1 * error[torch.arange(64) != 5].min()
    stored = layer.key_part.count(layer.keys[0])
    assert stored.codes == 128 * (2 * 63 + 4) and stored.scales == 64 * 33


def test_oscar_rotation_known_answer():
    assert oscar.bit_reversal(8).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    spectrum = torch.tensor([3.0, 8.0, 1.0, 5.0])
    rotation = oscar.rotation_of(torch.diag(spectrum)[None])[0]
    eigenvectors = torch.eye(4)[[1, 3, 0, 2]]  # rows, by falling eigenvalue
    expected = (eigenvectors.T @ base.hadamard(4))[:, [0, 2, 1, 3]]
    assert torch.allclose(rotation.abs(), expected.abs(), atol=1e-6)
    assert torch.allclose(rotation @ rotation.T, torch.eye(4), atol=1e-6)


def test_oscar_counts_windows_and_rotations():
    layer, _, _ = filled("oscar-2", channels=128)
    stored = layer.count()
    coded = 512 - 64 - 256
    assert stored.codes + stored.scales == 2.25 * 2 * 2 * 128 * coded  # 2.25 bits, as the paper
    assert stored.window == 16 * 2 * 2 * 128 * 320
    assert stored.fitted == 16 * 2 * 2 * 128 * 128


def test_block_gtq_allocation_known_answer():
    assert block_gtq.allocate(torch.tensor([64.0, 16.0, 4.0, 1.0]), 10).tolist() == [4, 3, 2, 1]
    assert block_gtq.allocate(torch.tensor([1e9, 1.0]), 10).tolist() == [8, 2]


def test_block_gtq_gives_strong_blocks_more():
    k = gaussian(1, 2, 256, 64)
    k[..., 3] *= 30  # a block is channels i and i + 32
    layer, _, _ = filled("block-gtq-2", n=256, k=k.clone())
    bits = layer.key_part._bits[0]
    assert int(bits.argmax()) == 3 and int(bits.sum()) == 64
    uniform, _, _ = filled("turboquant-2", n=256, k=k.clone())
    assert (layer.keys - k).square().mean() < 0.5 * (uniform.keys - k).square().mean()


# ------------------------------------------------------------ names


def test_names():
    assert parse("kvarn-k4v2:sink=4").options == {"k": 4.0, "v": 2.0, "sink": 4}
    assert parse("block-gtq-2.5").options == {"k": 2.5, "v": 2.5}
    assert isinstance(parse("kitty").layer().key_part, kitty.Keys)
    assert isinstance(parse("kivi-2").layer().key_part, kivi.Keys)


@pytest.mark.parametrize(
    "text",
    ["nothing-2", "kivi-9", "kivi-2.5", "kivi-2:groups=3", "kivi-2:group=48", "kivi-2:group=x", "kivi-2:k=3", ""],
)
def test_bad_names(text):
    with pytest.raises(ValueError):
        parse(text)
