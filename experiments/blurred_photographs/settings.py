"""Which photographs, and how they are blurred."""

import dataclasses

from experiments.harness.settings import Checked, setting

NOISE, KERNEL, BORDER = PARTS = "noise", "kernel", "border"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """Which photographs, and how they are blurred.

  Attributes:
    folder: of the photographs, none of which the prior may have learned from.
    only: names of files in it; empty: all.
    parts: "noise", motion and Gaussian blur of little noise; "kernel", a line
      that is turned, believed, drawn and known; "border", Gaussian blur of std
      1 and noise of 6 levels.
    height, width: of the crops, in the middle.
    noise: standard deviations of "noise", pixels in [-1, 1]; what is below
      0.003 is rounding alone.
    turn: of the kernel, in degrees.
    levels: denoiser calls an image.
    prior: see `prior_files.load`, or "gaussian".
    seed: of the noise.
  """

  folder: str
  only: tuple[str, ...]
  parts: tuple[str, ...] = setting(among=PARTS, some=True)
  height: int = setting(at_least=48)
  width: int = setting(at_least=48)
  noise: tuple[float, ...] = setting(above=0, at_most=0.1, some=True)
  turn: float = setting(above=0, at_most=25)
  levels: int = setting(at_least=20, at_most=1000)
  prior: str
  seed: int
