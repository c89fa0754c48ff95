"""`NFCConfig.tuned`: what the search of equal tuning has found."""

import itertools

import numpy as np
import pytest

import posterior_jax as pj
from experiments.equal_tuning import methods
from posterior_jax.nfc_sampler import tuned
from tests import oracles

BUDGETS = (20, 50, 100, 200, 1000)
ALL = [
  *itertools.product(pj.baselines.TASKS, BUDGETS, ("PSNR", "LPIPS")),
]


def test_every_task_budget_and_score_has_settings_that_keep_to_the_budget():
  for task, evaluations, score in ALL:
    config = pj.NFCConfig.tuned(task, evaluations=evaluations, score=score)
    point = tuned._table()[score][str(evaluations)][task]
    each = {"fast": 1, "perceptual": 1, "restoration": 4}
    passes = config.schedule.passes
    level = each.get(point["preset"], 2)
    spent = config.levels * passes * level
    # What passes do not share evenly is left.
    assert evaluations - passes * level < spent <= evaluations


def test_settings_are_a_preset_with_the_numbers_of_the_search():
  for task, evaluations, score in ALL:
    config = pj.NFCConfig.tuned(task, evaluations=evaluations, score=score)
    point = dict(tuned._table()[score][str(evaluations)][task])
    preset = point.pop("preset")
    form = " in passes" if "passes" in point else ""
    knobs = methods.METHODS[f"NFC, {preset}(){form}"].knobs(evaluations)
    assert [*point] == [knob.name for knob in knobs]
    for name, value in point.items():
      part = config.width if name in tuned.WIDTH else config.schedule
      assert getattr(part, name) == value
    # And nothing else differs from the preset at this budget.
    plain = tuned.form(pj.NFCConfig, preset, evaluations)
    assert config == tuned.with_point(plain, point)


def test_an_integer_of_numpy_is_a_budget():
  one, two = (
    pj.NFCConfig.tuned("motion_blur", evaluations=n) for n in (50, np.int64(50))
  )
  assert one == two and type(two.levels) is int


def test_changes_come_last():
  config = pj.NFCConfig.tuned(
    "gaussian_blur", evaluations=20, predictor={"turned": False}, levels=10
  )
  assert config.levels == 10 and not config.predictor.turned


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"task": "deblurring"}, "task must be one of super_resolution, .*'debl"),
    ({"evaluations": 30}, "evaluations must be one of 20, .*, 1000; got 30"),
    ({"evaluations": "20"}, "evaluations must be an integer, got '20'"),
    ({"evaluations": 20.0}, "evaluations must be an integer, got 20.0"),
    ({"evaluations": True}, "evaluations must be an integer, got True"),
    ({"evaluations": np.array(20)}, "evaluations must be an integer, got arr"),
    ({"score": "psnr"}, "score must be one of PSNR, LPIPS; got 'psnr'"),
  ],
)
def test_what_was_not_searched_is_refused_by_name(changes, words):
  with pytest.raises(ValueError, match=words):
    pj.NFCConfig.tuned(**{"task": "gaussian_blur"} | changes)


def test_fields_that_are_none_are_refused():
  with oracles.refused(ValueError, "level"):
    pj.NFCConfig.tuned("gaussian_blur", level=3)
