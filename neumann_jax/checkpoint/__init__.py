"""Models from and to directories: of Hugging Face, and of Orbax."""

from neumann_jax.checkpoint.api import load as load
from neumann_jax.checkpoint.api import save as save
from neumann_jax.checkpoint.hf_config import read_config as read_config
from neumann_jax.checkpoint.orbax import restore_orbax as restore_orbax
from neumann_jax.checkpoint.orbax import save_orbax as save_orbax

__all__ = ("load", "read_config", "restore_orbax", "save", "save_orbax")
