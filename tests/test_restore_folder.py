"""A folder of pictures: all restored, one report, and no file takes another."""

import concurrent.futures
import dataclasses
import json
import threading
import time

import jax
import numpy as np
import pytest

from configs import restore as config
from experiments.data import photographs
from experiments.harness import command_line, prior_files, runner
from experiments.harness.progress import Progress, silent
from experiments.restore import doubt, folder, job, report, side_by_side, study
from experiments.restore import shared_inputs as shared
from experiments.restore.drawing import kept
from experiments.restore.drawing import stepwise as drawing
from experiments.restore.measurement import degradation
from posterior_jax import priors
from tests.oracles import refused

CONFIG = command_line.CONFIGS / "restore.py"
SAID = "broken.png"


@pytest.fixture
def pictures(tmp_path):
  """Two pictures of different sizes, one cut short, and a text."""
  given = tmp_path / "pictures"
  given.mkdir()
  cat = photographs.load("chelsea", 64)
  whole = photographs.as_png(cat[:40, :45])
  (given / "a.png").write_bytes(whole)
  (given / SAID).write_bytes(whole[: len(whole) // 2])
  (given / "c.png").write_bytes(photographs.as_png(cat[:33, :40]))
  (given / "notes.txt").write_text("no picture")
  return given


def _run(workdir, *more, **fields):
  argv = ["restore", f"--config={CONFIG}:debug", f"--workdir={workdir}", *more]
  argv += [f"--config.{name}={value}" for name, value in fields.items()]
  runner.main(
    "restore",
    job.Settings,
    folder.restore,
    argv,
    prepare=folder.prepare,
    inputs=folder.inputs,
    resumable=True,
  )


def _check(workdir, said):
  """What is left of the run, whoever drew the images."""
  rows = (workdir / "restore.jsonl").read_text().splitlines()
  sides = [(row["height"], row["width"]) for row in map(json.loads, rows)]
  assert sides == [(40, 45), (33, 40)]
  for name in ("a.png", "c.png"):
    assert (workdir / name / "restored.png").is_file()
    assert (workdir / name / "report.html").is_file()
  assert "broken.png is left out" in said.err and "truncated" in said.err
  assert "2 of 3 pictures are restored" in said.out
  assert "passed over as no pictures: notes.txt\n" in said.err
  text = (workdir / "report.html").read_text()
  assert all(name in text for name in ("a.png", "c.png", "Left out", SAID))
  assert "notes.txt" not in text


@pytest.fixture
def drawn(monkeypatch):
  """Images drawn by a stand-in, the keys that it was given."""
  keys = []

  def draw(given, *_):
    shape = given.given.observation.operator.image_shape

    def one(key):
      keys.append(key)
      return drawing.Drawn(np.zeros(shape, np.float32), 1, 0)

    return one

  monkeypatch.setattr(kept, "draw", draw)
  monkeypatch.setattr(doubt, "second_opinion", lambda *_: 1.0)

  def reported(folder, *_):
    # A picture's own page is tested elsewhere and takes a second to draw.
    (folder / "report.html").touch()
    return folder / "report.html"

  monkeypatch.setattr(report, "write", reported)
  return keys


def test_a_bad_file_takes_no_other_with_it(pictures, tmp_path, capsys, drawn):
  """The fast twin of the slow test: images drawn by a stand-in."""
  fields = {"image": pictures, "task": "denoising", "samples": 1}
  _run(tmp_path / "run", noise_std=0.1, **fields)
  _check(tmp_path / "run", capsys.readouterr())
  assert len(drawn) == 4
  # Gone on with: what was drawn is kept, and rows are not written again.
  (tmp_path / "run/c.png/drawn/image.npz").unlink()
  _run(tmp_path / "run", "--resume", noise_std=0.1, **fields)
  _check(tmp_path / "run", capsys.readouterr())
  assert len(drawn) == 5


def test_a_file_that_cannot_be_read_is_left_out(
  pictures, tmp_path, capsys, drawn
):
  """Nor does it take others with it when the inputs are hashed."""
  (pictures / "c.png").unlink()
  (pictures / SAID).unlink()
  # A regular file whose first byte cannot be read, by nobody.
  (pictures / "d.npy").symlink_to("/proc/self/mem")
  with pytest.raises(OSError):
    (pictures / "d.npy").read_bytes()
  _run(tmp_path / "run", image=pictures, task="denoising", noise_std=0.1)
  said = capsys.readouterr()
  assert "d.npy is left out" in said.err
  assert "1 of 2 pictures are restored" in said.out
  assert len(drawn) == 3
  text = (tmp_path / "run/report.html").read_text()
  assert "Pictures restored: 1<" in text and "d.npy: " in text
  inputs = json.loads((tmp_path / "run/environment.json").read_text())["inputs"]
  assert set(inputs) == {"image a.png"}


def test_an_image_that_is_not_finite_is_left_out(
  pictures, tmp_path, capsys, drawn, monkeypatch
):
  whole = kept.draw

  def draw(given, *more):
    one = whole(given, *more)
    if not given.settings.image.endswith("a.png"):
      return one
    return lambda key: one(key)._replace(image=one(key).image + np.nan)

  monkeypatch.setattr(kept, "draw", draw)
  fields = {"image": pictures, "task": "denoising", "samples": 0}
  _run(tmp_path / "run", noise_std=0.1, **fields)
  said = capsys.readouterr()
  assert "a.png is left out: the restored picture must be finite" in said.err
  assert "1 of 3 pictures are restored" in said.out


def test_a_picture_too_large_for_the_device_is_left_out(
  pictures, tmp_path, capsys, drawn, monkeypatch
):
  whole = kept.draw

  def draw(given, *more):
    def one(key):
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 TB\na table")

    large = given.settings.image.endswith("a.png")
    return one if large else whole(given, *more)

  monkeypatch.setattr(kept, "draw", draw)
  fields = {"image": pictures, "task": "denoising", "samples": 0}
  _run(tmp_path / "run", noise_std=0.1, **fields)
  said = capsys.readouterr()
  assert "a.png is left out: RESOURCE_EXHAUSTED: 9 TB\n" in said.err
  assert "1 of 3 pictures are restored" in said.out


@pytest.mark.parametrize("error", [ValueError, TypeError])
def test_a_fault_of_the_program_ends_the_folder(
  pictures, tmp_path, monkeypatch, capsys, error
):
  """At once: a.png is under way, what follows c.png is not begun."""
  (pictures / SAID).unlink()
  for name in "defg":
    (pictures / f"{name}.png").write_bytes((pictures / "c.png").read_bytes())
  begun, both = [], threading.Barrier(2, timeout=60)

  def draw(given, sampler, label, tick, pace):
    def one(key):
      begun.append(given.settings.image[-5:])
      both.wait()
      if given.settings.image.endswith("c.png"):
        raise error("a bug")
      for _ in range(500):
        tick(label)
        time.sleep(0.01)
      raise AssertionError("it was not ended")

    return one

  monkeypatch.setattr(kept, "draw", draw)
  batch = folder.prepare(_settings(pictures))
  two = jax.local_devices()[:2]
  monkeypatch.setattr(jax, "local_devices", lambda: two)
  with pytest.raises(error, match="a bug"):
    list(
      side_by_side.computed(batch.settings, batch.files, batch.common, tmp_path)
    )
  assert sorted(begun) == ["a.png", "c.png"]


def test_few_pictures_wait_to_be_written(pictures, tmp_path, monkeypatch):
  """Behind the first one, which takes until the others have come to a stop."""
  whole = (pictures / "c.png").read_bytes()
  (pictures / SAID).unlink()
  for i in range(6):
    (pictures / f"d{i}.png").write_bytes(whole)
  two = jax.local_devices()[:2]
  monkeypatch.setattr(jax, "local_devices", lambda: two)
  done, most = [], []

  def compute(job, *_, **__):
    if job.settings.image.endswith("a.png"):
      for _ in range(500):
        if len(done) == 3:
          break
        time.sleep(0.01)
      time.sleep(0.3)  # for others to come, which may not
      most.append(len(done))
    else:
      done.append(job)
    return job

  monkeypatch.setattr(study, "compute", compute)
  batch = folder.prepare(_settings(pictures))
  found = list(
    side_by_side.computed(batch.settings, batch.files, batch.common, tmp_path)
  )
  assert len(found) == 8 and most == [3]  # and a.png: two a device


def test_a_run_that_goes_on_counts_what_is_left(tmp_path, monkeypatch):
  """Neither steps nor time of what is kept; no later step is shown there."""
  file = tmp_path / "a.png"
  file.write_bytes(photographs.as_png(photographs.load("chelsea", 64)))
  given = job.prepare(_settings(file, samples=3))
  steps, left = [], []

  def draw(one, sampler, label, tick, pace):
    left.append(pace.left)
    shape = one.given.observation.operator.image_shape
    return lambda key: drawing.Drawn(np.zeros(shape, np.float32), 1, 0)

  def progress(total):
    steps.append(total)
    return Progress(total, label="a.png")

  monkeypatch.setattr(kept, "draw", draw)
  kept.draw_all(given, tmp_path / "drawn", progress)
  assert given.common.heartbeat.show is silent
  for name in ("image", "sample_2"):
    (tmp_path / f"drawn/{name}.npz").unlink()
  kept.draw_all(given, tmp_path / "drawn", progress)
  kept.draw_all(given, tmp_path / "drawn", progress)
  image, sample = given.best.num_steps, given.drawn.num_steps
  assert steps == [image + 3 * sample, image + sample, 0]
  expected = [
    i * image * given.evaluations(given.best)
    + s * sample * given.evaluations(given.drawn)
    for i, s in ((1, 3), (1, 1), (0, 0))
  ]
  assert left[::2] == pytest.approx(expected)


def test_threads_share_an_operator_of_ones_own(tmp_path):
  """Also where they ask for it together."""
  file = tmp_path / "operator.py"
  file.write_text(
    "import time\n"
    "import numpy as np\n"
    "from posterior_jax import operators\n"
    "def operator(shape):\n"
    "  time.sleep(0.1)\n"
    "  return operators.inpainting(shape, np.ones(shape[:2], np.float32))\n"
  )
  build = degradation.load_operator(str(file), degrade=True)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    found = list(pool.map(build, [(8, 8, 3)] * 4))
  assert all(each is found[0] for each in found)


def test_where_none_can_be_restored_the_reason_is_told(
  pictures, tmp_path, capsys
):
  for name in ("a.png", "c.png"):
    (pictures / name).unlink()
  with pytest.raises(SystemExit) as stopped:
    _run(tmp_path / "run", image=pictures, task="denoising", noise_std=0.1)
  assert stopped.value.code == 2
  said = capsys.readouterr().err.splitlines()[-1]
  none = f"none of 1 pictures could be restored; {SAID}: image "
  assert none in said and said.endswith("it ends before its picture does")


@pytest.mark.parametrize(
  "fields, words",
  [
    ({"task": "motion_blur", "kernel": "no.png"}, "kernel must be one of"),
    (
      {"task": "motion_blur", "kernel": "short", "prior": "no.pt"},
      "prior must name a file or directory",
    ),
    ({"task": "custom", "operator": "no.py"}, "operator must name a file"),
    (
      {"task": "custom", "operator": "{}/operator.py", "noise_std": None},
      "noise_std must be given with an operator",
    ),
    ({"task": "box_inpainting", "mask": "no.png"}, "mask must name a file"),
  ],
)
def test_mistakes_of_the_settings_are_told_once(pictures, fields, words):
  """Before the run's folder is opened, which `prepare` comes before."""
  (pictures / "operator.py").write_text("def operator(shape): ...")
  fields = {
    name: value.format(pictures) if isinstance(value, str) else value
    for name, value in fields.items()
  }
  with refused(ValueError, words):
    folder.prepare(_settings(pictures, **fields))


def test_thumbnails_of_strips_keep_both_sides():
  rng = np.random.default_rng(0)
  strip = rng.random((3, 4096, 3))
  found = folder._small(study.Written(strip, strip[:, :161], {}, None))
  assert found.given.shape == (1, 1365, 3)
  np.testing.assert_allclose(found.given[0, 1], strip[:, 3:6].mean((0, 1)))
  assert found.best.shape == (1, 80, 3)


def test_no_file_of_a_folder_vanishes(pictures):
  """Pictures by name or by how they begin; other files are named."""
  whole = (pictures / "c.png").read_bytes()
  (pictures / "IMG_0012").write_bytes(whole)
  for name in ("b.gif", "e.HEIC", "f.dng", "a file", ".hidden", "g.xcf"):
    (pictures / name).write_bytes(b"no picture")
  (pictures / "h.png").symlink_to(pictures / "nothing")
  (pictures / "inside.png").mkdir()
  batch = folder.prepare(_settings(pictures))
  names = ["IMG_0012", "a.png", "b.gif", SAID, "c.png", "e.HEIC", "f.dng"]
  assert [file.name for file in batch.files] == [*names, "h.png"]
  assert batch.passed == ("a file", "g.xcf", "notes.txt")
  said = folder._passed_over(batch.passed)
  assert said == "passed over as no pictures: a file, g.xcf, notes.txt\n"
  assert folder._passed_over(()) == ""
  assert folder._passed_over(tuple("abcdefg")).endswith("e and 2 more\n")


def test_folders_of_no_pictures_are_refused(pictures, tmp_path):
  for name in ("a.png", "c.png", SAID):
    (pictures / name).unlink()
  with refused(ValueError, "must be a picture or a folder of some"):
    folder.prepare(_settings(pictures))


@pytest.fixture
def network(monkeypatch):
  """A small network for the shipped one, and how often it was read."""
  config = priors.UNetConfig(widths=(4,), blocks=(1,), embedding=4)
  params = priors.initial_params(config, jax.random.key(0))
  loaded = []

  def load(prior, **_):
    loaded.append(prior)
    return priors.unet_prior(config, params)

  monkeypatch.setattr(prior_files, "load", load)
  return loaded


def _small(pictures, **fields):
  """Settings of a few denoiser calls."""
  small = {"method": "DDNM+", "levels": 2, "samples": 1, "prior": ""}
  return _settings(pictures, **(small | fields))


def _noisy(folder, count):
  """Files of pictures of one size and of nearly the same noise."""
  cat, rng = photographs.load("chelsea", 64), np.random.default_rng(0)
  files = [folder / f"same{i}.png" for i in range(count)]
  for i, file in enumerate(files):
    noise = (0.1 + 0.001 * i) * rng.standard_normal((40, 45, 3))
    file.write_bytes(photographs.as_png(cat[i : i + 40, :45] + noise))
  return files


def test_pictures_of_a_size_share_prior_and_programs(tmp_path, network):
  settings = _small(tmp_path, noise_std=None)
  common = shared.read(settings)
  jax.clear_caches()  # the file before this one may have met the programs
  before = drawing.started._cache_size(), drawing.stepped._cache_size()
  found = set()
  for file in _noisy(tmp_path, 2):
    given = dataclasses.replace(settings, image=str(file))
    one = job.prepare(given, common, say=lambda line: None)
    found.add(one.settings.noise_std)
    drawing.draw(one, one.drawn, "", lambda words: None)(jax.random.key(0))
  assert len(found) == 2  # each was estimated
  after = drawing.started._cache_size(), drawing.stepped._cache_size()
  assert after == (before[0] + 1, before[1] + 1)
  assert network == [""]


@pytest.mark.slow
def test_devices_restore_side_by_side_what_one_does(
  tmp_path, network, monkeypatch
):
  """To the bit; a file that is broken takes neither picture with it."""
  first, last = _noisy(tmp_path, 2)
  broken = tmp_path / "same00.png"  # between the two
  broken.write_bytes(first.read_bytes()[:400])
  settings = _small(tmp_path)
  alone = []
  for file in (first, last):
    one = job.prepare(dataclasses.replace(settings, image=str(file)))
    _, key = jax.random.split(jax.random.key(0))
    drawn = drawing.draw(one, one.drawn, "", lambda words: None)(key)
    alone.append(drawn.image)
  network.clear()
  devices, begun = {}, threading.Barrier(2, timeout=60)

  def draw(given, *more):
    leaf = jax.tree.leaves(given.denoise)[0]
    devices[given.settings.image] = leaf.devices()
    begun.wait()  # both are under way at once
    return drawing.draw(given, *more)

  monkeypatch.setattr(kept, "draw", draw)
  monkeypatch.setattr(doubt, "second_opinion", lambda *_: 1.0)
  batch = folder.prepare(settings)
  assert network == [""]
  run = tmp_path / "run"
  run.mkdir()
  found = dict(side_by_side.computed(settings, batch.files, batch.common, run))
  assert list(found) == sorted([first, last, broken])
  assert isinstance(found.pop(broken), str)
  assert len(set.union(*devices.values())) == 2
  for (file, one), image in zip(sorted(found.items()), alone, strict=True):
    with np.load(run / file.name / "drawn/sample_1.npz") as saved:
      np.testing.assert_array_equal(saved["image"], image)
    np.testing.assert_array_equal(one.restored.best, image)


def test_pictures_under_way_end_with_their_step(
  pictures, tmp_path, monkeypatch, capsys
):
  """As on Ctrl-C; a stand-in draws c.png for ever."""
  (pictures / SAID).unlink()
  steps = []

  def draw(given, sampler, label, tick, pace):
    def one(key):
      shape = given.given.observation.operator.image_shape
      while given.settings.image.endswith("c.png"):
        tick(label)
        steps.append(label)
        time.sleep(0.01)
      return drawing.Drawn(np.zeros(shape, np.float32), 1, 0)

    return one

  monkeypatch.setattr(kept, "draw", draw)
  monkeypatch.setattr(doubt, "second_opinion", lambda *_: 1.0)
  batch = folder.prepare(_settings(pictures))
  computed = side_by_side.computed(
    batch.settings, batch.files, batch.common, tmp_path
  )
  first, _ = next(computed)
  assert first.name == "a.png"
  while not steps:
    time.sleep(0.01)
  computed.close()
  said = capsys.readouterr().err
  assert "waiting for a picture under way; what is drawn is kept\n" in said
  assert "2 of 2, c.png 0/" in said
  count = len(steps)
  time.sleep(0.05)
  assert len(steps) == count
  assert not (tmp_path / "c.png/drawn/image.npz").exists()


@pytest.mark.slow
def test_every_picture_of_a_folder_is_restored(pictures, tmp_path, capsys):
  _run(tmp_path / "run", image=pictures, task="denoising", noise_std=0.1)
  _check(tmp_path / "run", capsys.readouterr())


def _settings(image, **fields):
  found = config.get_config("debug")
  given = {"image": str(image), "task": "denoising", "noise_std": 0.1}
  found.update(given | fields)
  return command_line.to_settings(job.Settings, found)
