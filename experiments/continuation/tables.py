"""A table for every hypothesis: what the report shows of the rows."""

import pandas as pd

from experiments.continuation.phase import CONTROL, RESTARTS
from experiments.continuation.settings import (
  APART,
  FEW,
  MIXTURES,
  NOISY,
  PHASES,
  WRONG,
  Settings,
)
from experiments.harness import paired

Named = tuple[str, str, pd.DataFrame, str]  # name, title, table, measured on


def closed_form(settings: Settings, found: pd.DataFrame) -> list[Named]:
  """By hypothesis: PSNR by kernel, variant and levels."""
  tables = []
  for hypothesis in (FEW, WRONG, NOISY, APART):
    own = found[found.hypothesis == hypothesis]
    if len(own):
      table = own.pivot_table(
        "psnr", ["kernel", "variant"], "levels", sort=False
      )
      table.columns = [f"{levels} levels" for levels in table.columns]
      about = (
        f"Gaussian prior, {settings.size} x {settings.size}, circular blur, "
        "the minimiser of every level; closed form."
      )
      title = f"{hypothesis}: expected PSNR [dB]"
      tables.append((hypothesis, title, table, about))
  return tables


def mixture(settings: Settings, found: pd.DataFrame) -> Named:
  """Errors of the shares of modes, by measurements and levels."""
  table = found.pivot_table(
    "error", ["measured", "variant"], "levels", aggfunc="median", sort=False
  )
  table.columns = [f"{levels} levels" for levels in table.columns]
  about = (
    f"{settings.mixtures} mixtures of 25 modes in 8 dimensions each, "
    f"{settings.particles} particles."
  )
  title = "Modes: total variation of their shares, median"
  return MIXTURES, title, table, about


def photograph(settings: Settings, found: pd.DataFrame) -> list[Named]:
  """By hypothesis: PSNR of the photographs, by variant and kernel."""
  tables = []
  for hypothesis, own in found.groupby("hypothesis", sort=False):
    table = own.pivot_table("psnr", "variant", "kernel", sort=False)
    about = f"{settings.pictures} photographs, {settings.crop} pixels a side."
    title = f"{hypothesis}, photographs: PSNR [dB]"
    tables.append((f"{hypothesis}_photographs", title, table, about))
  return tables


def phase(settings: Settings, found: pd.DataFrame) -> Named:
  """By levels and variant: PSNR, and how far it is from the control's."""
  lines = []
  for levels, own in found.groupby("levels", sort=False):
    wide = own.pivot_table("psnr", "picture", "variant", sort=False)
    misfit = own.groupby("variant").misfit.mean()
    for variant in wide.columns:
      gap = wide[variant] - wide[CONTROL]
      mean, low, high = paired.interval(gap.to_numpy())
      lines.append(
        {
          "levels": levels,
          "variant": variant,
          "PSNR": wide[variant].mean(),
          "less the control": mean,
          "from": low,
          "to": high,
          "misfit": misfit[variant],
        }
      )
  table = pd.DataFrame(lines).set_index(["levels", "variant"])
  about = (
    f"{settings.pictures} photographs, {settings.crop} pixels a side, best of "
    f"{RESTARTS} runs by their misfit."
  )
  return PHASES, f"{PHASES}: PSNR [dB]", table, about
