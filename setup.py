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
PLOTS += ["pandas>=2.2"]  # every experiment's tables

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
  packages=setuptools.find_packages(
    include=["neumann_jax*", "posterior_jax*", "experiments*", "configs*"]
  ),
  package_data={"posterior_jax": ["assets/*"], "neumann_jax": ["assets/*"]},
  install_requires=[
    "absl-py>=2.1",
    "chex>=0.1.90",
    "flax>=0.12",
    "jax>=0.10,<0.13",
    "ml_collections>=1.0",
    "ml_dtypes>=0.5",
    "numpy>=2.0",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.11",
    "safetensors>=0.5",
    "scipy>=1.13",
    "tqdm>=4.66",
  ],
  extras_require={
    "plots": PLOTS,
    "test": [
      *PLOTS,
      LIBTPU,
      "mypy>=2.4,<3",
      "nbformat>=5.10",
      "pytest>=8.0",
      "pytest-xdist>=3.6",
      "PyWavelets>=1.7",
      "ruff>=0.17,<0.18",
      "tokenizers>=0.20",
    ],
    "hf": ["tokenizers>=0.20"],
    "tensorboard": ["tensorboard>=2.16"],
    "tpu": [LIBTPU],
    "cuda": ["jax[cuda13]>=0.10,<0.13"],
  },
  classifiers=[
    "License :: OSI Approved :: Apache Software License",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Topic :: Scientific/Engineering",
  ],
)
