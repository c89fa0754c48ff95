"""Noise levels, Fourier filters, bands and spectra by their definitions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from posterior_jax import priors, schedule
from posterior_jax.linalg import fourier
from tests import oracles

SIZES = ((8, 8), (7, 9), (8, 5), (5, 8), (6, 1), (1, 7), (1, 1))
every_size = pytest.mark.parametrize("size", SIZES)


def normal(shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape)


def reference(x, transfer):
  """Full complex FFT in float64; the imaginary part must vanish."""
  f = np.fft.fft2(x, axes=(-3, -2)) * transfer
  found = np.fft.ifft2(f, axes=(-3, -2))
  assert np.abs(found.imag).max() <= 1e-12 * max(1, np.abs(f).max())
  return found.real


def even(size, channels=None, seed=1):
  """A real transfer with T(-f) = T(f)."""
  height, width = size
  shape = size if channels is None else (*size, channels)
  a = np.exp(normal(shape, seed))
  i, j = -np.arange(height) % height, -np.arange(width) % width
  return (a + a[i][:, j]) / 2


@pytest.mark.parametrize("levels", [1, 2, 10, 50])
@pytest.mark.parametrize("rho", [0.5, 1.0, 7.0, 20.0])
@pytest.mark.parametrize("ends", [(100.0, 0.1), (80.0, 0.002), (1.0, 0.99)])
def test_karras_formula(levels, rho, ends):
  high, low = ends
  found = schedule.karras(levels, sigma_max=high, sigma_min=low, rho=rho)
  a, b = high ** (1 / rho), low ** (1 / rho)
  expected = [(a + i / levels * (b - a)) ** rho for i in range(levels)] + [0]
  # Roots are good to 2^-53, their powers to rho times that.
  np.testing.assert_allclose(found, expected, rtol=1e-14 * max(rho, 1))
  assert found.dtype == np.float64 and found.shape == (levels + 1,)
  assert found[-1] == 0 and (np.diff(found) < 0).all()
  assert found[-2] > low  # the ramp's end itself is replaced by 0
  np.testing.assert_allclose(found[0], high, rtol=1e-14 * max(rho, 1))


def test_karras_is_linear_for_rho_one_and_geometric_for_large_rho():
  linear = schedule.karras(4, sigma_max=9.0, sigma_min=1.0, rho=1.0)
  np.testing.assert_allclose(linear, [9, 7, 5, 3, 0], rtol=1e-15)
  ramp = schedule.karras(4, sigma_max=16.0, sigma_min=1.0, rho=1e5)
  # (1 + t)^rho with t = log(sigma) / rho differs from sigma by log^2 / rho.
  np.testing.assert_allclose(ramp, [16, 8, 4, 2, 0], rtol=1e-4)
  low = [(schedule.karras(100, rho=rho) < 1.0).sum() for rho in (1.0, 3.0, 7.0)]
  assert low[0] < low[1] < low[2]


def test_karras_defaults_are_the_benchmarks():
  sigmas = schedule.karras(50)
  np.testing.assert_allclose(sigmas[0], 100, rtol=1e-13)
  root = 0.98 * 0.1 ** (1 / 7) + 0.02 * 100 ** (1 / 7)
  np.testing.assert_allclose(sigmas[-2], root**7, rtol=1e-13)


@pytest.mark.parametrize(
  ("call", "sentence"),
  [
    (lambda: schedule.karras(0), "levels must be at least 1"),
    (lambda: schedule.karras(-3), "levels must be at least 1"),
    (lambda: schedule.karras(5, sigma_min=0.0), "sigma_min must lie in"),
    (lambda: schedule.karras(5, sigma_min=-1.0), "sigma_min must lie in"),
    (lambda: schedule.karras(5, sigma_min=100.0), "sigma_min must lie in"),
    (lambda: schedule.karras(5, sigma_max=0.05), "sigma_max=0.05"),
    (lambda: schedule.karras(5, sigma_max=np.nan), "sigma_max=nan"),
    (lambda: schedule.karras(5, sigma_min=np.nan), "sigma_min=nan"),
    (lambda: schedule.karras(5, sigma_max=np.inf), "sigma_max"),
    (lambda: schedule.karras(5, rho=0.0), "rho must be positive"),
    (lambda: schedule.karras(5, rho=-7.0), "rho must be positive"),
    (lambda: schedule.karras(5, rho=np.nan), "rho must be positive"),
    (lambda: schedule.karras(5, rho=np.inf), "rho must be"),
    (lambda: schedule.karras(5, rho=1e-3), "rho must be at least 0.00658 for"),
    (
      lambda: schedule.karras(5, sigma_min=1e-9, rho=0.02),
      "rho must be at least 0.0296 for",
    ),
    (
      lambda: fourier.check_spectrum(np.ones(4)),
      r"spectrum must have shape \[H, W\]",
    ),
    (lambda: fourier.check_spectrum(np.zeros((4, 4))), "must be positive"),
    (lambda: fourier.check_spectrum(np.full((4, 4), np.nan)), "finite"),
    (lambda: fourier.check_spectrum(np.full((4, 4), np.inf)), "finite"),
    (
      lambda: fourier.check_spectrum(np.arange(1.0, 26.0).reshape(5, 5)),
      "spectrum must be even",
    ),
    (
      lambda: fourier.check_spectrum(np.fft.fftshift(even((7, 9)))),
      "spectrum must be even",
    ),
  ],
)
def test_bad_input_is_one_sentence(call, sentence):
  with pytest.raises(ValueError, match=sentence) as caught:
    call()
  assert "\n" not in str(caught.value)


@every_size
@pytest.mark.parametrize(("channels", "bits"), [(None, 32), (2, 64)])
def test_apply_transfer_is_a_product_of_spectra(size, channels, bits):
  x = normal((3, *size, 2))
  transfer = even(size, channels)
  expected = reference(x, transfer if channels else transfer[..., None])
  with jax.enable_x64(bits == 64):
    dtype = {32: jnp.float32, 64: jnp.float64}[bits]
    found = fourier.apply_transfer(
      jnp.asarray(x, dtype), jnp.asarray(transfer, dtype)
    )
  assert found.dtype == dtype and found.shape == x.shape
  # An FFT of n points errs by eps log2(n) in the 2-norm, twice, n <= 64, and
  # the product may grow the norm by the largest gain.
  rtol = 12 * 2.0 ** {32: -23, 64: -52}[bits]
  error = np.linalg.norm(np.asarray(found, np.float64) - expected)
  assert error <= rtol * transfer.max() * np.linalg.norm(x)


def test_apply_transfer_of_every_image_its_own():
  """[N, H, W, C] and [B, N, H, W, 1] against one image at a time."""
  x = jnp.asarray(normal((2, 3, 5, 6, 2)), jnp.float32)
  one = jnp.asarray(even((5, 6), None), jnp.float32)
  scales = jnp.asarray(np.float32(1 + np.arange(6).reshape(2, 3)))
  found = fourier.apply_transfer(
    x, scales[..., None, None, None] * one[..., None]
  )
  shared = fourier.apply_transfer(
    x, scales[0][:, None, None, None] * jnp.stack([one, 2 * one], -1)
  )
  for i in range(2):
    for j in range(3):
      alone = fourier.apply_transfer(x[i, j], scales[i, j] * one)
      np.testing.assert_allclose(found[i, j], alone, rtol=1e-4, atol=1e-5)
      alone = fourier.apply_transfer(
        x[i, j], scales[0, j] * jnp.stack([one, 2 * one], -1)
      )
      np.testing.assert_allclose(shared[i, j], alone, rtol=1e-4, atol=1e-5)


@every_size
def test_apply_transfer_complex_is_a_convolution(size):
  """The transform of a lopsided kernel is Hermitian; definition by loops."""
  height, width = size
  x, kernel = normal((*size, 1)), normal(size, seed=2)
  expected = np.zeros(size)
  for i in range(height):
    for j in range(width):
      expected += kernel[i, j] * np.roll(x[..., 0], (i, j), (0, 1))
  with jax.enable_x64(True):
    found = fourier.apply_transfer(
      jnp.asarray(x), jnp.asarray(np.fft.fft2(kernel))
    )
  np.testing.assert_allclose(found[..., 0], expected, atol=1e-12)


def test_apply_transfer_scalar_scales():
  x = normal((2, 5, 6, 3)).astype(np.float32)
  found = fourier.apply_transfer(jnp.asarray(x), jnp.float32(0.25))
  np.testing.assert_array_equal(found, 0.25 * x)


@every_size
def test_check_spectrum_accepts_every_even_grid(size):
  fourier.check_spectrum(even(size))
  fourier.check_spectrum(jnp.asarray(np.float32(even(size, 3))))
  # Traced values are not read, their shape is.
  jax.jit(fourier.check_spectrum)(jnp.zeros(size))
  with pytest.raises(ValueError, match="spectrum must have shape"):
    jax.jit(fourier.check_spectrum)(jnp.zeros(3))


@every_size
def test_radial_frequency_is_the_distance_to_zero(size):
  height, width = size
  found = fourier.radial_frequency(height, width)
  for i in range(height):
    for j in range(width):
      fy, fx = min(i, height - i) / height, min(j, width - j) / width
      np.testing.assert_allclose(found[i, j], math.sqrt(fy**2 + fx**2))


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 12])
@pytest.mark.parametrize("size", [8, 10, 15, 24, 32])
def test_radial_bands_have_equal_width(size, count):
  """Against exact integers: band = floor(2 count radius), capped."""
  found = fourier.radial_bands(size, size, count)
  k = np.minimum(np.arange(size), size - np.arange(size))
  expected = [
    [
      min(math.isqrt(int(4 * count**2 * (i * i + j * j) // size**2)), count - 1)
      for j in k
    ]
    for i in k
  ]
  np.testing.assert_array_equal(found, expected)


@every_size
def test_radial_bands_partition_the_grid(size):
  found = fourier.radial_bands(*size, 4)
  assert found.shape == size and np.issubdtype(found.dtype, np.integer)
  assert found[0, 0] == 0 and found.min() == 0 and found.max() <= 3
  order = np.argsort(fourier.radial_frequency(*size), axis=None)
  assert (np.diff(found.ravel()[order]) >= 0).all()  # rings, inside out
  i, j = -np.arange(size[0]) % size[0], -np.arange(size[1]) % size[1]
  np.testing.assert_array_equal(found, found[i][:, j])


# --- Spectra -----------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (9, 20), (20, 9), (1, 5)])
@pytest.mark.parametrize("exponent", [0.0, 2.4])
def test_power_law_spectrum_formula(size, exponent):
  found = priors.power_law_spectrum(*size, pixel_std=0.3, exponent=exponent)
  fy, fx = (np.minimum(np.arange(n), n - np.arange(n)) / n for n in size)
  f2 = (fy[:, None] ** 2 + fx**2) * max(size) ** 2
  expected = (1 + f2) ** (-exponent / 2)
  expected *= 0.3**2 / expected.mean()
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, expected, rtol=3e-7)
  covariance = oracles.fourier_diagonal(np.asarray(found, np.float64))
  np.testing.assert_allclose(np.diag(covariance), 0.3**2, rtol=1e-6)
  fourier.check_spectrum(found)


def law(radius, exponent):
  return 0.01 * (np.maximum(radius, 1e-3) / 0.1) ** -exponent


@pytest.mark.parametrize(
  ("exponent", "part"), [(0.0, "all"), (2.4, "disc"), (2.4, "corners")]
)
def test_estimate_spectrum_recovers_a_known_one(exponent, part):
  """From draws on tori of two sizes, on a third grid.

  A ring of step q at k cycles per image holds 2 pi k^2 log q bins. Half of
  them are independent, and a Hann window leaves 1 / 3.8 of those. It spreads
  power with variance 1/3 bin^2 per axis, a bias of exponent^2 / (6 k^2), with
  k counted along the shortest side. A fifth of all bins lies in the corners.
  """
  images, channels = [], 24
  for seed, size in enumerate([(320, 256), (256, 300)]):
    gain = np.sqrt(law(fourier.radial_frequency(*size), exponent))
    f = (
      np.fft.fft2(
        np.random.default_rng(seed).standard_normal((channels, *size))
      )
      * gain
    )
    images.append(np.moveaxis(np.fft.ifft2(f).real, 0, -1))
  found = priors.estimate_spectrum(images, 48, 64)
  radius = fourier.radial_frequency(48, 64)
  assert found.shape == radius.shape and found.dtype == np.float64
  low, high = {"all": (0, 1), "disc": (0, 0.45), "corners": (0.45, 1)}[part]
  seen = (radius > max(low, 1 / 32)) & (radius < high)
  k = 256 * radius[seen]
  draws = 2 * channels * 2 * np.pi * k**2 * np.log(1.22) / 2 / 3.8
  # Half a percent for the mean over a ring of a curved law, and three for the
  # last half ring, which has no next one.
  allowed = 5.5 * draws**-0.5 + exponent**2 / (6 * k**2) + 0.005
  allowed += 0.03 * (radius[seen] > 0.6)
  error = np.abs(found[seen] / law(radius[seen], exponent) - 1)
  assert (error <= allowed).all(), error.max()
  assert np.median(allowed) < 0.05
  if part == "disc":
    # The mean: the law at half a cycle per image, along a slope fitted to
    # eight rings; the lowest, at two cycles, is a quarter too high.
    assert abs(np.log(found[0, 0] / law(0.5 / 64, exponent))) <= 0.5
  priors.gaussian_prior(found)  # positive and even


def test_estimate_spectrum_averages_power_over_images_and_channels():
  images = [
    np.random.default_rng(seed).standard_normal((256, 260, 2))
    for seed in (1, 2)
  ]
  base = priors.estimate_spectrum(images, 16, 16)
  shifted = [3 * images[0] + 0.5, 3 * images[1] - 0.2]  # means do not matter
  found = priors.estimate_spectrum(shifted, 16, 16)
  np.testing.assert_allclose(found, 9 * base, rtol=1e-9)
  mixed = [np.concatenate([im, 2 * im], -1) for im in images]
  found = priors.estimate_spectrum(mixed, 16, 16)
  np.testing.assert_allclose(found, 2.5 * base, rtol=1e-9)


PHOTO = np.random.default_rng(0).uniform(-1, 1, (256, 256, 3))


@pytest.mark.parametrize(
  ("images", "sentence"),
  [
    ([], "at least one photograph"),
    ([PHOTO[1:]], "h and w at least 256"),
    ([PHOTO[:, 1:]], "h and w at least 256"),
    ([PHOTO[..., 0]], r"shape \[h, w, C\]"),
    ([PHOTO * np.nan], "image must be finite"),
    ([PHOTO * 0], "image"),  # its spectrum would be zero
  ],
)
def test_estimate_spectrum_refuses_in_one_sentence(images, sentence):
  with pytest.raises(ValueError, match=sentence) as caught:
    priors.estimate_spectrum(images, 8, 8)
  assert "\n" not in str(caught.value)
