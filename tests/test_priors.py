"""Image priors against dense linear algebra, quadrature and Monte Carlo.

Power spectra are in test_schedule.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.ndimage
import scipy.special
import scipy.stats

from posterior_jax import operators, priors
from posterior_jax.base import Observation
from tests import oracles

SIZE = (8, 8)
# Bound, in standard errors, on the largest of up to 2e4 normal deviates, of
# which one exceeds it once in 1e3 seeds; a single one is held to 4.5.
MANY, ONE = 5.5, 4.5
bits32and64 = pytest.mark.parametrize("bits", [32, 64])


def rng(seed=0):
  return np.random.default_rng(seed)


def even_spectrum(shape=SIZE, seed=1):
  """No symmetry but the one required; values within 0.1 to 3 or so."""
  a = np.exp(0.6 * rng(seed).standard_normal(shape))
  i, j = -np.arange(shape[0]) % shape[0], -np.arange(shape[1]) % shape[1]
  return 0.5 * (a + a[i][:, j])


def gaussian(per_channel, mean_shape, size=SIZE):
  """Spectrum, mean and the dense covariance [H * W, H * W] of both channels."""
  spectrum = even_spectrum((*size, 2) if per_channel else size)
  each = np.broadcast_to(spectrum.reshape(*size, -1), (*size, 2))
  dense = [oracles.fourier_diagonal(each[..., c]) for c in range(2)]
  return spectrum, rng(2).standard_normal(mean_shape), dense


def cast(bits, *arrays):
  dtype = {32: jnp.float32, 64: jnp.float64}[bits]
  return [jnp.asarray(a, dtype) for a in arrays]


# Compiled whole: operation by operation each would be a dozen programs.
denoise = oracles.quick_jit(lambda prior, x, sigma: prior.denoise(x, sigma))
sample = oracles.quick_jit(
  lambda prior, key, *shape, **options: prior.sample(key, *shape, **options),
  static_argnums=2,
  static_argnames="channels",
)
posterior_mean = oracles.quick_jit(priors.posterior_mean)


@bits32and64
@pytest.mark.parametrize(
  ("size", "per_channel", "rank"),
  [(SIZE, False, 0), (SIZE, True, 1), (SIZE, False, 3), ((7, 6), True, 3)],
)
def test_denoise_is_the_posterior_mean(bits, size, per_channel, rank):
  """m + C (C + sigma^2)^-1 (x - m), by dense solves."""
  shape = (*size, 2)[3 - rank :]
  spectrum, mean, covariances = gaussian(per_channel, shape, size)
  sigma = np.array([0.03, 1.0, 40.0])
  x = rng(3).standard_normal((3, *size, 2)) * (1 + sigma[:, None, None, None])
  centre = np.broadcast_to(mean, x.shape)
  expected = np.empty_like(x)
  for c, covariance in enumerate(covariances):
    for m, s in enumerate(sigma):
      noisy = covariance + s**2 * np.eye(len(covariance))
      offset = (x - centre)[m, ..., c].ravel()
      shift = covariance @ np.linalg.solve(noisy, offset)
      expected[m, ..., c] = centre[m, ..., c] + shift.reshape(size)
  with jax.enable_x64(bits == 64):
    prior = priors.GaussianPrior(*cast(bits, spectrum, mean))
    found = denoise(prior, *cast(bits, x, sigma))
  assert found.dtype == f"float{bits}"
  # Gains are at most 1: the error is that of two FFTs of pixels of size |x|.
  atol = {32: oracles.FLOAT32_FFT, 64: 1e-14}[bits]
  error = np.abs(np.asarray(found, np.float64) - expected).max((1, 2, 3))
  assert (error <= atol * np.abs(x - centre).max((1, 2, 3)) + atol).all()


@pytest.mark.parametrize("per_channel", [False, True])
def test_sample_has_the_dense_spectrum(per_channel):
  """Whitened draws: entries of their covariance have standard error n^-1/2."""
  spectrum, mean, covariances = gaussian(per_channel, (*SIZE, 2))
  prior = priors.gaussian_prior(spectrum, mean)
  count = 10000
  x = sample(prior, jax.random.key(0), (count // 4, 4), channels=2)
  assert x.shape == (count // 4, 4, *SIZE, 2) and x.dtype == jnp.float32
  x = np.asarray(x, np.float64).reshape(count, -1, 2) - mean.reshape(-1, 2)
  white = [
    np.linalg.solve(np.linalg.cholesky(c), x[..., i].T)
    for i, c in enumerate(covariances)
  ]
  white = np.concatenate(white).T  # [n, 2 * 64]
  assert np.abs(white.mean(0)).max() <= MANY * count**-0.5
  excess = white.T @ white / count - np.eye(128)
  assert np.abs(np.diag(excess)).max() <= MANY * (2 / count) ** 0.5
  assert np.abs(excess - np.diag(np.diag(excess))).max() <= MANY * count**-0.5
  # Fourth moment 3, of variance 96.
  assert abs((white**4).mean() - 3) <= ONE * (96 / white.size) ** 0.5


KERNEL = rng(5).dirichlet(np.ones(25)).reshape(5, 5)


def measurement(name):
  """An operator on 8x8x2 and its dense float64 matrix for one channel."""
  shape = (*SIZE, 2)
  if name == "resize":
    rows = oracles.resizer_matrix(8, 2)
    operator = operators.super_resolution(shape, factor=2)
    return operator, oracles.dense(lambda x: rows @ x @ rows.T, SIZE)
  if name in ("reflect", "circular"):
    mode = {"reflect": "mirror", "circular": "wrap"}[name]
    operator = operators.blur(shape, KERNEL, boundary=name)
    return operator, oracles.dense(
      lambda x: scipy.ndimage.correlate(x, KERNEL, mode=mode), SIZE
    )
  mask = np.ones(SIZE)
  if name == "box":
    mask[2:6, 3:7] = 0
    operator = operators.box_inpainting(shape, size=4, corner=(2, 3))
  else:
    mask.ravel()[rng(0).permutation(64)[: int(0.7 * 64)]] = 0
    operator = operators.random_inpainting(shape)
  return operator, np.diag(mask.ravel())


@pytest.mark.parametrize(
  ("name", "per_channel"),
  [
    ("resize", False),
    ("resize", True),
    ("box", True),
    ("random", True),
    ("reflect", False),
    ("circular", True),
  ],
)
def test_posterior_mean_is_the_dense_one(name, per_channel):
  """m + C A^T (A C A^T + s^2)^-1 (y - A m): the form in measurement space."""
  operator, a = measurement(name)
  spectrum, mean, covariances = gaussian(per_channel, (*SIZE, 2))
  noise = 0.1
  y = rng(6).standard_normal((2, *operator.measurement_shape))
  # What stands where nothing was measured is never read.
  hidden = np.broadcast_to(np.asarray(operator.observed) == 0, y.shape)
  shown = np.where(hidden, 1e3, y)
  found, info = posterior_mean(
    priors.gaussian_prior(spectrum, mean),
    Observation(jnp.asarray(np.float32(shown)), operator, noise),
  )
  assert found.shape == (2, *SIZE, 2)
  assert float(info.relative_residual) <= 3e-6
  y = np.where(hidden, 0, y).reshape(2, -1, 2)
  for c, covariance in enumerate(covariances):
    m = mean[..., c].ravel()
    data = a @ covariance @ a.T + noise**2 * np.eye(len(a))
    gain = covariance @ a.T @ np.linalg.inv(data)
    normal = a.T @ a / noise**2 + np.linalg.inv(covariance)
    for n in range(2):
      shift = gain @ (y[n, :, c] - a @ m)
      error = np.linalg.norm(np.asarray(found[n, ..., c]).ravel() - m - shift)
      # A relative residual r moves the solution by at most cond r.
      bound = np.linalg.cond(normal) * 3e-6 * np.linalg.norm(shift)
      assert error <= bound + 8 * oracles.FLOAT32_FFT
      assert bound <= 0.02 * np.linalg.norm(shift)  # and that says something


# --- Mixture -----------------------------------------------------------------

IMAGE = (2, 3, 2)
DIM = 12


def mixture(separation=1.0):
  """Weights that do not sum to 1, unequal widths."""
  means = separation * rng(8).standard_normal((3, *IMAGE))
  return np.array([0.5, 2.0, 1.5]), means, np.array([0.3, 0.8, 0.5])


def brute_force(weights, means, std, matrix, y, noise):
  """Weights, means and covariances of p(x0 | y), in precision form."""
  means = means.reshape(len(means), -1)
  logs, centres, spreads = [], [], []
  for w, m, s in zip(weights / weights.sum(), means, std):
    data = s**2 * matrix @ matrix.T + noise**2 * np.eye(len(matrix))
    logs.append(
      np.log(w) + scipy.stats.multivariate_normal.logpdf(y, matrix @ m, data)
    )
    precision = np.eye(len(m)) / s**2 + matrix.T @ matrix / noise**2
    spreads.append(np.linalg.inv(precision))
    centres.append(spreads[-1] @ (m / s**2 + matrix.T @ y / noise**2))
  share = np.exp(np.array(logs) - scipy.special.logsumexp(logs))
  return share, np.array(centres), np.array(spreads)


@bits32and64
def test_mixture_denoise_is_the_sum_over_components(bits):
  parts = mixture()
  sigma = np.array([0.1, 0.3, 1.0, 3.0, 30.0])
  x = parts[1][[0, 1, 2, 0, 1]] * 0.7
  x = x + sigma[:, None, None, None] * rng(9).standard_normal(x.shape)
  expected, shares = [], []
  for point, s in zip(x, sigma):
    share, centres, _ = brute_force(*parts, np.eye(DIM), point.ravel(), s)
    expected.append((share @ centres).reshape(IMAGE))
    shares.append(share.max())
  assert min(shares) < 0.9  # the sum matters
  with jax.enable_x64(bits == 64):
    prior = priors.gaussian_mixture(*cast(bits, *parts))
    found = denoise(prior, *cast(bits, x, sigma))
  assert found.dtype == f"float{bits}"
  # Scores reach 1e2 here: shares err by that many units in the last place,
  # and the denoised image by these times the components' distance, up to 5.
  atol = {32: 1e2 * 2.0**-24 * 5, 64: 1e2 * 2.0**-53 * 5}[bits]
  np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def test_mixture_denoise_by_quadrature():
  """One pixel: integrals of prior times likelihood over a fine grid."""
  weights, std = np.array([0.2, 0.5, 0.3]), np.array([0.1, 0.4, 0.2])
  means = np.array([-0.8, 0.1, 0.9])
  grid = np.linspace(-6, 6, 200001)
  density = (weights * scipy.stats.norm.pdf(grid[:, None], means, std)).sum(1)
  x, sigma = np.array([-0.4, 0.0, 0.5, 2.0]), np.array([0.2, 0.5, 0.3, 5.0])
  joint = density * scipy.stats.norm.pdf(x[:, None], grid, sigma[:, None])
  expected = (joint * grid).sum(1) / joint.sum(1)
  with jax.enable_x64(True):
    means, x = means[:, None, None, None], x[:, None, None, None]
    prior = priors.gaussian_mixture(*cast(64, weights, means, std))
    found = denoise(prior, *cast(64, x, sigma))
  np.testing.assert_allclose(found.ravel(), expected, atol=1e-10)


def test_mixture_jacobian_is_the_posterior_covariance():
  parts, sigma = mixture(0.5), 0.6
  x = rng(10).standard_normal(IMAGE)
  share, centres, spreads = brute_force(*parts, np.eye(DIM), x.ravel(), sigma)
  mean = share @ centres
  expected = np.einsum("k,kij->ij", share, spreads) - np.outer(mean, mean)
  expected += np.einsum("k,ki,kj->ij", share, centres, centres)
  with jax.enable_x64(True):
    prior = priors.gaussian_mixture(*map(jnp.asarray, parts))
    derivative = jax.jacobian(
      lambda z: prior.denoise(z[None], jnp.array([sigma]))[0]
    )
    jacobian = jax.jit(derivative)(jnp.asarray(x))
  found = sigma**2 * np.asarray(jacobian).reshape(DIM, DIM)
  np.testing.assert_allclose(found, expected, atol=1e-12)


def mixture_posterior(*given):
  found = priors.mixture_posterior(*given)
  return [found.weights, found.means, found.covariances, found.mean]


mixture_posterior = oracles.quick_jit(mixture_posterior, static_argnums=3)


@bits32and64
@pytest.mark.parametrize(("rows", "noise"), [(1, 0.3), (5, 0.05), (15, 0.3)])
def test_mixture_posterior_is_the_dense_one(bits, rows, noise):
  parts = mixture(0.4)
  matrix = rng(11).standard_normal((rows, DIM)) / DIM**0.5
  y = matrix @ parts[1][1].ravel() + noise * rng(12).standard_normal(rows)
  expected = brute_force(*parts, matrix, y, noise)
  with jax.enable_x64(bits == 64):
    *prior, a, b = cast(bits, *parts, matrix, y)
    found = mixture_posterior(priors.gaussian_mixture(*prior), a, b, noise)
    mean = found.pop()
  # Data covariances have condition up to 2 / noise^2 = 800 or so, and misfits
  # are a few standard deviations.
  atol = {32: 8000 * 2.0**-24 / 20, 64: 8000 * 2.0**-53}[bits]
  for one, other in zip(found, expected):
    assert one.dtype == f"float{bits}"
    np.testing.assert_allclose(one, other, rtol=0, atol=atol)
  np.testing.assert_allclose(mean, expected[0] @ expected[1], atol=atol)


def check_clusters(x, weights, means, covariances):
  """Moments of draws [n, D] of a well separated mixture, each in its error."""
  nearest = np.argmin(((x[:, None] - means) ** 2).sum(-1), 1)
  for k, share in enumerate(weights):
    mine = x[nearest == k]
    error = (share * (1 - share) / len(x)) ** 0.5
    assert abs(len(mine) / len(x) - share) <= ONE * error
    root = np.linalg.cholesky(covariances[k])
    white = scipy.linalg.solve_triangular(root, (mine - means[k]).T, lower=True)
    bound = MANY * len(mine) ** -0.5
    assert np.abs(white.mean(1)).max() <= bound
    excess = white @ white.T / len(mine) - np.eye(len(white))
    assert np.abs(excess).max() <= 2**0.5 * bound


def test_mixture_sample_moments():
  weights, means, std = mixture(6.0)
  prior = priors.gaussian_mixture(*cast(32, weights, means, std))
  x = sample(prior, jax.random.key(3), (300, 40))
  assert x.shape == (300, 40, *IMAGE) and x.dtype == jnp.float32
  check_clusters(
    np.asarray(x, np.float64).reshape(-1, DIM),
    weights / weights.sum(),
    means.reshape(3, DIM),
    std[:, None, None] ** 2 * np.eye(DIM),
  )


def test_mixture_posterior_sample_moments():
  root = rng(13).standard_normal((3, 6, 6))
  means = 20 * rng(14).standard_normal((3, 6))
  covariances = root @ root.transpose(0, 2, 1) + np.eye(6)
  weights, roots = [0.2, 0.7, 0.1], np.linalg.cholesky(covariances)
  posterior = priors.MixturePosterior(*cast(32, weights, means, roots))
  x = sample(posterior, jax.random.key(4), 20000)
  assert x.shape == (20000, 6)
  check_clusters(np.asarray(x, np.float64), weights, means, covariances)


def test_posterior_mean_refuses_noise_and_sizes():
  prior = priors.gaussian_prior(priors.power_law_spectrum(8, 8))
  operator = operators.gaussian_blur((8, 8, 1), size=3, std=1.0)
  y = jnp.zeros((1, 8, 8, 1))
  for noise in (0.0, -0.1, np.nan):
    with pytest.raises(ValueError, match="noise_std must be a positive"):
      priors.posterior_mean(prior, Observation(y, operator, noise))
  other = priors.gaussian_prior(priors.power_law_spectrum(6, 8))
  with pytest.raises(ValueError, match="spectrum of shape"):
    priors.posterior_mean(other, Observation(y, operator, 0.1))


def test_mixture_posterior_keeps_small_variances():
  """Noise 1e-4: what is measured well, in float32, beside what is free."""
  parts, noise = mixture(0.4), 1e-4
  matrix = rng(11).standard_normal((5, DIM)) / DIM**0.5
  prior = priors.gaussian_mixture(*cast(32, *parts))
  a, y = cast(32, matrix, np.zeros(5))
  posterior = priors.mixture_posterior(prior, a, y, noise)
  roots = np.asarray(posterior.roots, np.float64)
  along = np.linalg.norm(np.asarray(a, np.float64) @ roots, axis=-1)  # [K, 5]
  gram = matrix @ matrix.T
  for k, std in enumerate(parts[2]):
    spread = np.linalg.inv(np.linalg.inv(std**2 * gram) + np.eye(5) / noise**2)
    np.testing.assert_allclose(along[k], np.diag(spread) ** 0.5, rtol=0.02)


FAMILIES = {
  "gaussian": lambda seed: priors.gaussian_prior(
    jnp.asarray(even_spectrum()) * seed, 0.1 * seed
  ),
  "mixture": lambda seed: priors.gaussian_mixture(
    jnp.array([1.0, 2.0]), jnp.ones((2, *SIZE, 1)) * seed, 0.1 * seed
  ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_one_trace_for_new_values(family):
  """Priors and their denoisers are pytrees; both work under vmap too."""
  make, traces = FAMILIES[family], []
  x, sigma = jnp.ones((2, *SIZE, 1)), jnp.ones(2)

  @jax.jit
  def restore(prior, denoise):
    traces.append(1)
    return prior.denoise(x, sigma), denoise(x, sigma)

  seeds = jnp.array([1.0, 2.0, 3.0])
  together = jax.jit(jax.vmap(lambda s: make(s).denoise(x, sigma)))(seeds)
  together = np.asarray(together)
  for seed, expected in zip(seeds, together):
    for found in restore(make(seed), make(seed).denoise):
      np.testing.assert_allclose(found, expected, atol=4e-6)
  assert len(traces) == 1 and np.abs(together[0] - together[1]).max() > 0.01


@pytest.mark.parametrize("extra", [{"spectrum": (3,)}, {"mean": (3,)}])
def test_sample_refuses_another_number_of_channels(extra):
  """Not three copies of one channel's noise."""
  spectrum = np.ones((*SIZE, *extra.get("spectrum", ())))
  prior = priors.gaussian_prior(spectrum, np.zeros(extra.get("mean", ())))
  with pytest.raises(ValueError, match="channels"):
    prior.sample(jax.random.key(0), (2,), channels=1)


@pytest.mark.parametrize("extra", [{"spectrum": (3,)}, {"mean": (3,)}, {}])
def test_denoise_names_images_that_are_not_the_prior_s(extra):
  """Axes of length 1 broadcast, others were JAX's several lines."""
  spectrum = np.ones((*SIZE, *extra.get("spectrum", ())))
  gaussian = priors.gaussian_prior(spectrum, np.zeros(extra.get("mean", ())))
  mixture = priors.gaussian_mixture(np.ones(1), np.ones((1, *SIZE, 3)), 1.0)
  for prior in (gaussian, mixture):
    any_number = prior is gaussian and not extra
    own = f"{SIZE[0]}, {SIZE[1]}, {'C' if any_number else 3}"
    x = jnp.zeros((2, *SIZE, 3))
    assert prior.denoise(x, jnp.ones(2)).shape == x.shape
    for wrong in (x[0], x[:, :1], *(() if any_number else (x[..., :1],))):
      with oracles.refused(ValueError, rf"x must have shape \[M, {own}\], got"):
        prior.denoise(wrong, jnp.ones(2))
    with oracles.refused(ValueError, r"one entry per image, shape \(2,\)"):
      prior.denoise(x, jnp.ones(1))
    with oracles.refused(TypeError, "sigma must be an array, got float"):
      prior.denoise(x, 1.0)


def test_mixture_is_normalised_and_keeps_its_std():
  prior = priors.gaussian_mixture(
    jnp.array([1, 3]), jnp.array([-1, 1]).reshape(2, 1, 1, 1), 1.5
  )
  np.testing.assert_allclose(prior.weights, [0.25, 0.75])
  np.testing.assert_array_equal(prior.std, [1.5, 1.5])


MEANS, TWO = np.ones((2, 2, 2, 1)), np.ones(2)
TREND = np.arange(1.0, 65.0).reshape(SIZE)


def posterior(matrix_shape, y_size, noise=1.0):
  prior = priors.gaussian_mixture(*map(jnp.float32, (TWO, MEANS, 1.0)))
  matrix, y = jnp.ones(matrix_shape), jnp.ones(y_size)
  return priors.mixture_posterior(prior, matrix, y, noise)


@pytest.mark.parametrize(
  ("call", "args", "sentence"),
  [
    (priors.gaussian_prior, [np.ones(8)], "spectrum must have shape"),
    (priors.gaussian_prior, [np.zeros(SIZE)], "must be positive and finite"),
    (priors.gaussian_prior, [-np.ones(SIZE)], "must be positive and finite"),
    (priors.gaussian_prior, [TREND * np.nan], "must be positive and finite"),
    (priors.gaussian_prior, [TREND * np.inf], "must be positive and finite"),
    (priors.gaussian_prior, [TREND], "spectrum must be even"),
    (priors.gaussian_prior, [np.ones(SIZE), np.ones(SIZE)], "mean must be a"),
    (priors.gaussian_prior, [np.ones(SIZE), np.ones((4, 8, 1))], "size"),
    (priors.gaussian_prior, [np.ones((8, 8, 3)), np.ones((8, 8, 2))], "mean"),
    (priors.gaussian_prior, [np.ones((8, 8, 3)), np.ones(2)], "mean must"),
    (priors.gaussian_prior, [np.ones(SIZE), np.nan], "mean must be finite"),
    (priors.gaussian_mixture, [TWO, TWO, 1.0], "means must have shape"),
    (priors.gaussian_mixture, [np.ones(3), MEANS, 1.0], "weights must have"),
    (priors.gaussian_mixture, [TWO, MEANS, np.ones(3)], "std must be a scal"),
    (priors.gaussian_mixture, [TWO * 0, MEANS, 1.0], "weights must be posit"),
    (priors.gaussian_mixture, [TWO * np.nan, MEANS, 1.0], "weights must be"),
    (priors.gaussian_mixture, [TWO, MEANS, 0.0], "std must be positive"),
    (priors.gaussian_mixture, [TWO, MEANS, np.inf], "std must be positive"),
    (priors.gaussian_mixture, [TWO, MEANS * np.nan, 1.0], "means must be fin"),
    (posterior, [(3, 5), 3], r"matrix must have shape \[m, 4\]"),
    (posterior, [(4,), 3], r"matrix must have shape \[m, 4\]"),
    (posterior, [(3, 4), 2], "y must have shape"),
    (posterior, [(3, 4), 3, 0.0], "noise_std must be positive"),
    (posterior, [(3, 4), 3, np.nan], "noise_std must be positive"),
  ],
)
def test_bad_input_is_one_sentence(call, args, sentence):
  with pytest.raises(ValueError, match=sentence) as caught:
    call(*args)
  assert "\n" not in str(caught.value)
