"""The photo prior: training of a small denoiser on photographs.

Command: python -m experiments.train_prior --config.photographs=DIR
  after `python -m experiments.prior_sources DIR`, which fetches the
  photographs; without the folder, from the few installed ones.
  --config=configs/train_prior.py:large trains a network of 14.5 million
  parameters instead of 5.3, on two GPUs and more: each has a part of a batch.
  It stores its weights in 8 bits (--config.bits), the other forms in 16.
  --config=configs/train_prior.py:debug trains a tiny network for the tests.
  --resume goes on with a run that was cut short.
  Denoising beside the shipped prior: `experiments.prior_gain`.
Time: 9 minutes on a GPU, whatever its speed: the number of steps follows, about
  28,000 on one H100; `:debug` 1 minute on 2 CPU cores.
Expected: photo_prior.json and photo_prior.safetensors, and report.html with
samples and their spectrum beside the photographs'. Measured on other data than
`prior_sources` fetches now, the 69 photographs of the shipped prior (its
--config.minutes=8.15 on one H100): 24,875 steps; from 1/64 to 1/4 cycles per
pixel the samples' spectrum lay -0.8 to 1.1 dB off at 128 pixels, -0.1 to 0.5 dB
at 64. No run on all 381 photographs with these settings is on record.
`:large` as it stands is untested. What was run of it, by a script around this
training step: 28,492 steps on two H200 in 432 s, compilation and data before
them, as by --config.optim.rate=1e-3 --config.minutes=0 --config.steps=28492,
155 of the 381 photographs as WebP copies of at most 1536 pixels. Stored with
--config.bits=8, as the form does, it was 0.11 and 0.13 dB behind the shipped
prior at sigma 25 and 50 on 23 pictures of the Kodak set.
"""

import ml_collections

from configs import is_debug


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "large" grows the network, "debug" shrinks them."""
  debug = is_debug(form, __file__, ("large", "debug"))
  config = ml_collections.ConfigDict(
    {
      "seed": 0,
      "photographs": "",
      "minutes": 0.0 if debug else 9.0,
      "steps": 6 if debug else 0,
      "sizes": (16, 32) if debug else (64, 64, 64, 128),
      "pixels": 2048 if debug else 1 << 20,
      "dtype": "float32" if debug else "bfloat16",
      "bits": 16,
      "leaf_images": 2 if debug else 4096,
      "save_every": 3 if debug else 2000,
      "report_every": 2 if debug else 100,
      "samples": 4 if debug else 128,
      "sample_steps": 2 if debug else 50,
      "network": {
        "channels": 3,
        "widths": (8, 16) if debug else (48, 96, 160, 224),
        "blocks": (1, 1) if debug else (1, 2, 2, 1),
        "embedding": 16 if debug else 128,
        "sigma_data": 0.5,
        "sigma_max": 80.0,
        "sigma_min": 0.01,
      },
      "optim": {
        "rate": 1.5e-3,
        "warmup": 2 if debug else 500,
        "constant": 0.3,
        "clip": 1.0,
        "average": 0.9995,
        "decay": 0.0,
        "b2": 0.99,
      },
      "batch": {
        "leaf_share": 0.15,
        "jitter": 1.0,
        "noise_median": 0.25,
        "noise_spread": 1.1,
        "noise_uniform": 0.25,
        "noise_range": (0.01, 80.0),
      },
      "leaves": {
        "leaves": 50 if debug else 1000,
        "smallest": (1.5, 12.0),
        "largest": 60.0,
        "palette": 4,
        "plain": 0.3,
        "shading": 0.3,
        "blur": 1.0,
      },
    }
  )
  if form == "large":
    config.network.update(
      {"widths": (64, 128, 192, 256), "blocks": (3, 4, 4, 2)}
    )
    # Half the pixels a step: the more steps are worth more than quiet ones.
    # In 16 bits its file would be larger than the 16 MB the package may have.
    config.update({"pixels": 1 << 19, "leaf_images": 2048, "bits": 8})
    # At 1e-3 the loss of single steps between 6,750 and 11,350 reached 1e31 and
    # infinity; half of it has not been run.
    config.optim.update({"rate": 5e-4})
    # For the list of 381 photographs, which need less to stand in for others.
    config.batch.update({"leaf_share": 0.1, "jitter": 0.7})
  return config
