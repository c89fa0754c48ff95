"""The photo prior: training of a small denoiser on photographs.

Command: python -m experiments.train_prior --config.photographs=DIR
  after `python -m experiments.prior_sources DIR`, which fetches the
  photographs; without the folder, from the few installed ones.
  --config=configs/train_prior.py:large trains a network of 14.5 million
  parameters instead of 5.3, its blocks normed and its kernels moved by Muon; of
  several GPUs each has a part of a batch. It stores its weights in 8 bits
  (--config.bits), the other forms in 16.
  --config=configs/train_prior.py:debug trains a tiny network for the tests.
  --resume goes on with a run that was cut short; --config.start=large, or a
  manifest NAME.json, begins a run with the weights of another one.
  Denoising beside a shipped prior: `experiments.prior_gain`.
Time: 9 minutes on a GPU, whatever its speed: the number of steps follows, about
  28,000 on one H100; `:large` 14.5 minutes, 34,000 steps on two H200; `:debug`
  1 minute on 2 CPU cores.
Expected: photo_prior.json and photo_prior.safetensors, and report.html with
samples and their spectrum beside the photographs'. Neither shipped prior was
trained on all 676 photographs that `prior_sources` fetches now, and no run on
them is on record. `photo_prior("small")` learned from the 69 that its manifest
names (--config.minutes=8.15 on one H100): 24,875 steps; from 1/64 to 1/4 cycles
per pixel the spectrum of 128 samples lay -0.8 to 1.1 dB off at 128 pixels, -0.1
to 0.5 dB at 64. It saw other dead leaves than these: ellipses, diamonds and
rectangles in one plane, with textures cut from the photographs.
`photo_prior("large")` learned in two runs. The first, `:large` with those
leaves and 381 photographs, took 34,344 steps, 844 s with data and compilation
on two H200. The second went on from it with these leaves and the 476
photographs that the manifest names: `:large` with --config.start=large
--config.seed=1 --config.minutes=15.25 --config.optim.muon_rate=1e-3
--config.optim.rate=3.3e-4, 24,806 steps in 889 s on one H200; "large" was the
first run's weights then, which ship no more. From 1/64 to 1/4 cycles per pixel
the spectrum of 512 samples of 128 pixels lies -2.3 to -0.1 dB off, each known
to 0.3; that of 128 samples after the first run lay -1.2 to 1.5 dB off. What it
denoises: docs/benchmarks/restoration.md.
By a script around this training step, runs of 80 to 110 s on half an H200 each,
12 pictures, sigma 25 and 50: with normed blocks Muon was 0.27 and 0.33 dB ahead
of AdamW, though it saw a third fewer pixels in that time; with Muon a network
without norms was 0.08 and 0.12 dB behind one with them.
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
      "start": "random",
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
        "normed": False,
      },
      "optim": {
        "rate": 1.5e-3,
        "warmup": 2 if debug else 500,
        "constant": 0.3,
        "clip": 1.0,
        "average": 0.9995,
        "decay": 0.0,
        "b2": 0.99,
        "muon_rate": 0.0,
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
        "largest": 500.0,
        "palette": 4,
        "textured": 10.0,
        "gradient": 0.05,
        "waves": 0.16,
        "mixed": 0.15,
        "slopes": (0.5, 2.5),
        "periods": (2.5, 50.0),
        "warp": 5.0,
        "tilt": 2.0,
        "middle": 0.46,
        "near": 0.27,
        "defocus": 5.0,
      },
    }
  )
  if form == "large":
    config.network.update(
      {"widths": (64, 128, 192, 256), "blocks": (3, 4, 4, 2), "normed": True}
    )
    # In 16 bits its file would be larger than the 16 MB the package may have.
    config.update({"sizes": (128,), "leaf_images": 1024, "bits": 8})
    config.update({"minutes": 14.5, "save_every": 8000, "samples": 512})
    config.optim.update({"rate": 5e-4, "muon_rate": 1.5e-3})
    # Chosen with 381 photographs, which need less to stand in for others.
    config.batch.update({"leaf_share": 0.1, "jitter": 0.7})
  return config
