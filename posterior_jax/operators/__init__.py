"""Measurements, defined exactly as the restoration benchmarks do."""

from posterior_jax.operators.blur import blur as blur
from posterior_jax.operators.blur import gaussian_blur as gaussian_blur
from posterior_jax.operators.blur import motion_blur as motion_blur
from posterior_jax.operators.bordered import Blur as Blur
from posterior_jax.operators.check import OperatorErrors as OperatorErrors
from posterior_jax.operators.check import check_operator as check_operator
from posterior_jax.operators.decomposed import Decomposed as Decomposed
from posterior_jax.operators.dense import Dense as Dense
from posterior_jax.operators.dense import dense as dense
from posterior_jax.operators.fourier_amplitudes import (
  phase_retrieval as phase_retrieval,
)
from posterior_jax.operators.function import Function as Function
from posterior_jax.operators.function import complex_view as complex_view
from posterior_jax.operators.function import linear as linear
from posterior_jax.operators.function import real_view as real_view
from posterior_jax.operators.inpainting import Inpainting as Inpainting
from posterior_jax.operators.inpainting import box_inpainting as box_inpainting
from posterior_jax.operators.inpainting import inpainting as inpainting
from posterior_jax.operators.inpainting import (
  random_inpainting as random_inpainting,
)
from posterior_jax.operators.jpeg_file import jpeg as jpeg
from posterior_jax.operators.resize import Resize as Resize
from posterior_jax.operators.resize import super_resolution as super_resolution
from posterior_jax.operators.scene import SceneBlur as SceneBlur
from posterior_jax.operators.smooth_function import Nonlinear as Nonlinear
from posterior_jax.operators.smooth_function import nonlinear as nonlinear

__all__ = (
  "Blur",
  "Decomposed",
  "Dense",
  "Function",
  "Inpainting",
  "Nonlinear",
  "OperatorErrors",
  "Resize",
  "SceneBlur",
  "blur",
  "box_inpainting",
  "check_operator",
  "complex_view",
  "dense",
  "gaussian_blur",
  "inpainting",
  "jpeg",
  "linear",
  "motion_blur",
  "nonlinear",
  "phase_retrieval",
  "random_inpainting",
  "real_view",
  "super_resolution",
)
