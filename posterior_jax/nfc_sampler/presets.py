"""Six named settings of noise-frequency continuation."""

from typing import Any, Self

from posterior_jax import fields
from posterior_jax.nfc_sampler.records import (
  Denoise,
  Exact,
  Jacobian,
  Langevin,
  Mean,
  Ode,
  Probed,
  Sigma,
)
from posterior_jax.nfc_sampler.schedule_settings import Schedule
from posterior_jax.nfc_sampler.weights import Band, Fusion


class Presets:
  """The named settings of `NFCConfig`, which inherits them."""

  levels: int  # its field

  def replace(self, **changes: Any) -> Self:
    """The settings with changes; a mapping changes fields of a part.

    Args:
      **changes: fields; for a part a record, or a mapping of its fields.

    Raises:
      ValueError: for a field that a part does not have.

    Example:
      >>> import posterior_jax as pj
      >>> config = pj.NFCConfig.paper().replace(inner={"steps": 50}, levels=9)
      >>> config.levels, config.inner.steps, config.inner.decay
      (9, 50, 0.01)
    """
    return fields.changed(self, changes)

  @classmethod
  def paper(cls, **changes: Any) -> Self:
    """As published (arXiv 2602.00176), its open choices as in DAPS.

    200 levels of five Euler steps (1000 network evaluations), 200 Langevin
    updates on the un-halved misfit with tau = 0.01, cutoff 0.4 to 1 by step,
    blend 0.35 to 0, one Haar level with w_L = 1, w_H = 0.2, unlocked 0.05 to
    1. tau, the step size and its decay are DAPS's: the paper states none.

    Args:
      **changes: as of `replace`.

    Example:
      >>> import posterior_jax as pj
      >>> config = pj.NFCConfig.paper(levels=50)
      >>> config.levels, config.inner.steps, config.band.blend_start
      (50, 200, 0.35)
    """
    # The defaults of what is not named here are the paper's.
    published = cls().replace(
      predictor=Ode("euler", steps=5),
      width=Sigma(),
      inner=Langevin(steps=200, step_size=5e-5, decay=0.01),
      band=Band(),
      fusion=Fusion(),
      inner_noise_std=0.01,
      halved_misfit=False,
    )
    return published.replace(**changes)

  @classmethod
  def restoration(cls, **changes: Any) -> Self:
    """For a single best image, with little of a sample's noise, from one run.

    Each level takes the mean of its target instead of a draw, under twice the
    width of the denoiser's own Jacobian, and the last 60 % of the levels stay
    at noise 0.1, where the predicted images are averaged. The wider tie lets
    more of the measurement in, the denoiser takes out the noise that it brings.
    Both were chosen for PSNR on photographs, the numbers by
    `experiments.tune_samplers`, tie and averaging by hand on the same pictures.
    A Gaussian prior's width is right as it is: on those of
    `experiments.calibration` the result is off by up to 0.13 posterior standard
    deviations. A factor of 1 with averaged="refined" tends to the mean itself
    as passes and max_iterations grow.

    Three iterations per level, so at most three VJPs per denoiser call; 20 with
    fewer than 20 levels, which make up for less of what is left out. No VJPs:
    width=Spectrum(2.0), by the prior's spectrum, which knows nothing of edges.

    Args:
      **changes: as of `replace`.

    Example:
      >>> import posterior_jax as pj
      >>> config = pj.NFCConfig.restoration()
      >>> config.width.factor, config.held_levels, config.stop
      (2.0, 120, Stop(tolerance=0.01, max_iterations=3))
    """
    best = cls().replace(
      schedule=Schedule(held=0.6, averaged="predicted"),
      width=Jacobian(factor=2.0),
      inner=Mean(),
    )
    return best.replace(**changes)

  @classmethod
  def fast(cls, **changes: Any) -> Self:
    """For one restored image from 5 to 20 denoiser calls and no VJP.

    The run starts from what the measurement shows and adds no noise between
    levels, which few of them could not take out again: plug-and-play
    restoration (DPIR, arXiv 2008.13751) from the parts of this sampler. Noise
    falls from 0.845 to 0.0493 under 4.35 times the width sigma^2, with a
    momentum of 0.5; a level takes out the less, the more of the measurement the
    last one lost; the predictions of the last fifth are averaged. Dropped
    pixels are filled by the prior's spectrum first, which the run needs for
    this. A single level is held, a denoising after the measurement; with two to
    four an image may come out worse than it went in. The run knows no spread:
    draw samples by `calibrated`.

    The numbers are one search for all tasks at 5 and at 20 calls, made once
    (`experiments/few_calls/fast_points.csv`), with `predictor={"turned":
    True}`: `photo_prior`, which has learned pictures any way up, gains 0.02 to
    0.1 dB by it; it is off here, since a prior of faces or scans loses several.
    The search's discrepancy, 0.5, loses up to 8 dB on a single picture under
    motion kernels shorter than it saw; 0.25 costs up to 0.5 there and gains 0.3
    to 0.5 on random pixels. A blur of much less noise than 0.05 takes
    `predictor={"discrepancy": 0.0}`: 0.25 loses up to 1.1 dB at 0.01
    (docs/benchmarks/restoration.md, "What each part of fast() is worth").

    DPIR tuned for every task and number of calls, and not turned, is 0.05 dB
    better to 0.13 worse on Gaussian blur and the medium motion kernel, and 0.02
    better to 5.7 worse elsewhere. With both turned and tuned for every task at
    20 calls (`experiments.equal_tuning`) it is 0.08 dB better on the short
    motion kernel, 0.02 on the long one, and level to 2.5 worse elsewhere.

    Args:
      **changes: as of `replace`.

    Example:
      >>> import posterior_jax as pj
      >>> config = pj.NFCConfig.fast(levels=5)
      >>> config.levels, config.held_levels, config.schedule.renewal
      (5, 1, 0.0)
    """
    few = cls().replace(
      levels=10,
      schedule=Schedule(
        sigma_max=0.845,
        sigma_min=0.0493,
        held=0.2,
        averaged="predicted",
        start="measurement",
        renewal=0.0,
        momentum=0.5,
      ),
      predictor=Denoise(discrepancy=0.25),
      width=Sigma(factor=4.35),
      inner=Mean(),
    )
    return few.replace(**changes)

  @classmethod
  def perceptual(cls, **changes: Any) -> Self:
    """For one sharp image from few calls: low LPIPS rather than high PSNR.

    The run starts from what the measurement shows under noise 2. The noise of
    the next level is filled in (`Schedule.noise`), so that what the measurement
    brings in is a part of it, and where the measurement shows nothing 36 % of
    its variance is what the denoiser has just taken out: details stay from
    level to level, as in DDNM+ (arXiv 2212.00490), under any linear operator.
    The result is the prediction of the last level. One call for each level, and
    two linear solves.

    Tuned alike (`experiments.equal_tuning`), at 20 evaluations its LPIPS is
    lower than that of any baseline on longer motion blurs and in a box, and
    level with DPIR's on a short one and DDNM+'s on Gaussian blur and
    super-resolution, at 0.7 to 1.7 dB less PSNR than `fast`: by numbers per
    task, which lie far apart (`tuned` gives them). Those here are one for all
    tasks, on the tuning pictures behind the task's own best by 0.01 of LPIPS on
    motion blur, 0.08 on super-resolution and 0.12 on Gaussian blur. They cost
    about 0.2 on random pixels: renewal=1.0, sigma_max=0.5, factor=2.0 there.

    With schedule={"passes": 2} and half the levels the result is a mean of two
    predictions: up to 0.2 dB nearer at 20 evaluations, by more passes 0.7 at
    1000, and in LPIPS better or worse by the task.

    Args:
      **changes: as of `replace`.

    Example:
      >>> import posterior_jax as pj
      >>> config = pj.NFCConfig.perceptual()
      >>> config.schedule.noise, config.levels, config.held_levels
      ('filled', 20, 1)
    """
    sharp = cls().replace(
      levels=20,
      schedule=Schedule(
        sigma_max=2.0,
        sigma_min=0.03,
        rho=3.0,
        held=1e-4,  # one level, of up to 10,000
        averaged="predicted",
        start="measurement",
        noise="filled",
        renewal=0.8,
      ),
      width=Sigma(factor=1.0, most=0.3),
      inner=Mean(tolerance=1e-3, max_iterations=100),
    )
    return sharp.replace(**changes)

  @classmethod
  def guided(cls, **changes: Any) -> Self:
    """For one sharp image, a posterior sample, from 50 levels and more.

    The reverse process given the measurement: a level moves its prediction to
    E[x0 | x, y] under the denoiser's own Jacobian (MMPS, arXiv 2405.13712) and
    keeps the state's noise beside it. The solve is one product along the
    direction of PiGDM, which a guess of the width, sigma^2 up to 0.25^2,
    leads to. So a level takes one call and one VJP. The width is twice the
    Jacobian's, as if the measurement had 0.7 of its noise; with factor=1.0 the
    run tends to draws of the posterior itself under a Gaussian prior, as levels
    grow. The result is the prediction of the last level.

    Tuned for every task like all others (`experiments.equal_tuning`), at 100
    evaluations its LPIPS is below that of all baselines on random pixels, 0.087
    against 0.098, and in a box, and in the mean on super-resolution and
    Gaussian blur, where the intervals of the lead reach 0; at 1000 on
    super-resolution and Gaussian blur, by 0.016 and 0.025. The best numbers lie
    far apart, as renewal=0.75 on super-resolution and from 2.25 on random
    pixels and motion blur: `tuned` gives them; those here are no search's.

    Passes (schedule={"passes": 4}), each of fewer levels, gain 0.1 to 0.6 dB at
    100 evaluations and 0.4 to 1.5 at 1000; in LPIPS at 100 they gain 0.03 to
    0.06 on motion blur and lose 0.03 on Gaussian blur.

    Args:
      **changes: as of `replace`.

    Example:
      >>> import posterior_jax as pj
      >>> config = pj.NFCConfig.guided()
      >>> config.schedule.noise, config.levels, config.stop.max_iterations
      ('kept', 50, 1)
    """
    sample = cls().replace(
      levels=50,
      schedule=Schedule(
        sigma_max=4.0,
        sigma_min=0.02,
        rho=5.0,
        held=1e-4,  # one level, of up to 10,000
        averaged="predicted",
        start="measurement",
        noise="kept",
      ),
      width=Jacobian(factor=2.0, guess=Sigma(most=0.25)),
      inner=Mean(max_iterations=1),
    )
    return sample.replace(**changes)

  @classmethod
  def calibrated(cls, **changes: Any) -> Self:
    """For posterior samples: right on a Gaussian prior at any level count.

    One denoiser call and one VJP per level; the denoiser's mean is the centre
    and the prior's own conditional variance the width of the tie, so that the
    inner draw is one from p(x0 | x_sigma, y) and every level's state one from
    p(x_sigma | y). The spectrum gives the width's shape, the VJP its size in
    every half octave, so a spectrum that is off by a factor does no harm;
    width=Spectrum(inflation=1.5) trusts it and saves the VJP. There is no
    band: any blend > 0 tempers the likelihood and biases the levels at which
    it acts. Nor is there fusion.

    A network is not exact: on photographs it is overconfident along the way.
    The inflation of 1.5 lets a misfit that is too large to be chance widen an
    image's width by up to a half. On measurements of the prior itself that
    moves the variance by about 1 %; with 1 every level is exact. Noise ends at
    0.02 with these two widths and at 0.1 with others, unless sigma_min is set.
    width=Jacobian() takes the width from the denoiser and needs no spectrum: at
    most 26 VJPs per level.

    Args:
      **changes: as of `replace`.

    Example:
      >>> import posterior_jax as pj
      >>> config = pj.NFCConfig.calibrated(levels=30)
      >>> config.width
      Probed(factor=1.0, inflation=1.5)
    """
    samples = cls().replace(
      schedule=Schedule(sigma_min=None),
      width=Probed(inflation=1.5),
      inner=Exact(),
    )
    return samples.replace(**changes)
