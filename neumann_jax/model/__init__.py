"""The hybrid text model: decoder layers, their stack, the language model."""

from neumann_jax.model.language_model import LanguageModel as LanguageModel

__all__ = ("LanguageModel",)
