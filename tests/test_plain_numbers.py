"""Settings take numbers of NumPy, and are then equal to those of Python."""

import dataclasses

import numpy as np
import pytest

import neumann_jax as nj
import posterior_jax as pj
from neumann_jax import tuning
from neumann_jax.weight_quantization import WeightQuantSpec
from posterior_jax import baselines
from posterior_jax.nfc_sampler import Jacobian, Schedule, Sigma
from tests.oracles import refused

# A setting of each record, and how it is made of numbers of some kind: 0.5 is
# the same number in every precision.
RECORDS = {
  "RuleOptions": lambda whole, _: nj.RuleOptions(chunk_size=whole(16)),
  "Execution": lambda whole, _: nj.Execution(query_block=whole(64)),
  "InverseSpec": lambda whole, _: nj.InverseSpec("banded", order=whole(3)),
  "QuantSpec": lambda whole, _: nj.QuantSpec(whole(8)),
  "ModelConfig": lambda whole, real: nj.ModelConfig(
    vocab_size=whole(64), initializer_range=real(0.5)
  ),
  "Yarn": lambda whole, real: nj.Yarn(
    real(0.5), original_max_position_embeddings=whole(64)
  ),
  "SamplingSpec": lambda whole, real: nj.SamplingSpec(
    temperature=real(0.5), top_k=whole(5)
  ),
  "WeightQuantSpec": lambda whole, _: WeightQuantSpec(whole(8), group=whole(4)),
  "LoraSpec": lambda whole, real: tuning.LoraSpec(whole(4), real(0.5)),
  "NFCConfig": lambda whole, _: pj.NFCConfig(levels=whole(20)),
  "Schedule": lambda _, real: Schedule(sigma_min=real(0.5)),
  "Sigma": lambda _, real: Sigma(real(0.5), most=real(0.5)),
  "Jacobian": lambda _, real: Jacobian(real(0.5)),
  "DPSConfig": lambda whole, real: baselines.DPSConfig(
    levels=whole(20), scale=real(0.5)
  ),
}


@pytest.mark.parametrize("real", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("whole", [np.int64, np.uint8])
@pytest.mark.parametrize("make", RECORDS.values(), ids=RECORDS)
def test_they_are_pythons_in_settings(make, whole, real):
  ours, plain = make(whole, real), make(int, float)
  assert ours == plain
  assert hash(ours) == hash(plain)
  for field in dataclasses.fields(ours):
    assert not isinstance(getattr(ours, field.name), np.generic), field.name


@pytest.mark.parametrize(
  "make",
  [
    lambda true: nj.RuleOptions(fused=true(1)),
    lambda true: nj.Execution(scan_layers=true(1)),
    lambda true: pj.NFCConfig.fast(predictor={"turned": true(1)}),
  ],
)
def test_so_are_truths(make):
  assert make(np.bool_) == make(bool)
  assert hash(make(np.bool_)) == hash(make(bool))


def test_so_are_tuples():
  def made(whole):
    return nj.ModelConfig(vocab_size=64, mlp_only_layers=(whole(1), whole(2)))

  assert repr(made(np.int64)) == repr(made(int))


def test_what_is_not_whole_is_refused_still():
  with refused(ValueError, "levels must be an integer, got 20.5"):
    pj.NFCConfig(levels=np.float32(20.5))
  with refused(ValueError, "rank must be an integer, got 4.0"):
    tuning.LoraSpec(rank=np.float32(4))
