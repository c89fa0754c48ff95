"""Nothing that is written is ever there in part, and one process writes."""

import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest

from experiments.harness import record, writing
from experiments.harness.rows import Table
from neumann_jax.checkpoint.new_folder import new_folder
from tests.oracles import refused

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Layer:
  """Copies a folder before every call that changes it, and mid-write.

  A copy is what a kill at that moment leaves; `every_write.c` does the same
  below libc, where nothing is missed.
  """

  def __init__(self, folder, copies, monkeypatch):
    self.folder, self.copies, self.count = folder, copies, 0
    for name in ("replace", "unlink", "mkdir", "rename"):
      monkeypatch.setattr(pathlib.Path, name, self._before(name))
    self._open = pathlib.Path.open
    monkeypatch.setattr(pathlib.Path, "open", self._watching())

  def moment(self):
    self.count += 1
    shutil.copytree(self.folder, self.copies / str(self.count))

  def _before(self, name):
    real = getattr(pathlib.Path, name)

    def call(path, *arguments, **options):
      if self.folder in path.parents:
        self.moment()
      return real(path, *arguments, **options)

    return call

  def _watching(self):
    def call(path, mode="r", *arguments, **options):
      if mode not in ("wb", "a+b") or self.folder not in path.parents:
        return self._open(path, mode, *arguments, **options)
      self.moment()
      file = self._open(path, mode, buffering=0)
      return Watched(file, self)

    return call


class Watched:
  """A file that is written in two halves."""

  def __init__(self, file, layer):
    self._file, self._layer = file, layer

  def write(self, data):
    self._layer.moment()
    half = self._file.write(data[: len(data) // 2])
    self._layer.moment()
    return half + self._file.write(data[half:])

  def __getattr__(self, name):
    return getattr(self._file, name)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._file.close()


def _small_run(folder, *, resume=False):
  with record.Run(folder, inputs={"text": "1"}, resume=resume) as run:
    write_all(run)


def write_all(run):
  """Rows, files of a library's, and a file and a folder written twice."""
  for i in range(3):
    run.write_once("steps", {"step": i, "word": "é" * i}, ("step",))
  with writing.beside(run.folder, "weights", "manifest") as to:
    (to / "manifest").write_text("of the weights")
    (to / "weights").write_bytes(bytes(1000))
  for words in ("old", "new"):
    writing.write(run.folder / "report.html", words * 100)
    with writing.in_place_of(run.folder / "adapter") as to:
      to.mkdir()
      (to / "matrices").write_text(words)


def results(folder):
  names = ("steps.jsonl", "steps.csv", "weights", "manifest", "report.html")
  names += ("adapter/matrices",)
  kept = json.loads((folder / "environment.json").read_text())
  assert kept["status"] == "finished" and kept["inputs"] == {"text": "1"}
  assert [x.name for x in folder.rglob(".*")] == [".lock"]
  return {name: (folder / name).read_bytes() for name in names}


def test_killed_at_every_write_a_small_run_goes_on(tmp_path, monkeypatch):
  run, copies = tmp_path / "run", tmp_path / "copies"
  run.mkdir()
  copies.mkdir()
  monkeypatch.setattr(record, "_revision", lambda: None)
  with monkeypatch.context() as patched:
    layer = Layer(run, copies, patched)
    _small_run(run)
  whole = results(run)
  assert layer.count > 30
  matrices = set()
  for copy in sorted(copies.iterdir(), key=lambda path: int(path.name)):
    # The folder, once there, is there after every kill: the old or the new.
    writing.hold(copy).close()
    found = copy / "adapter/matrices"
    assert found.exists() or not matrices
    matrices |= {found.read_text()} if found.exists() else set()
    old = copy / "report.html"
    assert not old.exists() or old.read_text() in ("old" * 100, "new" * 100)
    _small_run(copy, resume=True)
    assert results(copy) == whole, copy
  assert matrices == {"old", "new"}


def test_a_full_disk_leaves_the_old_file_and_the_rows(tmp_path):
  resource = pytest.importorskip("resource")
  file, table = tmp_path / "a.json", Table(tmp_path / "t")
  writing.write(file, "old")
  table.write({"words": "a" * 500})
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
  try:
    with pytest.raises(writing.Unwritable, match="File too large") as raised:
      writing.write(file, "new" * 1000)
    assert raised.value.filename == str(file)
    for _ in range(2):
      with pytest.raises(writing.Unwritable, match="File too large") as raised:
        table.write({"words": "b" * 600})
      assert raised.value.filename == str(tmp_path / "t.jsonl")
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert file.read_text() == "old" and not list(tmp_path.glob(".beside*"))
  assert table.rows() == [{"words": "a" * 500}]
  table.write({"words": "c"})
  assert len(table.rows()) == 2


def test_several_may_write_the_same_at_once(tmp_path):
  """As processes that share cells do with the winners that all of them know."""
  file = tmp_path / "a.json"
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    jobs = [pool.submit(writing.write, file, "new" * 50) for _ in range(200)]
  assert all(job.result() == file for job in jobs)
  assert file.read_text() == "new" * 50
  assert [*tmp_path.iterdir()] == [file]


def test_files_that_speak_of_others_come_last(tmp_path):
  with refused(writing.Unwritable, "No such file or directory"):
    with writing.beside(tmp_path, "weights", "manifest") as to:
      (to / "manifest").write_text("of weights that are not there")
  assert not list(tmp_path.iterdir())


def test_a_folder_is_on_the_disk_before_it_takes_a_place(tmp_path, monkeypatch):
  """And where it cannot take it, the old one has it again."""
  path, synced, real = tmp_path / "a", set(), pathlib.Path.replace
  monkeypatch.setattr(os, "fsync", lambda file: synced.add(os.fstat(file)[1]))

  def fill(words):
    with writing.in_place_of(path) as to:
      (to / "in").mkdir(parents=True)
      (to / "in" / "b").write_text(words)

  def full(source, target):
    if source.parent != tmp_path and target == path:
      raise OSError(28, "no space")
    return real(source, target)

  fill("old")
  assert (path / "in" / "b").stat().st_ino in synced
  with monkeypatch.context() as patched:
    patched.setattr(pathlib.Path, "replace", full)
    with pytest.raises(writing.Unwritable, match="No space"):
      fill("new")
  assert (path / "in" / "b").read_text() == "old"
  assert list(tmp_path.iterdir()) == [path]
  fill("new")
  assert (path / "in" / "b").read_text() == "new"
  assert list(tmp_path.iterdir()) == [path]


def test_nothing_else_of_the_experiments_writes_files():
  """Calls by name; what a library writes goes to memory, or to `beside`."""
  writes = re.compile(
    r"\.(write_text|write_bytes|touch|mkdtemp|copyfile|savefig|savez\w*)\("
    r"|np\.save\("
    r"|open\([^)]*[\"'][wax]b?\+?[\"']"
  )
  found = {
    (path.name, match[0])
    for path in (ROOT / "experiments").rglob("*.py")
    for match in writes.finditer(path.read_text())
    if path.name != "writing.py"
  }
  assert found == {
    ("report.py", ".savefig("),
    ("runner.py", 'open(os.devnull, "w"'),
    ("freeze_assets.py", ".savez_compressed("),
    ("capture.py", ".savez_compressed("),
    ("kept.py", ".savez("),
    ("restoring.py", "np.save("),
  }


def test_names_that_are_no_text_are_escaped(tmp_path):
  name = os.fsdecode(b"caf\xe9.jpg")
  writing.write(tmp_path / "a.html", f"<p>{name}</p>")
  assert (tmp_path / "a.html").read_text("utf-8") == "<p>caf\\udce9.jpg</p>"
  table = Table(tmp_path / "t")
  table.write({"image": name})
  table.close()
  assert (tmp_path / "t.csv").read_text("utf-8") == "image\ncaf\\udce9.jpg\n"


# --- the lock -----------------------------------------------------------------

HOLD = """
import pathlib, sys, time
from experiments.harness import writing
try:
  held = writing.hold(pathlib.Path(sys.argv[1]))
except writing.Refused as error:
  sys.exit(str(error))
print("held", flush=True)
sys.stdin.read()
held.close()
"""


def _holder(folder):
  return subprocess.Popen(
    [sys.executable, "-c", HOLD, str(folder)],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.mark.parametrize(
  "trials", [3, pytest.param(20, marks=pytest.mark.slow)]
)
def test_one_of_two_processes_works_and_the_other_says_who(tmp_path, trials):
  """Started at once; then the holder is killed, and the next takes over."""
  for trial in range(trials):
    folder = tmp_path / str(trial)
    folder.mkdir()
    both = [_holder(folder) for _ in range(2)]
    while not (ended := [p for p in both if p.poll() is not None]):
      time.sleep(0.01)
    (refused_one,) = ended
    (holder,) = (p for p in both if p is not refused_one)
    assert holder.stdout.readline() == "held\n"
    assert refused_one.communicate()[1] == (
      f"workdir {str(folder)!r} is in use by process {holder.pid} on "
      f"{os.uname().nodename}: wait until that has ended, stop it, or give "
      "another --workdir\n"
    )
    with refused(writing.Refused, f"is in use by process {holder.pid}"):
      writing.hold(folder)
    holder.kill()
    holder.communicate()
    assert (folder / ".holder").exists()
    writing.hold(folder).close()
    assert not (folder / ".holder").exists()


def test_what_a_dead_process_left_unfinished_is_removed(tmp_path):
  (tmp_path / ".beside-a.json").write_text("{")
  (tmp_path / ".beside-x" / "y").mkdir(parents=True)
  inner = tmp_path / "2" / ".beside-b.json"
  inner.parent.mkdir()
  with writing.hold(inner.parent):  # another process's run
    inner.write_text("{")
    writing.hold(tmp_path).close()
    assert inner.exists()
  shutil.rmtree(inner.parent)
  assert not [p for p in tmp_path.iterdir() if writing.is_result(p)]
  assert not list(tmp_path.glob(".beside*"))


# --- hashes -------------------------------------------------------------------


def test_digests_of_files_and_folders(tmp_path):
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "a").write_bytes(b"")
  (tmp_path / "b").write_bytes(b"abc")
  found = writing.digests("text", [tmp_path / "in", tmp_path / "b"])
  assert list(found) == ["text a", "text b"]
  assert found["text a"].startswith("e3b0c44298fc1c149afbf4c8996fb924")
  assert found["text b"].startswith("ba7816bf8f01cfea414140de5dae2223")


@pytest.mark.parametrize("done", [False, True])
def test_ctrl_c_at_the_last_rename_stays_ctrl_c(monkeypatch, tmp_path, done):
  """Before it nothing is left, after it the whole folder."""
  real = pathlib.Path.rename

  def rename(path, target):
    if done:
      real(path, target)
    raise KeyboardInterrupt

  monkeypatch.setattr(pathlib.Path, "rename", rename)
  with pytest.raises(KeyboardInterrupt):
    with new_folder(tmp_path / "model") as folder:
      (folder / "file").write_text("all of it")
  left = [str(x.relative_to(tmp_path)) for x in tmp_path.rglob("*")]
  assert sorted(left) == (["model", "model/file"] if done else [])
