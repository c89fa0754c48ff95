"""Metadata of the distribution `neumann-posterior`; tools live in pyproject."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
  r'__version__ = "([^"]+)"', (ROOT / "neumann_jax/__init__.py").read_text()
).group(1)

# The TPU compiler, which needs no TPU: kernels are compiled by the tests.
LIBTPU = 'jax[tpu]>=0.10,<0.13; sys_platform == "linux" and '
LIBTPU += 'platform_machine == "x86_64"'
PLOTS = ["matplotlib>=3.8", "scikit-image>=0.24", "scikit-learn>=1.4"]
PLOTS += ["filelock>=3.12", "pandas>=2.2"]  # of every experiment's folder
DOCS = [
  "latex2mathml>=3.77",
  "mkdocs>=1.6,<2",
  "mkdocs-material>=9.5",
  "mkdocstrings[python]>=1.0",
]

setuptools.setup(
  name="neumann-posterior",
  version=VERSION,
  description=(
    "Gated DeltaNet's chunk inverse by matrix products alone, and calibrated "
    "diffusion posterior sampling, in JAX"
  ),
  long_description=(ROOT / "README.md").read_text(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  # A wheel holds the libraries alone: `experiments` and `configs` are names too
  # common for somebody else's site-packages, and run from a clone. Naming
  # the root as "" makes an editable install put the whole clone on sys.path.
  packages=setuptools.find_packages(include=["neumann_jax*", "posterior_jax*"]),
  package_dir={"": "."},
  package_data={
    "neumann_jax": ["py.typed", "assets/*"],
    "posterior_jax": ["py.typed", "assets/*"],
  },
  install_requires=[
    "absl-py>=2.1",
    "chex>=0.1.90",
    "flax>=0.12",
    "jax>=0.10,<0.13",
    "ml_collections>=1.0",
    "ml_dtypes>=0.5",
    "msgspec>=0.19",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.11",
    "safetensors>=0.5",
    "scipy>=1.13",
    "tqdm>=4.66",
  ],
  extras_require={
    "plots": PLOTS,
    "docs": DOCS,
    "test": [
      *PLOTS,
      LIBTPU,
      "flatbuffers>=24.3",  # of jax.export, to write a program
      "hypothesis>=6.100",
      "import-linter>=2.17,<3",
      "mypy>=2.4,<3",
      "nbformat>=5.10",
      "pytest>=8.0",
      "pytest-xdist>=3.6",
      "PyWavelets>=1.7",
      "ruff>=0.17,<0.18",
      "jinja2>=3.1.6",
      "tokenizers>=0.20",
    ],
    # Of tests/test_finetune_parity.py alone: the versions it was run with.
    "parity": ["peft>=0.21", "torch>=2.14", "transformers>=5.24"],
    # Older releases of jinja2 have known ways out of its sandbox.
    "hf": ["jinja2>=3.1.6", "tokenizers>=0.20"],
    "tensorboard": ["tensorboard>=2.16"],
    "tpu": [LIBTPU],
    "cuda": ["jax[cuda13]>=0.10,<0.13"],
  },
  classifiers=[
    "License :: OSI Approved :: Apache Software License",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering",
  ],
)
