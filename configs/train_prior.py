"""The photo prior: training of a small denoiser on photographs.

Command: python -m experiments.train_prior --config.photographs=DIR
  after `python -m experiments.prior_sources DIR`, which fetches the
  photographs; without the folder, from the few installed ones.
  --config=configs/train_prior.py:large trains a network of 14.5 million
  parameters instead of 5.3, on two GPUs and more: each has a part of a batch.
  --config=configs/train_prior.py:debug trains a tiny network for the tests.
  --resume goes on with a run that was cut short.
  Denoising beside the shipped prior: `experiments.prior_gain`.
Time: 9 minutes on a GPU, whatever its speed: the number of steps follows, about
  28,000 on one H100; `:debug` 1 minute on 2 CPU cores.
Expected: photo_prior.json and photo_prior.safetensors, and report.html with
samples whose spectrum is within 2 dB of the photographs' from 1/64 to 1/4
cycles per pixel (the shipped prior, trained with --config.minutes=8.15: -0.8 to
1.1 dB at 128 pixels, -0.1 to 0.5 dB at 64). `:large` needs longer: 432 seconds
of two H200 (28,492 steps, at twice the rate) left it, stored in 8 bits, 0.11
and 0.13 dB behind the shipped prior at sigma 25 and 50 on 23 pictures of the
Kodak set.
"""

import ml_collections


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "large" grows the network, "debug" shrinks them."""
  if form not in ("", "large", "debug"):
    raise ValueError(
      f"configs/train_prior.py has the forms large and debug, not {form!r}"
    )
  debug = form == "debug"
  config = ml_collections.ConfigDict(
    {
      "seed": 0,
      "photographs": "",
      "minutes": 0.0 if debug else 9.0,
      "steps": 6 if debug else 0,
      "sizes": (16, 32) if debug else (64, 64, 64, 128),
      "pixels": 2048 if debug else 1 << 20,
      "dtype": "float32" if debug else "bfloat16",
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
    config.update({"pixels": 1 << 19, "leaf_images": 2048})
    # At 1e-3 the loss of single steps reached 1e31, and it took from step
    # 10,000 to 12,500 to recover.
    config.optim.update({"rate": 5e-4})
    # For the list of 381 photographs, which need less to stand in for others.
    config.batch.update({"leaf_share": 0.1, "jitter": 0.7})
  return config
