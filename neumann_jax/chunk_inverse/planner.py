"""Chooses the cheapest inverse whose error stays within a tolerance.

Two terms, reported apart. Truncation is proved from the gates alone
(`bounds.truncation_tail`). Rounding is tabulated: twice the worst row sum of
|T - X| measured over the adversarial key families, in
`assets/rounding.json`, written by `python -m experiments.rounding_table`.
"""

import dataclasses
import functools
import importlib.resources
import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from neumann_jax import checks
from neumann_jax.chunk_inverse import bounds
from neumann_jax.chunk_inverse.integer import QuantSpec
from neumann_jax.chunk_inverse.inverse_spec import (
  PRECISIONS,
  InverseSpec,
  check_chunk_size,
  newton_steps,
)
from neumann_jax.chunk_inverse.spec_names import format_name
from neumann_jax.chunk_inverse.xla import count_products


class Plan(NamedTuple):
  """What `plan` chose and why.

  Attributes:
    spec: the inverse to use, one for all chunks.
    products: C x C matrix products it takes, 0 for `exact`.
    truncation: proved bound on the largest row sum of |T - X| in exact
      arithmetic.
    rounding: tabulated bound on the same from rounding.
    reason: one sentence.
  """

  spec: InverseSpec
  products: int
  truncation: float
  rounding: float
  reason: str


def plan(
  chunk_size: int,
  *,
  tolerance: float,
  precision: str = "float32",
  quant: QuantSpec | None = None,
  beta_max: float = 1.0,
  log_decay: jax.Array | None = None,
) -> Plan:
  """The cheapest spec with truncation + rounding <= tolerance.

  Runs on the host, on concrete gates. Candidates are masked Newton cut to a
  band and the full ladder, without and with one refinement; where none
  suffices, the plan is `exact`, with the reason. Rounding was tabulated for
  Newton from order 1, which takes the most products one after another.

  Args:
    chunk_size: C, a power of two.
    tolerance: largest allowed row sum of |T - X|, absolute, > 0.
    precision: operand format, as in `InverseSpec`.
    quant: integer operands instead.
    beta_max: largest write strength, in (0, 2]. With an envelope scale pass
      the envelope to `inverse` when it exceeds 1.
    log_decay: [..., C] concrete log decays per token of the chunks; None means
      none.

  Returns:
    A Plan.

  Raises:
    ValueError: for an argument out of range.
    TypeError: for a tolerance or beta_max that is no number, or if `log_decay`
      is traced.

  Example:
    Without gates the whole chunk counts; where a token keeps e^-2 of the state,
    two products suffice.

    >>> import jax.numpy as jnp
    >>> whole = plan(64, tolerance=1e-3)
    >>> short = plan(64, tolerance=1e-3, log_decay=jnp.full(64, -2.0))
    >>> [(p.spec.name, p.products) for p in (whole, short)]
    [('ladder float32', 10), ('newton N1 S1 float32', 2)]
  """
  _check(chunk_size, tolerance, precision, beta_max, log_decay)
  tail = _tail(chunk_size, beta_max, log_decay)
  arithmetic = {"precision": precision, "quant": quant}
  best = None
  for spec, band in _candidates(chunk_size, arithmetic):
    rounding = rounding_bound(spec, chunk_size, beta_max)
    if rounding is None or tail[band] + rounding > tolerance:
      continue
    products = count_products(spec, chunk_size)
    if best is None or products < best.products:
      reason = (
        f"{spec.method}, exact on {band} of {chunk_size - 1} sub-diagonals, is "
        "the cheapest that meets the tolerance"
      )
      best = Plan(spec, products, tail[band], rounding, reason)
  return best or _fall_back(chunk_size, tolerance, arithmetic, beta_max)


def _fall_back(
  chunk_size: int, tolerance: float, arithmetic: dict, beta_max: float
) -> Plan:
  name = format_name(InverseSpec(**arithmetic))
  figures = [
    rounding_bound(spec, chunk_size, beta_max)
    for spec, _ in _candidates(chunk_size, arithmetic)
  ]
  known = [figure for figure in figures if figure is not None]
  if known:
    reason = (
      f"no product form in {name} meets {tolerance:g}: rounding alone is "
      f"{min(known):.1e}"
    )
  else:
    reason = f"no rounding figure for {name} at chunk size {chunk_size}"
  exact = InverseSpec(method="exact")
  rounding = rounding_bound(exact, chunk_size, beta_max)
  return Plan(
    exact, 0, 0.0, float("nan") if rounding is None else rounding, reason
  )


def _candidates(
  chunk_size: int, arithmetic: dict
) -> list[tuple[InverseSpec, int]]:
  """Specs with the number of sub-diagonals on which each is exact."""
  full = chunk_size - 1
  # First: of equally many products the ladder is taken, which has no settings.
  out = [
    (InverseSpec("ladder", refine=refine, **arithmetic), full)
    for refine in (0, 1)
  ]
  # Order and steps cost one and two products: beyond order 8 a step more is
  # always cheaper.
  for order in range(1, min(full, 8) + 1):
    most = newton_steps(chunk_size, order)
    for steps in range(most + 1):
      band = min((order + 1) * 2**steps - 1, full)
      spec = InverseSpec(
        "newton", order=order, residual_steps=steps, **arithmetic
      )
      out.append((spec, band))
  return out


def rounding_key(spec: InverseSpec) -> str:
  """Row of the rounding table that covers a spec: its name without N and S.

  Codes have the same bits whether they are held as integers or in float32.
  """
  # N and S are left out: the table holds the worst of a method.
  quant = spec.quant and dataclasses.replace(spec.quant, integer=True)
  return InverseSpec(
    spec.method, refine=spec.refine, precision=spec.precision, quant=quant
  ).name


def rounding_bound(
  spec: InverseSpec, chunk_size: int, beta_max: float
) -> float | None:
  """Tabulated rounding term, None where it was not measured or overflowed."""
  row = _table()["bounds"].get(rounding_key(spec), {}).get(str(chunk_size))
  return None if row is None else row["beta<=1" if beta_max <= 1 else "beta<=2"]


@functools.cache
def _table() -> dict:
  path = importlib.resources.files("neumann_jax") / "assets/rounding.json"
  return json.loads(path.read_text())


def _tail(
  chunk_size: int, beta_max: float, log_decay: jax.Array | None
) -> list[float]:
  """Proved truncation by band, the worst over all chunks."""
  if log_decay is None:
    log_decay = jnp.zeros(chunk_size, jnp.float32)
  worst = _worst_tail(beta_max, jnp.asarray(log_decay, jnp.float32))
  # float32 sums of C non-negative terms: C roundings at most.
  slack = 1.0 + 2 * chunk_size * bounds.UNIT_ROUNDOFF
  return [float(x) * slack for x in np.asarray(worst)]


@jax.jit
def _worst_tail(beta_max: float, log_decay: jax.Array) -> jax.Array:
  """[..., C] gates -> [C]."""
  beta = jnp.full_like(log_decay, beta_max)
  tail = bounds.truncation_tail(bounds.envelope(beta, log_decay))
  return jnp.max(tail.reshape(-1, tail.shape[-1]), axis=0)


def _check(
  chunk_size: int,
  tolerance: float,
  precision: str,
  beta_max: float,
  log_decay: jax.Array | None,
) -> None:
  check_chunk_size(chunk_size)
  checks.check_number("tolerance", tolerance)
  checks.check_number("beta_max", beta_max)
  if not tolerance > 0:
    raise ValueError(f"tolerance must be positive, got {tolerance}")
  if precision not in PRECISIONS:
    raise ValueError(
      f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}"
    )
  if not 0 < beta_max <= 2:
    raise ValueError(f"beta_max must lie in (0, 2], got {beta_max}")
  if log_decay is None:
    return
  checks.check_array("log_decay", log_decay)
  if isinstance(log_decay, jax.core.Tracer):
    raise TypeError("log_decay must be concrete: plan runs on the host")
  if log_decay.ndim < 1 or log_decay.shape[-1] != chunk_size:
    raise ValueError(
      f"log_decay must have shape [..., {chunk_size}], got {log_decay.shape}"
    )
  checks.check_log_decay(log_decay)
