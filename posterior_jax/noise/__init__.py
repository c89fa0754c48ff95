"""Noise that is not the same everywhere: observations in which it is.

Samplers know one noise level, of every measured pixel. What has another noise
is turned into such an observation: divided by its standard deviation where that
is known (`per_pixel`), passed through a function that makes it one (`poisson`)
or through one that makes large residuals small (`huber`). The last two are
nonlinear measurements, see `operators.nonlinear`.
"""

from posterior_jax.noise.counts import poisson as poisson
from posterior_jax.noise.outliers import huber as huber
from posterior_jax.noise.weighted import Weighted as Weighted
from posterior_jax.noise.weighted import per_pixel as per_pixel
