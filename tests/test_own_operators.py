"""Operators from a function alone: the examples of the guide, the checks."""

import dataclasses
import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterior_jax as pj
from posterior_jax import operators
from posterior_jax.likelihood import gaussian
from posterior_jax.nfc_sampler import first_state
from posterior_jax.operators import scene
from tests import oracles
from tests.oracles import refused

pytestmark = pytest.mark.usefixtures("quick_compilation")

GUIDE = pathlib.Path(__file__).parents[1] / "docs/guides/operators.md"
NOISE = 0.1
NAMES = ("mri", "radon", "sensing", "bayer")


@pytest.fixture(scope="module")
def guide():
  """What the guide's first four sections define."""
  text = GUIDE.read_text().split("## Restore with one")[0]
  program: dict = {}
  for block in re.findall(r"^```python\n(.*?)^```", text, re.S | re.M):
    assert len(block.strip().splitlines()) <= 25
    # The guide's own test runs the checks as well, which compile a solve each.
    block = re.sub(r"^pj\.operators\.check_operator.*$", "", block, flags=re.M)
    exec(compile(block, "operators.md", "exec"), program)
  return program


def _dense(operator):
  """Matrix on row-major images of any channels, [m, D] float64."""
  size = int(np.prod(operator.image_shape))
  basis = np.eye(size, dtype=np.float32).reshape(-1, *operator.image_shape)
  images = np.asarray(operator.forward(basis), np.float64)
  return images.reshape(size, -1).T


def _posterior(operator, y):
  """Mean [D] and covariance [D, D] under the guide's Gaussian prior."""
  a = _dense(operator)
  spectrum = np.asarray(_spectrum(operator), np.float64)
  precision = np.kron(
    oracles.fourier_diagonal(1 / spectrum), np.eye(operator.image_shape[2])
  )
  covariance = np.linalg.inv(a.T @ a / NOISE**2 + precision)
  return covariance @ a.T @ np.ravel(y) / NOISE**2, covariance


def _spectrum(operator):
  return pj.priors.power_law_spectrum(*operator.image_shape[:2])


def _observed(operator):
  prior = pj.priors.gaussian_prior(_spectrum(operator))
  channels = operator.image_shape[2]
  truth = prior.sample(jax.random.key(3), (1,), channels=channels)
  clean = operator.forward(truth)
  noise = NOISE * jax.random.normal(jax.random.key(4), clean.shape)
  return prior, pj.Observation(clean + noise, operator, NOISE)


@pytest.mark.parametrize(
  "name",
  [*(pytest.param(x, marks=pytest.mark.slow) for x in NAMES[:2]), *NAMES[2:]],
)
def test_adjoint_and_mean_are_the_dense_ones(guide, name):
  operator = guide[name]
  a = _dense(operator)
  y = np.random.default_rng(0).standard_normal(operator.measurement_shape)
  back = operator.adjoint(jnp.asarray(y, jnp.float32))
  scale = np.abs(a.T @ y.ravel()).max()
  np.testing.assert_allclose(
    np.ravel(back) / scale, a.T @ y.ravel() / scale, atol=1e-5
  )
  prior, observation = _observed(operator)
  mean, info = jax.jit(pj.priors.posterior_mean)(prior, observation)
  expected, _ = _posterior(operator, observation.y)
  np.testing.assert_allclose(np.ravel(mean), expected, atol=2e-4)
  # The probed gain preconditions: without it each takes over 100.
  assert int(info.iterations) < 100


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_samples_are_calibrated(guide, name):
  """Mean and variance of posterior samples within 5 % of the dense answer."""
  operator = guide[name]
  prior, observation = _observed(operator)
  sampler = pj.nfc(pj.NFCConfig.calibrated(levels=15), spectrum=prior.spectrum)
  samples, _ = pj.run(
    sampler, prior.denoise, observation, jax.random.key(5), num_samples=1024
  )
  found = np.asarray(samples, np.float64).reshape(len(samples), -1)
  mean, covariance = _posterior(operator, observation.y)
  variance = np.diag(covariance)
  ratio = found.var(0, ddof=1).sum() / variance.sum()
  error = np.sqrt(((found.mean(0) - mean) ** 2).sum() / variance.sum())
  print(name, f"variance ratio {ratio:.3f}, mean off by {error:.3f} std")
  assert abs(ratio - 1) < 0.05
  assert error < 0.05


def test_one_exact_draw_has_the_dense_covariance(guide):
  """The fast twin: 1000 draws of one level, at the prior's own width."""
  operator = guide["sensing"]
  prior, observation = _observed(operator)
  target = gaussian.Target(
    observation, jnp.zeros((1000, 1, *operator.image_shape)), prior.spectrum
  )
  draw = functools.partial(gaussian.draw, tolerance=1e-5, max_iterations=300)
  draws, _ = jax.jit(draw)(jax.random.key(0), target)
  found = np.asarray(draws, np.float64).reshape(1000, -1)
  mean, covariance = _posterior(operator, observation.y)
  ratio = found.var(0, ddof=1).sum() / np.trace(covariance)
  error = ((found.mean(0) - mean) ** 2).sum() / np.trace(covariance)
  assert abs(ratio - 1) < 0.02
  assert error < 2 / 1000


# --- what JAX and the probes give ---------------------------------------------


def test_gain_of_what_fourier_space_diagonalises_is_exact():
  blur = operators.blur(
    (16, 24, 2), np.ones((3, 5)[:1] * 2) / 9, boundary="circular"
  )
  operator = operators.linear(lambda x: blur.forward(x), (16, 24, 2))
  floor = 1e-3 * float(blur.gram_gain.mean())
  expected = np.maximum(blur.gram_gain, floor)
  np.testing.assert_allclose(operator.gram_gain, expected, atol=1e-4)


def test_gain_of_a_mask_is_its_share():
  mask = operators.random_inpainting((32, 32, 1), fraction=0.75)
  operator = operators.linear(lambda x: mask.mask * x, (32, 32, 1))
  np.testing.assert_allclose(operator.gram_gain.mean(), 0.25, rtol=0.02)
  assert operator.gram_gain.std() < 0.05


def test_another_matrix_compiles_nothing():
  traced = []

  def times(matrix, x):
    traced.append(1)
    return (matrix @ x.ravel()).reshape(-1, 1, 1)

  forward = jax.jit(lambda operator, x: operator.forward(x))
  x = jnp.ones((1, 4, 4, 1))
  for seed in range(3):
    matrix = jax.random.normal(jax.random.key(seed), (5, 16))
    partial = jax.tree_util.Partial(times, matrix)
    operator = operators.linear(partial, (4, 4, 1))
    before = len(traced)
    forward(operator, x)
    assert seed == 0 or len(traced) == before


def test_views_are_inverse_and_keep_the_product():
  z = jax.lax.complex(*jax.random.normal(jax.random.key(0), (2, 3, 4, 5)))
  x = operators.real_view(z)
  assert x.shape == (3, 4, 10)
  np.testing.assert_array_equal(operators.complex_view(x), z)
  np.testing.assert_allclose((x**2).sum(), (jnp.abs(z) ** 2).sum(), rtol=1e-6)


# --- the check ----------------------------------------------------------------

SHAPE = (8, 8, 1)


@pytest.mark.parametrize(
  ("forward", "adjoint", "sentence"),
  [
    (lambda x: x[::2], lambda y: jnp.repeat(y, 2, 0), "adjoint must be the tr"),
    (lambda x: 3 * x, lambda y: 3.001 * y, "adjoint must be the transpose"),
    (lambda x: x[::-1], lambda y: y, "adjoint must be the transpose"),
    (lambda x: x, lambda y: y[:4], "adjoint must return \\[2, 1, 8, 8, 1\\]"),
    (lambda x: x + 1, lambda y: y, "forward must be linear"),
    (lambda x: jnp.abs(x), lambda y: y, "forward must be linear"),
    (lambda x: jnp.clip(x, -1, 1), lambda y: y, "forward must be linear"),
    (lambda x: x / 0, lambda y: y, "forward must return finite numbers"),
    (lambda x: 0 * x, lambda y: y, "forward must not be 0 of every image"),
    (
      lambda x: x,
      lambda y: jax.lax.complex(y, y),
      "adjoint must return real numbers",
    ),
  ],
)
def test_what_is_wrong_is_named(forward, adjoint, sentence):
  operator = operators.Function(
    jax.tree_util.Partial(forward),
    jax.tree_util.Partial(adjoint),
    jnp.ones(()),
    SHAPE,
    jax.eval_shape(forward, jax.ShapeDtypeStruct(SHAPE, jnp.float32)).shape,
  )
  with pytest.raises(ValueError, match=sentence) as caught:
    operators.check_operator(operator)
  assert "\n" not in str(caught.value)


def test_a_wrong_gain_or_solve_is_found(monkeypatch):
  operator = operators.linear(lambda x: 2 * x, SHAPE)
  kind = type(operator)
  assert operators.check_operator(operator).solve < 1e-4
  with monkeypatch.context() as patch:
    patch.setattr(kind, "gram_gain", property(lambda self: -jnp.ones(())))
    with pytest.raises(ValueError, match="gram_gain must be finite and non-n"):
      operators.check_operator(operator)
  solve = kind.normal_solve
  with monkeypatch.context() as patch:
    patch.setattr(
      kind,
      "normal_solve",
      lambda self, rhs, **how: (0.99 * solve(self, rhs, **how)[0], None),
    )
    with pytest.raises(ValueError, match="normal_solve must solve"):
      operators.check_operator(operator)


@pytest.mark.parametrize(
  "operator",
  [
    operators.gaussian_blur((16, 16, 3), size=5, std=1.0, boundary="valid"),
    operators.super_resolution((16, 16, 3), factor=2, boundary="valid"),
    operators.dense((4, 4, 1), np.eye(16)[:5]),
  ],
  ids=lambda operator: type(operator).__name__,
)
def test_operators_of_the_package_pass(operator):
  assert max(operators.check_operator(operator)) <= 1e-3


@pytest.mark.parametrize(
  ("function", "error", "sentence"),
  [
    (3, TypeError, "function must be callable, got int"),
    (lambda x: x.sum(), ValueError, r"a real array \[h, w, c\]"),
    (lambda x: jnp.fft.fft2(x), ValueError, r"operators\.real_view"),
    (lambda x: x**2, ValueError, "function must be linear in JAX operations"),
    (lambda x: np.negative(x), ValueError, "jnp in place of np and jnp.wh"),
    (lambda x: x if x.sum() > 0 else -x, ValueError, "jnp.where in place of"),
    (lambda x: jnp.abs(x), ValueError, "function must be linear in JAX"),
    (lambda x: jnp.where(x > 0, x, 2 * x), ValueError, "it has no transpose"),
    (lambda x: x + 1, ValueError, "of an image of zeros it returns up to 1;"),
    (lambda x: x[:0], ValueError, r"a real array \[h, w, c\]"),
    (lambda x: x.astype(jnp.bfloat16), ValueError, "must return float32"),
    (lambda x: jnp.nan * x, ValueError, "function must be linear: of an imag"),
  ],
)
def test_bad_functions_are_one_sentence(function, error, sentence):
  with pytest.raises(error, match=sentence) as caught:
    operators.linear(function, SHAPE)
  assert "\n" not in str(caught.value)


def test_an_adjoint_of_another_shape_is_named():
  with refused(
    ValueError, r"adjoint must return \[8, 8, 1\] .* got \(4, 8, 1\)"
  ):
    operators.linear(lambda x: x, SHAPE, adjoint=lambda y: y[:4])


def test_the_interior_may_be_written_in_jax():
  """A start from the measurement asks for it while it is traced."""

  @jax.tree_util.register_dataclass
  @dataclasses.dataclass(frozen=True)
  class Sliced(scene.SceneBlur):
    def interior(self, x):
      rows = jax.lax.slice_in_dim(x, 1, 7, axis=-3)
      return jax.lax.slice_in_dim(rows, 1, 7, axis=-2)

  operator = Sliced(jnp.full((3, 3), 1 / 9), (8, 8, 1), (6, 6))
  y = jax.random.normal(jax.random.key(0), (1, 6, 6, 1))

  def shown(y):
    observation = pj.Observation(y, operator, NOISE)
    return first_state.shown(observation, _spectrum(operator), (1, 8, 8, 1))

  np.testing.assert_array_equal(jax.jit(shown)(y)[:, 1:7, 1:7], y)
