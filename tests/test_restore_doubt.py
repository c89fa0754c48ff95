"""What is said when a result is to be doubted: of whom, and of what."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posterior_jax as pj
from configs import restore as config
from experiments.data import photographs
from experiments.harness import command_line, runner
from experiments.restore import doubt, job, report, shared_inputs, study
from experiments.restore.drawing import stepwise as drawing
from experiments.restore.heartbeat import Heartbeat
from experiments.restore.picture_files import kernel_file
from experiments.restore.settings import OVERLAP
from posterior_jax.operators import frozen
from tests.oracles import refused

CONFIG = command_line.CONFIGS / "restore.py"
LINE = np.zeros((9, 9))
LINE[4, 1:] = np.linspace(0.2, 2, 8)  # lopsided: its flip is another
KERNEL = LINE / LINE.sum()
NOISE = 0.02
BEATS = (12, 25, 38, 50, 62, 75, 88, 100)


@pytest.fixture(scope="module")
def blurred(tmp_path_factory):
  """A photograph that the world has blurred: a file, and both kernels."""
  folder = tmp_path_factory.mktemp("blurred")
  scene = photographs.load("chelsea", 96)[:80]
  operator = pj.operators.blur(scene.shape, KERNEL, boundary="valid")
  y = np.asarray(operator.forward(scene[None])[0])
  y = y + NOISE * np.random.default_rng(0).standard_normal(y.shape)
  (folder / "y.png").write_bytes(photographs.as_png(y))
  np.save(folder / "right.npy", KERNEL)
  np.save(folder / "wrong.npy", np.rot90(KERNEL))
  return folder


def _prepared(folder, **fields):
  found = config.get_config("debug")
  given = {"task": "motion_blur", "kernel": str(folder / "right.npy")}
  found.update(image=str(folder / "y.png"), samples=1, **(given | fields))
  return job.prepare(command_line.to_settings(job.Settings, found))


def test_noise_is_estimated_and_said(blurred, capsys):
  found = _prepared(blurred).settings.noise_std
  assert abs(found / NOISE - 1) < 0.2
  said = capsys.readouterr().out
  assert f"noise_std is estimated from the picture: {found:.4f}" in said
  found = _prepared(blurred, noise_std=0.0).settings.noise_std
  assert abs(found - 2 / 255 / 12**0.5) < 1e-6
  assert "that of rounding to 8 bits" in capsys.readouterr().out


def test_a_flipped_kernel_is_seen_before_the_run(blurred):
  for flip in (False, True):
    given = _prepared(blurred, kernel_flip=flip, noise_std=NOISE).given
    hint = doubt.flip_hint(given.observation)
    assert ("kernel_flip=True" in hint) == flip
  mask = pj.operators.random_inpainting((32, 32, 3))
  assert not doubt.flip_hint(pj.Observation(jnp.zeros((1, 32, 32, 3)), mask, 1))


def test_a_suspicious_residual_gets_a_second_opinion(blurred, monkeypatch):
  """The fast twin of the next test: what is said of which opinion."""
  given = _prepared(blurred, noise_std=NOISE)
  for reached, words in (
    (1.05, "is the method's"),
    (1.2, "the kernel or noise"),
  ):
    monkeypatch.setattr(doubt, "second_opinion", lambda *_, r=reached: r)
    (line,) = doubt.about(given, np.zeros(1), {"residual": 1.5})
    assert words in line and f"{reached:.2f}" in line
  assert doubt.about(given, np.zeros(1), {"residual": 1.05}) == []
  with refused(doubt.NotFinite, "must be finite, its residual is nan"):
    doubt.about(given, np.zeros(1), {"residual": float("nan")})


@pytest.mark.slow
def test_the_second_opinion_tells_whose_fault_it_is(blurred):
  """A grey picture does not fit: by no fault of a right kernel."""
  right = _prepared(blurred, noise_std=NOISE)
  flat = np.zeros(right.given.observation.operator.image_shape, np.float32)
  (line,) = doubt.about(right, flat, {"residual": 50.0})
  assert re.match("the residual of 50.00 is the method's: from its image", line)
  # So wide a blur leaves none of the detail that the picture has.
  wrong = _prepared(
    blurred, task="gaussian_blur", kernel="", std=5.0, noise_std=NOISE
  )
  flat = np.zeros(wrong.given.observation.operator.image_shape, np.float32)
  (line,) = doubt.about(wrong, flat, {"residual": 50.0})
  assert re.match(
    "a residual far above 1, also from .*: std or noise_std", line
  )


def test_what_is_left_is_counted_in_evaluations():
  pace = drawing.Pace(20 * 5 + 4 * 2)
  assert pace.seconds is None
  pace.took(seconds=10, evaluations=5, expected=5)
  assert pace.seconds == 103 / 5 * 10
  pace.took(seconds=5, evaluations=3, expected=5)  # fewer iterations
  assert pace.left == 98
  assert abs(pace.seconds - 98 * 15 / 8) < 1e-9


def test_expected_evaluations_are_those_of_a_step(blurred):
  prepared = _prepared(blurred, noise_std=NOISE)
  best, drawn = (
    prepared.evaluations(sampler) for sampler in (prepared.best, prepared.drawn)
  )
  ticks = []
  pace = drawing.Pace(best * prepared.best.num_steps)
  draw = drawing.draw(prepared, prepared.best, "image", ticks.append, pace)
  image = draw(jax.random.key(0))
  steps = prepared.best.num_steps
  assert best * steps * 0.7 <= image.calls + image.products <= best * steps
  assert abs(pace.left) < 1e-9
  assert ticks[0] == "image, compiling and first step"
  assert all(re.fullmatch(r"image, \d+ s left", tick) for tick in ticks[1:])
  assert drawn == 2


@pytest.mark.parametrize(
  ("side", "most"), [(2592, 512), (1680, 512), (700, 128), (512, 512)]
)
def test_tiles_are_no_longer_than_their_overlap_needs(side, most):
  count, tile = shared_inputs.tiles_of(side, most, 8)

  def fewest(tile):
    return 1 + max(0, -(-(side - tile) // (tile - OVERLAP)))

  assert count == fewest(tile) == fewest(most)
  assert tile % 8 == 0 and tile <= most
  assert fewest(tile - 8) > count
  # A side below the overlap is mirrored up to a tile that still has one.
  assert shared_inputs.tiles_of(40, most, 8) == (1, OVERLAP + 8)


def test_tiles_are_counted_inside_a_step():
  """Every call, and every recomputation of a VJP, of every tile."""
  heartbeat, said = Heartbeat(), []
  heartbeat.show = said.append
  prior = pj.priors.gaussian_prior(pj.priors.power_law_spectrum(16, 16))
  watched = heartbeat.watched(prior.denoise, 1 / 4)
  denoise = pj.tiled(watched, tile=16, overlap=8)
  heartbeat.begin("image", 2)

  @jax.jit
  def step(x):
    found, product = jax.vjp(lambda x: denoise(x, jnp.ones(1)), x)
    return product(found)[0]

  step(jnp.ones((1, 24, 24, 1))).block_until_ready()
  jax.effects_barrier()
  # The VJP's forward pass and its own: each of the four tiles beats twice.
  assert said == [f"image, {share} % of a step" for share in BEATS]


@pytest.mark.slow
def test_scenes_are_sampled_and_pictures_written(blurred, tmp_path):
  """As large as the picture, better than under a mirror, most at its border."""
  rows, images = {}, {}
  truth = photographs.load("chelsea", 96)[:80][4:-4, 4:-4]
  for boundary in ("valid", "reflect"):
    folder = tmp_path / boundary
    argv = ["restore", f"--config={CONFIG}:debug", f"--workdir={folder}"]
    argv += [f"--config.boundary={boundary}", "--config.task=motion_blur"]
    argv += [f"--config.image={blurred}/y.png", "--config.samples=2"]
    argv += [f"--config.kernel={blurred}/right.npy"]
    runner.main(
      "restore", job.Settings, study.restore, argv, prepare=job.prepare
    )
    (line,) = (folder / "restore.jsonl").read_text().splitlines()
    rows[boundary] = json.loads(line)
    image = photographs.read(folder / "restored.png") / 127.5 - 1
    images[boundary] = ((image - truth) ** 2).mean(-1)
  assert (rows["valid"]["height"], rows["valid"]["width"]) == truth.shape[:2]
  border = np.ones(truth.shape[:2], bool)
  border[8:-8, 8:-8] = False
  # Without a mirror that was never there (deepinv/deepinv#898,
  # scikit-image/scikit-image#3859) edges are no worse than twice the inside.
  errors = {
    name: (e[border].mean(), e[~border].mean()) for name, e in images.items()
  }
  assert errors["valid"][0] < 0.7 * errors["reflect"][0]
  assert errors["valid"][1] < 1.05 * errors["reflect"][1]
  assert errors["valid"][0] < 2 * errors["valid"][1]
  assert rows["valid"]["residual"] < 1.1


@pytest.mark.slow
def test_a_turned_kernel_is_drawn_with_the_picture(tmp_path, capsys):
  """Believed to lie flat, while the world moved by 15 degrees."""
  line = np.zeros((13, 13))
  line[6] = 1 / 13
  kernel = np.asarray(pj.uncertain.turned(line, degrees=15, steps=3).values[2])
  scene = photographs.load("coffee", 96)
  operator = pj.operators.blur(scene.shape, kernel, boundary="valid")
  y = np.asarray(operator.forward(scene[None])[0])
  y = y + NOISE * np.random.default_rng(0).standard_normal(y.shape)
  (tmp_path / "y.png").write_bytes(photographs.as_png(y))
  np.save(tmp_path / "line.npy", line)
  argv = ["restore", f"--config={CONFIG}:debug", f"--workdir={tmp_path}/run"]
  argv += ["--config.task=motion_blur", f"--config.image={tmp_path}/y.png"]
  argv += [f"--config.kernel={tmp_path}/line.npy"]
  argv += ["--config.kernel_degrees=25.0", f"--config.noise_std={NOISE}"]
  runner.main("restore", job.Settings, study.restore, argv, prepare=job.prepare)
  (text,) = (tmp_path / "run/restore.jsonl").read_text().splitlines()
  row = json.loads(text)
  assert abs(row["degrees"] - 15) < 6
  assert row["residual"] < 1.2
  said = capsys.readouterr().out
  assert "as it was given it is improbable" in said
  assert "improbable" in (tmp_path / "run/report.html").read_text()


def test_what_is_said_of_a_turn(blurred):
  """The fast twin of the test before."""
  assert report.turn({"degrees": 2.0, "degrees_std": None}) == (
    "the kernel is turned by 2.0 degrees"
  )
  far = report.turn({"degrees": -15.0, "degrees_std": 1.0})
  assert far.endswith("sample; as it was given it is improbable")
  vague = report.turn({"degrees": -15.0, "degrees_std": 9.0})
  assert vague.endswith("9.0 from sample to sample")
  found = _prepared(blurred, kernel_degrees=10.0, noise_std=NOISE)
  assert len(found.common.family.degrees) == 9
  side = found.common.family.values.shape[1]
  assert found.given.observation.operator.kernel.shape == (side, side)
  turned = found.turned(9.0).given.observation.operator.kernel
  np.testing.assert_array_equal(turned, found.common.family.values[8])


def test_restored_images_lose_their_margin():
  """The fast twin of the test before."""
  operator = pj.operators.blur((20, 24, 3), KERNEL, boundary="valid")
  scene = np.arange(20 * 24 * 3, dtype=np.float32).reshape(20, 24, 3)
  found = report.Restored(scene, np.stack([scene, scene])).within(operator)
  np.testing.assert_array_equal(found.best, scene[4:-4, 4:-4])
  assert found.samples.shape == (2, 12, 16, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", frozen.PATHS)
def test_flips_of_the_frozen_kernels_are_seen(name):
  """On photographs, both ways round, at two noise levels."""
  kernel = kernel_file.trimmed(np.asarray(frozen.motion_kernel(name), float))
  kernel = kernel / kernel.sum()
  for photograph in photographs.HELD_OUT:
    scene = photographs.load(photograph, 160)
    operator = pj.operators.blur(scene.shape, kernel, boundary="valid")
    clean = operator.forward(scene[None])
    for noise_std in (0.01, 0.05):
      noise = noise_std * jax.random.normal(jax.random.key(0), clean.shape)
      for flip in (False, True):
        taps = kernel[::-1, ::-1] if flip else kernel
        said = pj.operators.blur(scene.shape, taps, boundary="valid")
        seen = pj.Observation(clean + noise, said, noise_std)
        assert bool(doubt.flip_hint(seen)) == flip, (photograph, noise_std)
