"""A server's life: programs, memory and maps over calls of every kind."""

import jax
import numpy as np
import pytest

from experiments.harness import record
from neumann_jax import SamplingSpec, generation
from neumann_jax.generation import decoding
from tests.faults import server, server_plot
from tests.faults.server import counting, requests
from tests.test_generate import job_of

pytestmark = pytest.mark.usefixtures("quick_compilation")
KEY = {"stage", "_threefry_seed"}  # what `jax.random.key` compiles
linux = pytest.mark.skipif(
  not server.PROC.exists(), reason="Linux counts memory and maps"
)


@pytest.fixture(scope="module")
def model():
  return server.small_model()


def forget():
  for part in (decoding.start, decoding.resume, decoding.prefill):
    part.clear_cache()
  decoding.decode.clear_cache()


def test_a_server_compiles_three_programs(model):
  """With pieces and a capacity of its own; the defaults are the slow twin."""
  forget()
  room = {"prefill_chunk": 8, "capacity": 64}
  with counting() as programs:
    asked = list(requests(12, 20))
    # JAX's own for `jax.random.key`, of a few numbers, unless it has them.
    assert set(programs) <= KEY
    programs.clear()
    for request in asked:
      generation.generate(model, **request, **room)
      assert programs == ["start", "prefill", "decode"]


def test_any_number_of_stop_tokens_and_any_threefry_key(model):
  """One program, and the old form of a key draws what the new one does."""
  room = {"prefill_chunk": 8, "capacity": 64, "max_new_tokens": 4}
  spec, keys = SamplingSpec(), (jax.random.key(7), jax.random.PRNGKey(7))
  generation.generate(model, [[1, 2]], spec=spec, key=keys[0], **room)
  with counting() as programs:
    for count in (0, 8, 9, 17, 60):
      stops = range(61 - count, 61)
      new, old = (
        generation.generate(
          model, [[1, 2]], spec=spec, key=key, stop_tokens=stops, **room
        )
        for key in keys
      )
      np.testing.assert_array_equal(new.tokens, old.tokens)
      tokens = new.tokens[0, : new.lengths[0]]
      ends = np.isin(tokens, stops)
      assert not ends[:-1].any() and ends[-1] == new.finished[0]
  assert not programs


def test_an_equal_model_meets_the_same_programs(model):
  room = {"prefill_chunk": 8, "capacity": 64}
  request = next(requests(1, 20)) | room
  truth = generation.generate(model, **request)
  again = server.small_model()
  with counting() as programs:
    found = generation.generate(again, **request)
  assert not programs
  np.testing.assert_array_equal(found.tokens, truth.tokens)


def test_200_prompts_have_the_shapes_of_four_programs(model):
  """What a program is compiled for, counted without compiling it."""
  programs = set()
  for request in requests(200, server.LONGEST):
    job = job_of(model, **request)
    room = len(job.rows), job.capacity
    shapes = tuple(x.shape for x in jax.tree.leaves((job.request, job.written)))
    programs |= {("start", *room), ("decode", *room, *shapes)}
    programs |= {("prefill", *room, width) for width in job.widths}
  assert len(programs) == 4


@pytest.mark.slow
def test_200_prompts_compile_at_most_four_programs(model):
  forget()
  with counting() as programs:
    for request in requests(200, server.LONGEST):
      generation.generate(model, **request)
  ours = [name for name in programs if name not in KEY]
  assert sorted(ours) == ["decode", "prefill", "prefill", "start"]
  assert len(programs) - len(ours) <= len(KEY)


@pytest.mark.slow
@linux
def test_500_calls_of_a_server(model):
  """Plain calls and turns of chats; programs, memory and maps stay flat."""
  forget()
  seen = list(server.life(server.generating(model, 500)))
  early, last = seen[50], seen[-1]
  assert last.programs <= 8
  assert early.programs == last.programs
  assert last.maps - early.maps <= 8  # of some 2000; a program takes dozens
  assert last.megabytes - early.megabytes < 50


@pytest.mark.slow
@linux
def test_500_calls_of_run():
  """All samplers are built anew for every call."""
  seen = list(server.life(server.restoring(500)))
  early, last = seen[49], seen[-1]
  assert last.programs <= 8
  assert early.programs == last.programs
  assert last.maps - early.maps <= 50
  assert last.megabytes - early.megabytes <= 30


def test_the_report_of_a_server_says_what_grew(tmp_path):
  with record.Run(tmp_path / "flat") as flat, record.Run(tmp_path / "x") as run:
    for call in range(1, 71):
      seen = server.Seen(call, min(call, 8), 500.0, 2000 + min(call, 50))
      late = max(call - 50, 0)
      grown = server.Seen(call, call, 500.0 + 3 * late, 2000 + 3 * late)
      for to, each in ((flat, seen), (run, grown)):
        to.write(server_plot.TABLE, {"server": "run"} | each._asdict())
    assert server_plot.failures(flat.frame(server_plot.TABLE)) == []
    assert server_plot.failures(run.frame(server_plot.TABLE)) == [
      "run: 70 programs were compiled, at most 8 is allowed",
      "run: memory grew by 60 MB, at most 50 is allowed",
      "run: 60 memory maps were added, at most 50 is allowed",
    ]
    page = server_plot.write(run, 70).read_text()
  assert "data:image/png" in page and "60 memory maps were added" in page
  assert page.count('data-value="2060.0"') == 1  # maps after the last call
