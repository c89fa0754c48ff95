"""Restores a picture of your own: one best image, samples, their spread.

Command: python -m experiments.restore --config.image=photo.jpg
    --config.task=motion_blur --config.kernel=k.png
  The picture is the degraded one; --config.degrade=True degrades a clean one
  first and prints PSNR and SSIM against it. A folder stands for all pictures
  in it, which were degraded alike: each gets a folder of its own in the run's,
  and with several devices they are restored side by side.
  task: super_resolution (factor), box_inpainting or random_inpainting (mask: a
  picture, white where observed; transparent pixels of the image are holes as
  well), gaussian_blur (std), motion_blur (kernel: a picture, .npy or a frozen
  one, by length short, p20, p30, p40, medium, p60, p70, p80, long or p95;
  kernel_flip turns it by 180 degrees; with kernel_degrees=20 it may be turned
  by as much and is drawn with the picture), denoising, or custom
  (operator: a Python file that defines operator(shape), which is run).
  boundary: of blurs and super-resolution; "valid" restores what lies just
  beyond the picture as well, "reflect" takes it for a mirror.
  noise_std is that of pixels in [-1, 1]: n levels of 255 are n / 127.5; left
  out it is estimated from the picture, 0 is what rounding leaves.
  prior: "" for the small shipped one, "large" for the large one, NAME.json of
  train_prior, a diffusers directory, NAME.pt or NAME.safetensors of
  guided-diffusion, or "gaussian".
  method: any of `experiments/harness/subjects/samplers.py`.
  levels: denoiser calls an image. With NFC 5 to 19 are one call of the network
  each, for large pictures and slow machines, and 20 or more up to four and a
  little better; a blur of noise below 0.015 (0.0087 of a grey picture) takes at
  most 30, or 20 to 40 with kernel_degrees, of one call. tile: 128 to 4096, a
  longer side is denoised in tiles of at most that; sample_levels: those of
  NFC's samples, each with a Jacobian product of about a call's time;
  tie="spectrum" saves it but draws too wide on smooth pictures.
  nfc="('width.factor=3.0','schedule.momentum=0.2')" changes fields of
  `NFCConfig` for the one image.
Time: 3 minutes for 256 x 256 on 2 CPU cores, in proportion to the pixels;
`:debug`, a known prior at few levels, 20 seconds.
Expected: restored.png, sample_1.png and so on, mean.png, uncertainty.png and
report.html in the run's folder; drawn/ has the images unrounded, each from when
it was drawn, so that --resume goes on with a run that was cut short.
"""

import ml_collections
from ml_collections import config_dict

from configs import is_debug


def get_config(form: str = "") -> ml_collections.ConfigDict:
  """The settings; `form` "debug" shrinks them."""
  debug = is_debug(form, __file__)
  return ml_collections.ConfigDict(
    {
      "image": "",
      "task": "",
      "kernel": "",
      "kernel_flip": False,
      "kernel_degrees": 0.0,
      "mask": "",
      "std": 3.0,
      "factor": 4,
      "operator": "",
      "boundary": "valid",
      "noise_std": config_dict.placeholder(float),
      "degrade": False,
      "method": "NFC",
      "levels": 20 if debug else 100,
      "nfc": (),
      "samples": 2 if debug else 4,
      "sample_levels": 4 if debug else 40,
      "tie": "probed",
      "prior": "gaussian" if debug else "",
      "dtype": "float32",
      "tile": 512,
      "seed": 0,
    }
  )
