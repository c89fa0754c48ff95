"""Images of any size by tiles and padding; networks in bfloat16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from posterior_jax import (
  NFCConfig,
  Observation,
  nfc,
  operators,
  padded,
  priors,
  recorded,
  run,
  tiled,
)
from posterior_jax.denoising import tiling
from posterior_jax.nfc_sampler import Sigma
from posterior_jax.priors.learned import param_shapes
from tests.oracles import quick_jit


def normal(shape, seed=0):
  x = np.random.default_rng(seed).standard_normal(shape)
  return jnp.asarray(np.float32(x))


SIGMA = jnp.array([0.5, 2.0])


def pointwise(x, sigma):
  return jnp.tanh(x) / (1 + sigma[:, None, None, None])


def local(x, sigma):
  """Looks two pixels far, zeros beyond the border as in a network."""
  box = lax.reduce_window(x, 0.0, lax.add, (1, 5, 5, 1), (1, 1, 1, 1), "SAME")
  return jnp.tanh(box) + pointwise(x, sigma)


SIZES = [(16, 16), (17, 30), (40, 21), (16, 33)]


def test_a_vjp_takes_the_memory_of_a_tile():
  """More tiles keep more pixels, not more of what a network has in between."""
  config = priors.UNetConfig(widths=(16,), blocks=(4,), embedding=16)
  params = {
    name: jnp.zeros(shape) for name, shape in param_shapes(config).items()
  }
  prior = priors.unet_prior(config, params)

  def memory(denoise, size):
    def pulled(x):
      y, pullback = jax.vjp(lambda x: denoise(x, SIGMA[:1]), x)
      return pullback(y)[0]

    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    compiled = jax.jit(pulled).lower(image).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  in_tiles = tiled(prior.denoise, tile=32, overlap=8)
  of_a_tile = memory(prior.denoise, 32)
  assert memory(in_tiles, 128) < 3 * of_a_tile
  assert memory(prior.denoise, 128) > 10 * of_a_tile


@pytest.mark.parametrize(
  "size",
  [
    *(pytest.param(size, marks=pytest.mark.slow) for size in SIZES[:3]),
    *(SIZES[3], (5, 40), (9, 3)),
  ],
)
def test_a_pointwise_denoiser_is_tiled_exactly(size):
  x = normal((2, *size, 2))
  for overlap, margin in ((0, 0), (4, None), (9, 4), (15, 7)):
    found = tiled(pointwise, tile=16, overlap=overlap, margin=margin)(x, SIGMA)
    np.testing.assert_allclose(found, pointwise(x, SIGMA), atol=1e-6)


@pytest.mark.parametrize(
  "size",
  [
    *(SIZES[0], SIZES[3]),
    *(pytest.param(size, marks=pytest.mark.slow) for size in SIZES[1:3]),
  ],
)
def test_a_local_denoiser_is_tiled_exactly_within_its_margin(size):
  x = normal((2, *size, 1))
  expected = local(x, SIGMA)
  found = tiled(local, tile=(16, 12), overlap=7, margin=2)(x, SIGMA)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  if size[1] > 16:  # what the margin is for
    short = tiled(local, tile=(16, 12), overlap=2, margin=1)(x, SIGMA)
    assert float(jnp.abs(short - expected).max()) > 0.1


@pytest.mark.parametrize(
  ("size", "tile", "overlap", "margin"),
  [(256, 64, 16, 4), (65, 64, 16, 8), (200, 64, 63, 0), (64, 64, 0, 0)],
)
def test_weights_are_a_partition_of_unity(size, tile, overlap, margin):
  starts, weights = tiling._cuts(size, tile, overlap, margin)
  total = np.zeros(size)
  for start, weight in zip(starts, weights):
    total[start : start + tile] += weight
  np.testing.assert_allclose(total, 1, atol=1e-6)
  assert (weights >= 0).all()
  assert starts[0] == 0 and starts[-1] == size - tile
  assert (np.diff(starts) <= tile - overlap).all()
  inner = weights[1:, :margin]
  assert not inner.any()


def strict(x, sigma):
  if x.shape[1] % 8 or x.shape[2] % 8:
    raise ValueError(f"sides by 8, got {x.shape}")
  return local(x, sigma)


def test_padding_brings_sides_to_their_unit():
  x = normal((2, 13, 24, 1))
  found = padded(strict, multiple=8)(x, SIGMA)
  assert found.shape == x.shape
  # Mirrored below: two rows beyond the last are the last two in reverse.
  whole = jnp.concatenate([x, x[:, :-4:-1]], axis=1)
  np.testing.assert_allclose(found, local(whole, SIGMA)[:, :13], atol=1e-6)
  fitting = x[:, :8]
  np.testing.assert_array_equal(
    padded(strict)(fitting, SIGMA), strict(fitting, SIGMA)
  )


def test_sampling_with_tiles_is_sampling_without_for_white_images():
  """A white prior's denoiser is pointwise; new priors do not retrace."""
  shape = (20, 28, 1)
  operator = operators.random_inpainting(shape)
  observation = Observation(normal((1, *shape)), operator, 0.1)
  sampler = nfc(NFCConfig(levels=3, width=Sigma()))
  traces = []

  def denoise(x, sigma, power):
    traces.append(x.shape)
    return x * (power / (power + sigma**2))[:, None, None, None]

  for power in (0.5, 1.0):
    inner = jax.tree_util.Partial(denoise, power=jnp.float32(power))
    key = jax.random.key(0)
    found, _ = run(sampler, tiled(inner, tile=16, overlap=4), observation, key)
    expected, _ = run(sampler, inner, observation, key)
    np.testing.assert_allclose(found, expected, atol=2e-5)
  assert traces.count((1, 16, 16, 1)) == 1
  assert traces.count((1, *shape)) == 1


@pytest.mark.slow
def test_a_bfloat16_network_keeps_a_float32_state():
  config = priors.UNetConfig(channels=1, widths=(8, 8), blocks=(1, 1))
  initial = quick_jit(functools.partial(priors.initial_params, config))
  params = initial(jax.random.key(0))
  prior = priors.unet_prior(config, params, dtype=jnp.bfloat16)
  shape = (2 * config.unit, 2 * config.unit, 1)
  seen = []

  def denoise(x, sigma):
    found = prior.denoise(x, sigma)
    seen.append((x.dtype, sigma.dtype))
    return found.astype(jnp.bfloat16)

  observation = Observation(
    normal((1, *shape)), operators.random_inpainting(shape), 0.1
  )
  sampler = recorded(nfc(NFCConfig(levels=2, width=Sigma())))
  samples, info = run(sampler, denoise, observation, jax.random.key(0))
  assert samples.dtype == info.trajectory.dtype == jnp.float32
  assert seen == [(jnp.float32, jnp.float32)]
  # A state that passed through bfloat16 would be unchanged by it.
  state = np.asarray(info.trajectory[0])
  rounded = state.astype(jnp.bfloat16).astype(np.float32)
  assert (rounded != state).mean() > 0.9


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    (dict(tile=0), "tile must be one or two positive integers, got 0"),
    (dict(tile=16.0), "tile must be one or two positive integers, got 16.0"),
    (dict(tile=8, overlap=8), r"overlap must lie in \[0, 8\)"),
    (dict(overlap=8, margin=5), r"margin must lie in \[0, 4\]"),
  ],
)
def test_bad_tiles_are_one_sentence(change, sentence):
  with pytest.raises(ValueError, match=sentence):
    tiled(pointwise, **change)


def test_tiles_of_numpy_are_whole():
  assert tiled(pointwise, tile=np.int64(16), overlap=4).tile == (16, 16)


def test_bad_wrappers_are_one_sentence():
  with pytest.raises(ValueError, match="multiple must be at least 1, got 0"):
    padded(pointwise, multiple=0)
  for wrap in (tiled, padded):
    with pytest.raises(TypeError, match="denoise must be callable, got int"):
      wrap(3)
