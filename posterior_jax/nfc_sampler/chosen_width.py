"""The width that the settings name, of the parts in `width`."""

import jax

from posterior_jax.nfc_sampler import records, width
from posterior_jax.nfc_sampler.records import (
  Jacobian,
  Probed,
  Sigma,
  Spectrum,
)


def part_of(
  record: records.Width, spectrum: jax.Array | None
) -> width.WidthPart:
  """`Parts.width`, scaled and capped as the record says."""
  if isinstance(record, Sigma):
    return _isotropic(record)
  if isinstance(record, Jacobian):
    part: width.WidthPart = width.jacobian
    if record.guess is not None:
      part = width.guessed(part, _isotropic(record.guess))
  else:
    assert spectrum is not None  # `checks.spectrum_of` refused that
    of = width.probed if isinstance(record, Probed) else width.spectral
    part = of(spectrum)
    if inflates(record):
      part = width.inflating(part, record.inflation)
  # Last: inflation compares the misfit with the prior's own width.
  return width.scaled(part, record.factor)


def _isotropic(record: Sigma) -> width.WidthPart:
  own = width.scaled(width.isotropic, record.factor)
  return own if record.most is None else width.capped(own, record.most)


def inflates(record: records.Width) -> bool:
  """Whether a width is inflated where the misfit says so."""
  return isinstance(record, Spectrum) and record.inflation > 1
