"""How noisy a picture is, from the picture alone.

Patches of a photograph lie near a subspace; what they hold beyond it is noise,
whose variance is the common value of the smallest eigenvalues of their
covariance (Chen, Zhu & Heng 2015, "An efficient statistical method for image
noise level estimation"). A blur takes texture away and leaves noise, so that
blurred pictures are the easy ones; of sharp ones the patches are kept whose
gradients could be noise alone (Liu, Tanaka & Okutomi 2013, "Single-image noise
level estimation for blind denoising").
"""

import numpy as np
import scipy.stats

PATCH = 8
FEWEST = 600  # patches: ten for each of their 64 eigenvalues
MOST = 40_000
ROUNDS = 4  # of choosing patches by the level found, and estimating it again
# Of a patch's squared differences for noise of variance 1, the largest in a
# million: 2 for each of the differences between neighbours.
_CHANCE = scipy.stats.gamma.ppf(
  1 - 1e-6, PATCH**2 / 2, scale=8 * (PATCH - 1) / PATCH
)
UNIT = 127.5  # levels of 255, of pixels in [-1, 1]


def rounding(bits: int) -> float:
  """Standard deviation that rounding leaves, in pixels of [-1, 1]."""
  # Uniform over one level. Floating point: as for 16 bits, for no sensor
  # resolves more.
  return 2 / (2 ** min(bits, 16) - 1) / 12**0.5


def rounding_of_jpeg(steps: tuple[int, ...]) -> float:
  """What JPEG's rounding leaves at least, in pixels of [-1, 1].

  Coefficients of high frequencies are mostly dropped whole; the nine finest
  steps are of those that a photograph fills, and are rounded.

  Args:
    steps: in levels of 255, ascending; none for other files.
  """
  finest = np.asarray(steps[:9], np.float64)
  return float(np.sqrt((finest**2).mean() / 12)) / UNIT if len(finest) else 0.0


def estimate(picture: np.ndarray, observed: np.ndarray | None = None) -> float:
  """Standard deviation of white noise.

  Args:
    picture: [H, W, C] in [-1, 1].
    observed: [H, W] of 0 and 1, where the picture holds data; None: everywhere.

  Returns:
    Root mean square over the channels.

  Raises:
    ValueError: too few patches of the picture are whole.
  """
  if min(picture.shape[:2]) < PATCH:
    raise _too_few(0)
  whole = np.lib.stride_tricks.sliding_window_view
  keep = np.ones(1, bool)
  if observed is not None:
    keep = whole(np.asarray(observed) > 0, (PATCH, PATCH)).all((2, 3)).ravel()
  variances = []
  for channel in np.moveaxis(np.asarray(picture, np.float64), -1, 0):
    patches = whole(channel, (PATCH, PATCH))
    chosen = np.arange(patches.shape[0] * patches.shape[1])
    chosen = chosen[np.broadcast_to(keep, chosen.shape)]
    # Where a picture is burnt out or black its noise is clipped away, and the
    # flattest patches are there.
    within = whole(np.abs(channel) < 1, (PATCH, PATCH)).all((2, 3))
    unclipped = within.ravel()[chosen]
    if unclipped.sum() >= FEWEST:
      chosen = chosen[unclipped]
    if len(chosen) < FEWEST:
      raise _too_few(len(chosen))
    chosen = chosen[:: -(-len(chosen) // MOST)]
    row, column = np.divmod(chosen, patches.shape[1])
    variances.append(_variance(patches[row, column]))
  return float(np.sqrt(np.mean(variances)))


def _too_few(count: int) -> ValueError:
  return ValueError(
    f"noise_std must be given: only {count} patches of {PATCH} x {PATCH} "
    f"pixels are whole, fewer than {FEWEST}"
  )


def _variance(patches: np.ndarray) -> float:
  """Of the noise in patches [K, PATCH, PATCH]."""
  gradient = sum(
    (np.diff(patches, axis=axis) ** 2).sum((1, 2)) for axis in (1, 2)
  )
  found = _of_all(patches)
  for _ in range(ROUNDS):
    flat = gradient <= found * _CHANCE
    if flat.sum() < FEWEST:
      break
    found = min(found, _of_all(patches[flat]))
  return found


def _of_all(patches: np.ndarray) -> float:
  flat = patches.reshape(len(patches), -1)
  return _smallest(np.linalg.eigvalsh(np.cov(flat.T)))


def _smallest(values: np.ndarray) -> float:
  """The common value of the smallest eigenvalues, ascending [K]."""
  # The largest are dropped until mean and median agree: what is left spreads
  # evenly about one value, as the eigenvalues of white noise do.
  for count in range(len(values), 1, -1):
    left = values[:count]
    if left.mean() <= np.median(left):
      break
  return float(max(values[:count].mean(), 0))
