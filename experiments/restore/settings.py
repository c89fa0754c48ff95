"""What is restored, and how: the settings, checked against each other."""

import dataclasses

from experiments.harness.settings import DTYPES, Checked, setting
from experiments.harness.subjects import samplers
from experiments.restore.measurement.degradation import (
  BLURRED,
  CUSTOM,
  KINDS,
  MASKED,
)
from experiments.restore.picture_files.picture_file import MOST_SIDE
from posterior_jax.operators import frozen

OVERLAP = 64  # pixels that tiles of a large picture share
# Levels of NFC's one image: below FEWEST those of `NFCConfig.fast`, for solves
# that go on over the levels, and kernels that are drawn with it, need more.
FEWEST, FEWEST_FAST = 20, 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Checked):
  """What is restored, and how.

  Attributes:
    image: file of the picture, or a folder of some that were degraded alike.
    task: how it was degraded.
    kernel: of motion blur, see `kernel_file.read`.
    kernel_flip: whether to turn the kernel by 180 degrees: blurs are
      correlations here, and many kernels are meant to be convolved.
    kernel_degrees: how far the kernel may be turned to either side; above 0 it
      is drawn with the picture (`posterior_jax.uncertain`).
    mask: of inpainting, see `mask.mask_of`.
    std: of Gaussian blur, in pixels.
    factor: of super-resolution.
    operator: file of a custom operator, see `degradation.load_operator`.
    boundary: of blur and super-resolution: "valid", the scene goes on beyond
      the picture, as it does for a camera, or "reflect", it is mirrored.
    noise_std: of the measurement, pixels in [-1, 1]; n levels of 255 are
      n / 127.5. None: estimated from the picture, 0.05 for a clean one; 0: what
      rounding to the file's levels leaves.
    degrade: whether the picture is clean, and to be degraded first.
    method: of `samplers.METHODS`, in its tuned setting.
    levels: denoiser calls that an image may take. With NFC up to three VJPs
      come on top of each, more where there is little noise; 5 to 19 are
      without, by `NFCConfig.fast`. For a blur of little noise NFC takes at most
      30, and 20 to 40 with kernel_degrees, without VJPs and by numbers of their
      own, at 5 to 19 as well (`image_settings`).
    nfc: changes to the settings of NFC's one image, "part.field=value" each,
      such as "width.factor=3.0" (`NFCConfig`).
    samples: posterior samples, with NFC maybe none; its by its calibrated
      setting.
    sample_levels: denoiser calls of each of NFC's samples.
    tie: width of NFC's samples: "spectrum", that of photographs, or "probed",
      that put right by one product a level with the denoiser's Jacobian.
    prior: see `prior_files.load`; or "gaussian".
    dtype: of a network's arithmetic.
    tile: a picture with a longer side is denoised in tiles of so many pixels.
    seed: of the samples, and of the noise of a degradation.
  """

  image: str
  task: str = setting(among=KINDS)
  kernel: str
  kernel_flip: bool
  kernel_degrees: float = setting(at_least=0, at_most=90)
  mask: str
  std: float = setting(at_least=0.1, at_most=50)
  factor: int = setting(at_least=2, at_most=16)
  operator: str
  boundary: str = setting(among=("valid", "reflect"))
  noise_std: float | None
  degrade: bool
  method: str = setting(among=samplers.METHODS)
  levels: int = setting(at_least=1, at_most=10_000)
  nfc: tuple[str, ...]
  samples: int = setting(at_least=0, at_most=64)
  sample_levels: int = setting(at_least=1, at_most=10_000)
  tie: str = setting(among=("spectrum", "probed"))
  prior: str
  dtype: str = setting(among=DTYPES)
  tile: int = setting(at_least=2 * OVERLAP, at_most=MOST_SIDE)
  seed: int

  def __post_init__(self) -> None:
    if not self.image:
      raise ValueError("image must name a picture, as --config.image=FILE")
    super().__post_init__()
    if self.noise_std is not None and not 0 <= self.noise_std <= 2:
      raise ValueError(f"noise_std must lie in [0, 2], got {self.noise_std}")
    least = FEWEST if self.kernel_degrees else FEWEST_FAST
    if self.method == "NFC" and self.levels < least:
      drawn = " and kernel_degrees" if self.kernel_degrees else ""
      raise ValueError(
        f"levels must lie in [{least}, 10000] with NFC{drawn}, got "
        f"{self.levels}"
      )
    if self.nfc and self.method != "NFC":
      raise ValueError(f"nfc must be left out: {self.method} has no such parts")
    samplers.assigned(self.nfc)  # refused before anything is read
    if self.method != "NFC" and not self.samples:
      raise ValueError(f"samples must lie in [1, 64] with {self.method}, got 0")
    for name, tasks in (
      ("kernel", BLURRED),
      ("operator", (CUSTOM,)),
      ("mask", MASKED),
    ):
      needed = self.task in tasks and name != "mask"  # its image may have holes
      if needed and not getattr(self, name):
        names = f", or be one of {', '.join(frozen.ALL_PATHS)}"
        known = names if name == "kernel" else ""
        raise ValueError(f"{name} must name a file for {self.task}{known}")
      if self.task not in tasks and getattr(self, name):
        raise ValueError(f"{name} must be left out: {self.task} reads none")
    if self.kernel_degrees and self.task not in BLURRED:
      raise ValueError(f"kernel_degrees must be 0: {self.task} reads no kernel")
