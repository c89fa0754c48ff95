"""The everyday command: its input, its run, its refusals."""

import json
import re

import jax
import numpy as np
import PIL.Image
import pytest

import posterior_jax as pj
from configs import restore as config
from experiments.data import photographs
from experiments.harness import command_line, prior_files, runner
from experiments.restore import job, report, study
from experiments.restore.drawing import stepwise as drawing
from experiments.restore.measurement.observed import Given, observe
from experiments.restore.picture_files import kernel_file
from experiments.restore.picture_files.mask import read_mask
from experiments.restore.picture_files.picture import read_picture
from tests.oracles import refused

CONFIG = command_line.CONFIGS / "restore.py"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Pictures, masks and kernels, among them bad ones."""
  folder = tmp_path_factory.mktemp("given")
  cat = photographs.load("chelsea", 64)
  (folder / "odd.png").write_bytes(photographs.as_png(cat[:40, :45]))
  (folder / "grey.png").write_bytes(photographs.as_png(cat[:40, :45, :1]))
  (folder / "small.png").write_bytes(photographs.as_png(cat[:20, :45]))
  clear = PIL.Image.open(folder / "odd.png").convert("RGBA")
  clear.putpixel((0, 0), (*clear.getpixel((0, 0))[:3], 128))
  clear.save(folder / "clear.png")
  mask = np.full((40, 45), 255, np.uint8)
  mask[10:20, 5:30] = 0
  PIL.Image.fromarray(mask).save(folder / "mask.png")
  PIL.Image.fromarray(mask[:39]).save(folder / "mask_39.png")
  PIL.Image.fromarray(0 * mask).save(folder / "mask_black.png")
  PIL.Image.fromarray(mask.astype(np.uint16)).save(folder / "deep.png")
  for name, kernel in (
    ("line", np.ones((3, 7))),
    ("even", np.ones((4, 4))),
    ("negative", -np.ones((3, 3))),
    ("zero", np.zeros((3, 3))),
    ("wide", np.ones((81, 81))),
    ("words", np.array([["a"]])),
  ):
    np.save(folder / f"{name}.npy", kernel)
  (folder / "text.png").write_text("no picture")
  return folder


def _run(workdir, form, **fields):
  argv = ["restore", f"--config={CONFIG}{form}", f"--workdir={workdir}"]
  argv += [f"--config.{name}={value}" for name, value in fields.items()]
  runner.main("restore", job.Settings, study.restore, argv, prepare=job.prepare)
  (line,) = (workdir / "restore.jsonl").read_text().splitlines()
  return json.loads(line)


def test_run_leaves_pictures_row_and_report(files, tmp_path, capsys):
  """A clean picture of odd sides is blurred and restored better than it was."""
  row = _run(
    tmp_path / "run",
    ":debug",
    image=files / "odd.png",
    task="motion_blur",
    kernel=files / "line.npy",
    boundary="reflect",
    degrade=True,
  )
  names = {"restored", "sample_1", "sample_2", "mean", "uncertainty"}
  assert {f.stem for f in (tmp_path / "run").glob("*.png")} == names
  for name in names - {"uncertainty"}:
    with PIL.Image.open(tmp_path / "run" / f"{name}.png") as found:
      assert (found.size, found.mode) == ((45, 40), "RGB")
  assert row["calls"] == 20 + 4 * 2
  assert 4 * 2 + 20 < row["products"] <= 4 * 2 + 20 * 3  # a VJP; iterations
  assert row["psnr"] > row["psnr_given"] + 0.5
  assert 0.8 < row["residual_sample"] < 1.25
  said = capsys.readouterr().out
  assert f"restored: PSNR {row['psnr']:.2f} dB" in said
  text = (tmp_path / "run" / "report.html").read_text()
  assert "<script" not in text and text.count("<figure>") == 2


def test_grey_stays_grey_and_grows_fourfold(files, tmp_path):
  row = _run(
    tmp_path / "run",
    ":debug",
    image=files / "grey.png",
    task="super_resolution",
    noise_std=0.05,
    samples=0,
  )
  assert row["psnr"] is None and row["spread"] is None
  assert (row["height"], row["width"], row["channels"]) == (160, 180, 1)
  # Far below 1: under this Gaussian prior, whose width is right as it is, the
  # doubled one of restoration() fits noise; at its own width it was above 0.3.
  assert 0.1 < row["residual"] < 1.2
  with PIL.Image.open(tmp_path / "run" / "restored.png") as found:
    assert (found.size, found.mode) == ((180, 160), "L")
  assert not (tmp_path / "run" / "uncertainty.png").exists()
  assert "samples by its" not in (tmp_path / "run" / "report.html").read_text()


def test_a_cut_is_told(files, tmp_path, capsys):
  """Of 45 x 40 pixels, which four times smaller ones do not make."""
  row = _run(
    tmp_path / "run",
    ":debug",
    image=files / "odd.png",
    task="super_resolution",
    boundary="reflect",
    degrade=True,
    method="DDNM+",
    levels=1,
    samples=1,
  )
  assert (row["height"], row["width"]) == (40, 44)
  said = capsys.readouterr().out
  assert "the picture is cut to 44 x 40, divisible by 4" in said


@pytest.mark.slow
def test_a_baseline_and_its_mean(files, tmp_path):
  row = _run(
    tmp_path / "run",
    ":debug",
    image=files / "odd.png",
    task="denoising",
    degrade=True,
    method="DDNM+",
    levels=30,
    noise_std=0.4,
  )
  assert row["calls"] == 60 and row["psnr"] == row["psnr_mean"]
  assert row["psnr"] > row["psnr_given"]
  text = (tmp_path / "run" / "report.html").read_text()
  assert "DDNM+ is not calibrated" in text


def test_three_channels_have_the_likelihood_of_grey(files):
  """Of grey images the misfit over the noise, against numpy in float64."""
  picture = read_picture(str(files / "grey.png")).pixels
  given = observe(
    picture,
    pj.operators.super_resolution,
    enlarge=4,
    noise_std=0.1,
    degrade=False,
    seed=0,
  )
  assert given.grey and given.truth is None
  x = np.random.default_rng(0).normal(0, 0.3, (1, 160, 180, 1))
  x = x.astype(np.float32)

  def misfit(observation, x):
    found = np.asarray(observation.operator.forward(x), np.float64)
    error = found - np.asarray(observation.y, np.float64)
    return (error**2).sum() / observation.noise_std**2

  grey = misfit(given.observation, x)
  colour = misfit(given.coloured(), np.repeat(x, 3, -1))
  assert abs(colour / grey - 1) < 1e-5


def test_steps_give_the_samples_of_run(files):
  found = config.get_config("debug")
  found.update(image=str(files / "odd.png"), task="denoising", samples=1)
  found.noise_std = 0.05
  prepared = job.prepare(command_line.to_settings(job.Settings, found))
  ticks = []
  key = jax.random.key(3)
  image, *spent, degrees = drawing.draw(
    prepared, prepared.drawn, "sample", ticks.append
  )(key)
  expected, _ = pj.run(
    prepared.drawn, prepared.denoise, prepared.given.observation, key
  )
  # The same program but for the loop around it: rounding alone.
  np.testing.assert_allclose(image, expected[0, 0], atol=1e-4)
  assert spent == [4, 4]  # calls, products
  assert np.isnan(degrees)  # of no kernel
  assert ticks == ["sample"] * 4


# --- files --------------------------------------------------------------------


def test_kernels_are_padded_and_of_sum_1(files, tmp_path):
  found = kernel_file.read(str(files / "line.npy"))
  expected = np.zeros((7, 7))
  expected[2:5] = 1 / 21
  np.testing.assert_allclose(found, expected, rtol=1e-12)
  pixels = np.zeros((5, 5), np.uint8)
  pixels[2, 1], pixels[2, 4] = 200, 50
  PIL.Image.fromarray(pixels).save(tmp_path / "k.png")
  found = kernel_file.read(str(tmp_path / "k.png"))
  np.testing.assert_allclose(found, pixels / 250, rtol=1e-12)


def test_masks_are_white_where_observed(files):
  found = read_mask(str(files / "mask.png"), (40, 45))
  assert found.sum() == 40 * 45 - 10 * 25
  assert not found[10:20, 5:30].any()


def test_transparency_is_dropped_with_a_sentence(files):
  found, said, *_ = read_picture(str(files / "clear.png"))
  plain, silent, *_ = read_picture(str(files / "odd.png"))
  np.testing.assert_array_equal(found, plain)
  assert re.fullmatch("the transparency of .*clear.png is dropped", said)
  assert silent == ""


def test_cameras_turn_pictures(tmp_path):
  """EXIF 6: the row that the file holds first is the right-hand column."""
  left = np.zeros((40, 50, 3), np.uint8)
  left[0] = 255
  exif = PIL.Image.Exif()
  exif[0x0112] = 6
  PIL.Image.fromarray(left).save(tmp_path / "a.png", exif=exif)
  found = read_picture(str(tmp_path / "a.png")).pixels
  assert found.shape == (50, 40, 3)
  assert found[:, -1].min() == 1 and found[:, :-1].max() == -1


def test_priors_by_kind_of_file(tmp_path):
  fixtures = command_line.CONFIGS.parent / "tests/fixtures/unets"
  shipped = pj.priors.photo.SHIPPED["small"]
  assert prior_files.load("").config == prior_files.load(str(shipped)).config
  for name in ("adm.pt", "diffusers_new"):
    assert prior_files.load(str(fixtures / name)).config.channels == 3
  for name in ("no.pt", "small", "Large"):
    words = f"must name a file or directory, '{name}' is none; .* \"large\" the"
    with refused(ValueError, words):
      prior_files.load(name)
  (tmp_path / "a.txt").touch()
  with refused(ValueError, "prior must end in .json, .pt, .pth or"):
    prior_files.load(str(tmp_path / "a.txt"))


def test_scores_against_numpy():
  rng = np.random.default_rng(0)
  truth = rng.uniform(-0.5, 0.5, (1, 16, 16, 1)).astype(np.float32)
  noise = rng.normal(0, 0.1, (3, 16, 16, 1)).astype(np.float32)
  operator = pj.operators.random_inpainting((16, 16, 1))
  given = Given(truth, pj.Observation(operator.forward(truth), operator, 0.1))
  samples = truth[0] + noise
  found = study.evaluate(given, report.Restored(truth[0], samples))
  assert found["residual"] == 0 and found["psnr"] == np.inf
  psnr = -10 * np.log10((noise.mean(0).astype(float) ** 2).mean() / 4)
  assert abs(found["psnr_mean"] - psnr) < 1e-3
  seen = np.asarray(operator.mask[..., 0] == 1)
  residual = (noise[0][seen] ** 2).mean() / 0.01
  assert abs(found["residual_sample"] / residual - 1) < 1e-4
  assert abs(found["spread"] / np.sqrt(noise.var(0, ddof=1).mean()) - 1) < 1e-4


# --- refusals -----------------------------------------------------------------


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    ({"image": ""}, "image must name a picture"),
    ({"image": "no.png"}, "image must name a file, 'no.png' is none"),
    ({"image": "{}/text.png"}, "image .* cannot be read as a picture"),
    ({"image": "{}/small.png"}, "image must be 32 to 4096 pixels a side"),
    ({"task": "deblur"}, "task must be one of super_resolution, .*'deblur'"),
    ({"method": "nfc"}, "method must be one of NFC, .*'nfc'"),
    ({"noise_std": -0.1}, r"noise_std must lie in \[0, 2\], got -0.1"),
    ({"factor": 1}, r"factor must lie in \[2, 16\], got 1"),
    ({"boundary": "mirror"}, "boundary must be valid or reflect, got"),
    ({"operator": "a.py"}, "operator must be left out: motion_blur reads none"),
    ({"task": "custom", "kernel": ""}, "operator must name a file for custom"),
    (
      {"task": "custom", "kernel": "", "operator": "no.py"},
      "operator must name a file, 'no.py' is none",
    ),
    (
      {"task": "custom", "kernel": "", "operator": "{}/odd.png"},
      "operator .* must be a Python file",
    ),
    ({"noise_std": float("nan")}, "noise_std must lie in"),
    ({"tie": "jacobian"}, "tie must be spectrum or probed, got"),
    ({"levels": 0}, "levels must lie in"),
    (
      {"levels": 19, "kernel_degrees": 9.0},
      r"levels must lie in \[20, 10000\] with NFC and kernel_degrees, got 19",
    ),
    ({"samples": 0, "method": "DPS"}, "samples must lie in"),
    ({"kernel": ""}, "kernel must name a file for motion_blur, or be .*p95"),
    ({"kernel": "k.png"}, "kernel must be one of short, p20, .*p95, or name"),
    ({"kernel": "{}/even.npy"}, "kernel must have two odd sides"),
    ({"kernel": "{}/negative.npy"}, "kernel must be finite and non-negative"),
    ({"kernel": "{}/words.npy"}, "kernel must be finite and non-negative"),
    ({"kernel": "{}/zero.npy"}, "kernel must not be 0 everywhere"),
    (
      {"kernel": "{}/wide.npy", "boundary": "reflect"},
      "kernel of size 81 is too wide to mirror",
    ),
    (
      {"kernel": "", "task": "denoising", "kernel_degrees": 9.0},
      "kernel_degrees must be 0: denoising reads no kernel",
    ),
    ({"kernel": "{}/text.png"}, "kernel .*text.png' cannot be read as a pic"),
    ({"mask": "m.png"}, "mask must be left out: motion_blur reads none"),
    ({"prior": "no.pt"}, "prior must name a file or directory"),
    ({"method": "DDRM", "kernel": "short"}, "ddrm cannot use this operator"),
    (
      {"task": "box_inpainting", "kernel": "", "mask": "{}/mask_39.png"},
      "mask must have the picture's size, 45 x 40; .* has 45 x 39",
    ),
    (
      {"task": "box_inpainting", "kernel": "", "mask": "{}/mask_black.png"},
      "mask must keep at least one pixel",
    ),
    (
      {"task": "box_inpainting", "kernel": "", "mask": "{}/text.png"},
      "mask .*text.png' cannot be read as a picture",
    ),
    (
      {"task": "random_inpainting", "kernel": ""},
      "mask must name a file, or the image have transparent holes",
    ),
    (
      {"prior": "", "tile": 140, "task": "super_resolution", "kernel": ""},
      "tile must be divisible by 8, the network's unit; got 140",
    ),
  ],
)
def test_refusals(files, tmp_path, capsys, fields, words):
  """One sentence, exit code 2, no folder."""
  good = {"task": "motion_blur", "kernel": "{}/line.npy"}
  good |= {"image": "{}/odd.png", "prior": "gaussian"}
  given = {
    name: value.format(files) if isinstance(value, str) else value
    for name, value in (good | fields).items()
  }
  with pytest.raises(SystemExit) as stopped:
    _run(tmp_path / "run", ":debug", **given)
  assert stopped.value.code == 2
  said = capsys.readouterr().err.strip().splitlines()[-1]
  assert re.search(words, said), said
  assert not (tmp_path / "run").exists()


def test_config_fits_the_settings():
  for form in ("", "debug"):
    found = config.get_config(form)
    found.update(image="a.png", task="denoising")
    command_line.to_settings(job.Settings, found)


# --- the shipped prior --------------------------------------------------------


@pytest.mark.slow
def test_shipped_prior_beats_the_known_one(files, tmp_path):
  """In tiles of a picture larger than one, and whole."""
  cat = photographs.load("chelsea", 160)[:, :150]
  (tmp_path / "a.png").write_bytes(photographs.as_png(cat))
  psnr = {}
  for prior, tile in (("gaussian", 512), ("", 512), ("", 128)):
    row = _run(
      tmp_path / f"{prior}{tile}",
      "",
      image=tmp_path / "a.png",
      task="gaussian_blur",
      std=1.5,
      boundary="reflect",
      degrade=True,
      prior=prior,
      tile=tile,
      samples=0,
      levels=20,
    )
    psnr[prior, tile] = row["psnr"]
  assert psnr["", 512] > psnr["gaussian", 512] + 0.5
  assert abs(psnr["", 128] - psnr["", 512]) < 0.2
