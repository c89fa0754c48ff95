"""Linear measurements, defined exactly as the restoration benchmarks do."""

from posterior_jax.operators.blur import Blur as Blur
from posterior_jax.operators.blur import blur as blur
from posterior_jax.operators.blur import gaussian_blur as gaussian_blur
from posterior_jax.operators.blur import motion_blur as motion_blur
from posterior_jax.operators.dense import Dense as Dense
from posterior_jax.operators.dense import dense as dense
from posterior_jax.operators.inpainting import Inpainting as Inpainting
from posterior_jax.operators.inpainting import box_inpainting as box_inpainting
from posterior_jax.operators.inpainting import inpainting as inpainting
from posterior_jax.operators.inpainting import (
  random_inpainting as random_inpainting,
)
from posterior_jax.operators.resize import Resize as Resize
from posterior_jax.operators.resize import super_resolution as super_resolution

__all__ = (
  "Blur",
  "Dense",
  "Inpainting",
  "Resize",
  "blur",
  "box_inpainting",
  "dense",
  "gaussian_blur",
  "inpainting",
  "motion_blur",
  "random_inpainting",
  "super_resolution",
)
