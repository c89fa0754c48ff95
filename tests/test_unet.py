"""The learned prior: EDM's scalings, the network's form, its files."""

import dataclasses
import functools
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.peers import torch_unet
from posterior_jax import priors
from posterior_jax.priors import edm, eight_bits
from posterior_jax.priors.learned import REACH, param_shapes
from posterior_jax.priors.nets import unet
from tests.oracles import FLOAT32_OPERATOR, quick_jit, refused

# Two scales, one block each way: sees 12 pixels to either side.
CONFIG = priors.UNetConfig(widths=(8, 16), blocks=(1, 1), embedding=16)


@functools.cache
def _initial(config):
  """One program for all layers; eagerly each of them compiles its own."""
  return quick_jit(functools.partial(priors.initial_params, config))


def _params(seed=0, config=CONFIG):
  """Random everywhere: the zeros of the initialisation hide the network."""
  start = _initial(config)(jax.random.key(seed))
  rng = np.random.default_rng(seed)
  return {
    name: 0.3 * rng.standard_normal(p.shape) / np.sqrt(max(p[..., 0].size, 1))
    + np.asarray(p)
    for name, p in start.items()
  }


@pytest.fixture(scope="module")
def prior():
  return priors.unet_prior(CONFIG, _params())


def _image(shape, seed=1):
  rng = np.random.default_rng(seed)
  return jnp.asarray(np.float32(rng.uniform(-1, 1, shape)))


def test_scalings_are_those_of_unit_variance():
  """c_in x and the network's target have variance 1, which defines EDM."""
  sigma = np.geomspace(0.01, 80, 9)
  c = edm.precondition(jnp.asarray(np.float32(sigma)), 0.5)
  skip, out, inner = (np.asarray(a, np.float64) for a in c[:3])
  np.testing.assert_allclose(inner**2 * (0.25 + sigma**2), 1, rtol=1e-5)
  # x0 - c_skip (x0 + sigma n) = (1 - c_skip) x0 - c_skip sigma n.
  target = (1 - skip) ** 2 * 0.25 + (skip * sigma) ** 2
  # 1 - c_skip cancels where sigma is small.
  np.testing.assert_allclose(target / out**2, 1, rtol=2e-3)
  # c_skip is the linear estimate, which makes c_out least.
  np.testing.assert_allclose(skip, 0.25 / (0.25 + sigma**2), rtol=1e-5)
  np.testing.assert_allclose(c.noise, np.log(sigma) / 4, rtol=1e-4, atol=1e-6)
  weight = edm.loss_weight(jnp.asarray(np.float32(sigma)), 0.5)
  np.testing.assert_allclose(weight * out**2, 1, rtol=1e-5)


def test_pixels_that_no_noise_explains_are_brought_back(prior):
  """Bounded whatever it is asked; nothing changes where images are."""
  sigma = jnp.asarray(np.float32([0.1, 2.0]))
  furthest = np.asarray(1 + REACH * sigma)[:, None, None, None]
  x = _image((2, 8, 8, 3)) * furthest
  denoise = quick_jit(prior.denoise)
  plain = denoise(x, sigma)
  for far in (1e3, 1e30, -1e30):
    spoiled = x.at[:, 3, 4].set(far)
    bounded = x.at[:, 3, 4].set(np.sign(far) * furthest[:, 0, 0])
    np.testing.assert_array_equal(
      denoise(spoiled, sigma), denoise(bounded, sigma)
    )
    assert (denoise(spoiled, sigma) != plain).any()
  # So does its Jacobian: what is out of reach pulls nothing any further.
  spoiled = x.at[:, 3, 4].set(1e30)

  @quick_jit
  def pull(x, v):
    return jax.vjp(lambda x: prior.denoise(x, sigma), x)[1](v)[0]

  pulled = pull(spoiled, plain)
  assert np.isfinite(pulled).all()
  assert (pulled[:, 3, 4] == 0).all() and (pulled[:, 0, 0] != 0).all()


def test_beyond_the_largest_level_the_image_is_scaled_down_to_it(prior):
  """And up to it nothing is scaled, bit by bit."""
  x, sigma = 100 * _image((3, 16, 16, 3)), jnp.array([80.0, 160.0, 40.0])
  found = quick_jit(prior.denoise)(x, sigma)
  unbounded = priors.unet_prior(
    dataclasses.replace(CONFIG, sigma_max=1e9), prior.params
  )
  other = jnp.array([1.0, 0.5, 1.0])[:, None, None, None] * x
  denoise = quick_jit(unbounded.denoise)
  expected = denoise(other, jnp.minimum(sigma, 80.0))
  np.testing.assert_array_equal(found, expected)
  free = denoise(x, sigma)
  assert np.abs(np.asarray(free - found))[1].max() > 1e-3


def test_below_the_smallest_level_the_network_is_told_of_it(prior):
  """The shipped one answered 1e21 at 0.002, where PnP-DM's grid ends."""
  x = _image((1, 16, 16, 3))

  denoise = quick_jit(prior.denoise)

  def output(sigma):
    level = jnp.array([sigma], jnp.float32)
    c = edm.precondition(level, CONFIG.sigma_data)
    return (denoise(x, level) - c.skip * x) / c.out

  # The network's input differs by the fourth digit of c_in only.
  np.testing.assert_allclose(output(0.002), output(0.01), atol=5e-3)
  assert np.abs(output(0.1) - output(0.01)).max() > 0.05


def test_untrained_network_is_the_linear_estimate():
  start = _initial(CONFIG)(jax.random.key(3))
  prior = priors.unet_prior(CONFIG, start)
  x = _image((2, 8, 12, 3))
  sigma = jnp.array([0.1, 2.0])
  found = quick_jit(prior.denoise)(x, sigma)
  linear = 0.25 / (0.25 + np.asarray(sigma) ** 2)[:, None, None, None] * x
  np.testing.assert_allclose(found, linear, rtol=1e-5, atol=FLOAT32_OPERATOR)


def test_random_network_is_not(prior):
  x, sigma = _image((1, 16, 16, 3)), jnp.array([0.5])
  denoise = quick_jit(prior.denoise)
  found, other = denoise(x, sigma), denoise(x, 2 * sigma)
  assert np.abs(found - 0.5 * x).max() > 0.05
  # The noise level reaches the network besides its scalings.
  again = edm.precondition(jnp.array([1.0]), 0.5)
  assert np.abs(other - again.skip * x).max() > 0.05


def test_without_noise_the_image_is_the_answer(prior):
  x = _image((2, 16, 16, 3))
  found = quick_jit(prior.denoise)(x, jnp.array([0.0, 0.5]))
  np.testing.assert_allclose(found[0], x[0], atol=1e-4)
  assert np.abs(found[1] - x[1]).max() > 0.05


@pytest.mark.parametrize("normed", [False, True])
def test_network_equals_the_same_in_pytorch(normed):
  """An independent implementation with other layers: three scales."""
  torch = pytest.importorskip("torch")
  config = priors.UNetConfig(
    widths=(8, 16, 24), blocks=(1, 2, 1), embedding=16, normed=normed
  )
  params = _params(2, config)
  x, sigma = _image((3, 16, 24, 3)), jnp.array([0.05, 3.0, 120.0])
  found = quick_jit(priors.unet_prior(config, params).denoise)(x, sigma)
  other = torch_unet.denoiser(params, config, device="cpu", dtype="float32")
  turned = torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)
  y = other(turned, torch.tensor(np.asarray(sigma))).permute(0, 2, 3, 1)
  np.testing.assert_allclose(found, y.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("normed", [False, True])
def test_a_normed_block_does_not_see_the_size_of_its_input(normed):
  """RMSNorm over the channels of each pixel, whatever its neighbours are."""
  block = unet._Block(8, 16, normed=normed, dtype=jnp.float32, rngs=nnx.Rngs(0))
  block.outer.kernel[...] = jnp.ones_like(block.outer.kernel[...])
  x = _image((1, 6, 6, 8)) + 2
  sizes = jnp.asarray(np.float32([1, 10, 100] * 12)).reshape(1, 6, 6, 1)
  added, again = (block(y, jnp.ones((1, 16))) - y for y in (x, sizes * x))
  error = np.abs(again - added).max() / np.abs(added).max()
  assert error < 1e-4 if normed else error > 1


def test_images_of_a_batch_do_not_meet(prior):
  x = _image((3, 16, 16, 3))
  sigma = jnp.array([0.05, 0.5, 20.0])
  denoise = quick_jit(prior.denoise)
  together = denoise(x, sigma)
  for i in range(3):
    alone = denoise(x[i : i + 1], sigma[i : i + 1])
    np.testing.assert_allclose(together[i], alone[0], rtol=0, atol=1e-5)


def test_what_a_pixel_gets_does_not_depend_on_the_size(prior):
  """The inside of a part equals the part of the whole: no seams."""
  reach = 16  # more than the network sees, and a multiple of its unit
  whole = _image((1, 64, 48, 3))
  sigma = jnp.array([0.4])
  denoise = quick_jit(prior.denoise)
  large = denoise(whole, sigma)
  for top, left in ((0, 0), (8, 4), (16, 8)):
    part = denoise(whole[:, top : top + 48, left : left + 40], sigma)
    inside = large[:, top + reach : top + 48 - reach]
    inside = inside[:, :, left + reach : left + 40 - reach]
    np.testing.assert_allclose(
      part[:, reach:-reach, reach:-reach], inside, rtol=0, atol=2e-5
    )


def test_constant_picture_has_no_checkerboard(prior):
  """A constant stays periodic in the unit alone, far from the border."""
  x = jnp.full((1, 48, 48, 3), 0.3)
  found = quick_jit(prior.denoise)(x, jnp.array([0.5]))[0, 16:-16, 16:-16]
  np.testing.assert_allclose(found[:-2], found[2:], rtol=0, atol=1e-5)
  np.testing.assert_allclose(found[:, :-2], found[:, 2:], rtol=0, atol=1e-5)


def test_bfloat16_stays_near_float32(prior):
  x, sigma = _image((2, 16, 16, 3)), jnp.array([0.1, 1.0])
  half = priors.unet_prior(CONFIG, prior.params, dtype="bfloat16")
  exact = quick_jit(prior.denoise)(x, sigma)
  rough = quick_jit(half.denoise)(x, sigma)
  assert rough.dtype == jnp.float32
  # Eight bits at each of about ten layers, times c_out.
  assert 0 < np.abs(rough - exact).max() < 0.05


def test_norms_in_bfloat16_stay_near_float32():
  """Where types are not promoted by themselves, as in all of these tests."""
  config = priors.UNetConfig(widths=(8,), blocks=(1,), embedding=8, normed=True)
  x, sigma, params = (
    _image((2, 16, 16, 3)),
    jnp.array([0.1, 2.0]),
    _params(3, config),
  )
  found, half = (
    quick_jit(priors.unet_prior(config, params, dtype=dtype).denoise)(x, sigma)
    for dtype in ("float32", "bfloat16")
  )
  assert half.dtype == jnp.float32
  # Eight bits at each of about ten layers.
  assert 0 < np.abs(found - half).max() < 0.05 * np.abs(found).max()


def test_same_key_same_parameters():
  first, other = (_initial(CONFIG)(jax.random.key(seed)) for seed in (5, 6))
  # A program of its own, so that tracing anew is part of the claim.
  again = _initial.__wrapped__(CONFIG)(jax.random.key(5))
  for name, value in first.items():
    np.testing.assert_array_equal(value, again[name])
  assert any((value != other[name]).any() for name, value in first.items())


class _Gain(nnx.Module):
  """Draws as networks of others may: by any stream, forked or of itself."""

  def __init__(self, rngs):
    assert isinstance(rngs, nnx.Rngs)
    start = rngs.fork().start.normal((3,)) + rngs.normal((3,))
    self.gain = nnx.Param(start + jax.random.normal(rngs(), (3,)))


@dataclasses.dataclass(frozen=True)
class _Own:
  channels: int = 3
  unit: int = 1
  parametrisation: object = CONFIG.parametrisation

  def build(self, *, dtype, rngs):
    return _Gain(rngs)


def test_own_networks_are_built_with_streams_of_flax():
  made = priors.initial_params(_Own(), jax.random.key(0))
  found = param_shapes(_Own())
  assert found == {name: p.shape for name, p in made.items()} == {"gain": (3,)}


def test_new_weights_do_not_retrace(prior):
  traced = []

  @jax.jit
  def call(denoise, x, sigma):
    traced.append(0)
    return denoise(x, sigma)

  x, sigma = _image((1, 8, 8, 3)), jnp.array([0.5])
  call(prior.denoise, x, sigma)
  call(priors.unet_prior(CONFIG, _params(9)).denoise, x, sigma)
  assert len(traced) == 1


def test_refusals_of_images(prior):
  sigma = jnp.ones(1)
  for shape in ((1, 9, 8, 3), (1, 8, 8, 1), (8, 8, 3), (1, 0, 8, 3)):
    with refused(ValueError, "x must have shape"):
      prior.denoise(jnp.zeros(shape), sigma)
  with refused(ValueError, "sigma must have one entry"):
    prior.denoise(jnp.zeros((2, 8, 8, 3)), sigma)
  with refused(TypeError, "sigma must be an array, got float"):
    prior.denoise(jnp.zeros((1, 8, 8, 3)), 1.0)
  with refused(TypeError, "x must be an array, got list"):
    prior.denoise([[0.0]], sigma)


def test_refusals_of_parameters():
  params = _params()
  name = "middle.0.inner.kernel"
  with refused(ValueError, f"params must hold '{name}'"):
    priors.unet_prior(CONFIG, {k: v for k, v in params.items() if k != name})
  with refused(ValueError, "must not hold 'extra'"):
    priors.unet_prior(CONFIG, params | {"extra": params[name]})
  with refused(ValueError, f"'{name}'.* must have shape"):
    priors.unet_prior(CONFIG, params | {name: params[name][:1]})
  with refused(ValueError, f"'{name}'.* must be floating"):
    priors.unet_prior(CONFIG, params | {name: params[name].astype(int)})
  for dtype in ("float16", "half-float", None):
    with refused(ValueError, f"dtype must be float32 .*, got '?{dtype}"):
      priors.unet_prior(CONFIG, params, dtype=dtype)
  with refused(ValueError, "as many scales"):
    priors.UNetConfig(widths=(8,), blocks=(1, 1))
  with refused(ValueError, "embedding even"):
    priors.UNetConfig(embedding=7)
  with refused(ValueError, "sigma_data"):
    priors.UNetConfig(sigma_data=0.0)
  for value in ("no", 1, None):  # "no" would be as good as True
    with refused(ValueError, "normed must be True or False, got"):
      priors.UNetConfig(normed=value)
  with refused(ValueError, "sigma_max must be positive, got -1"):
    priors.UNetConfig(sigma_max=-1)


def test_files_hold_what_was_saved(tmp_path, prior):
  path = tmp_path / "small.json"
  priors.save_prior(path, prior.params, CONFIG, {"steps": 3})
  loaded = priors.load_prior(path)
  assert loaded.config == CONFIG
  assert json.loads(path.read_text())["steps"] == 3
  for name, value in prior.params.items():
    rounded = np.asarray(value, np.float16).astype(np.float32)
    np.testing.assert_array_equal(loaded.params[name], rounded)


def test_files_of_eight_bits_hold_kernels_to_half_a_step(tmp_path, prior):
  path = tmp_path / "small.json"
  priors.save_prior(path, prior.params, CONFIG, {}, bits=8)
  loaded = priors.load_prior(path)
  for name, value in prior.params.items():
    exact = np.asarray(value)
    if exact.ndim == 1 or min(exact.shape[-2:]) <= 4:  # in float16
      bound = 2.0**-11 * np.abs(exact)
    else:  # of the largest weight over the input channels
      bound = np.abs(exact).max(-2, keepdims=True) / 127 / 2
    gap = np.abs(loaded.params[name] - exact)
    assert (gap <= 1.0001 * bound + 1e-9).all(), name
  whole = path.with_suffix(".safetensors").stat().st_size
  priors.save_prior(path, prior.params, CONFIG, {})
  assert whole < path.with_suffix(".safetensors").stat().st_size
  with refused(ValueError, "bits must be 8 or 16, got 4"):
    priors.save_prior(path, prior.params, CONFIG, {}, bits=4)


@pytest.mark.parametrize(
  "change, words",
  [
    ({"k:scale": None}, "must hold .k:scale., a number for every tap and out"),
    ({"k:scale": np.ones(3, np.float32)}, "must hold .k:scale."),
    ({"k": np.ones((3, 2, 4), np.int8)}, "must hold .k:scale."),
    ({"k": np.ones(4, np.int8)}, "must hold .k:scale."),
    ({"k": np.ones((2, 4), np.float16)}, "has no numbers of 8 bits for .k:sc"),
    ({"k": None}, "has no numbers of 8 bits for .k:scale."),
    ({"k:scale": np.full(4, 3e38), "k": np.full((2, 4), 2, np.int8)}, "finite"),
  ],
)
def test_eight_bits_without_their_scale_are_refused(change, words):
  held = {"k": np.ones((2, 4), np.int8), "k:scale": np.ones(4, np.float32)}
  np.testing.assert_array_equal(eight_bits.widened("f", held)["k"], 1.0)
  taps = {"k": np.ones((3, 2, 4), np.int8), "k:scale": np.ones((3, 4))}
  np.testing.assert_array_equal(eight_bits.widened("f", taps)["k"], 1.0)
  held = {k: v for k, v in (held | change).items() if v is not None}
  with refused(ValueError, words):
    eight_bits.widened("f", held)


def test_changed_files_are_refused(tmp_path, prior):
  path = tmp_path / "small.json"
  priors.save_prior(path, prior.params, CONFIG, {})
  weights = path.with_suffix(".safetensors")
  whole = weights.read_bytes()
  weights.write_bytes(whole[:-8])
  with refused(ValueError, "small.safetensors has sha256"):
    priors.load_prior(path)
  weights.write_bytes(b"not a file of tensors" * 9)
  said = json.loads(path.read_text())
  path.write_text(json.dumps(said | {"sha256": _sha256(weights)}))
  with refused(ValueError, "no safetensors file"):
    priors.load_prior(path)
  weights.unlink()
  with refused(ValueError, "which is not there"):
    priors.load_prior(path)
  path.write_text(json.dumps({"file": "x", "sha256": "y"}))
  with refused(ValueError, "must name file, sha256 and network"):
    priors.load_prior(path)


def _sha256(path):
  return hashlib.sha256(path.read_bytes()).hexdigest()


def test_weights_that_overflow_are_not_saved(tmp_path, prior):
  name = "enter.kernel"
  params = prior.params | {name: prior.params[name] + 1e6}
  with refused(ValueError, "'enter.kernel'.* finite in float16"):
    priors.save_prior(tmp_path / "big.json", params, CONFIG, {})
  assert not list(tmp_path.iterdir())
