"""Text from a model: tokenizers, prompts, sampling, the compiled loop."""

from neumann_jax.generation.api import generate as generate
from neumann_jax.generation.api import stream as stream
from neumann_jax.generation.chat_turns import ChatTokens as ChatTokens
from neumann_jax.generation.chat_turns import chat_tokens as chat_tokens
from neumann_jax.generation.decoding import Generated as Generated
from neumann_jax.generation.sampling_spec import SamplingSpec as SamplingSpec
from neumann_jax.generation.text import Texts as Texts
from neumann_jax.generation.text import generate_text as generate_text
from neumann_jax.generation.text import stream_text as stream_text
from neumann_jax.generation.tokenizer import Tokenizer as Tokenizer
from neumann_jax.generation.tokenizer import load_tokenizer as load_tokenizer

__all__ = (
  "ChatTokens",
  "Generated",
  "SamplingSpec",
  "Texts",
  "Tokenizer",
  "chat_tokens",
  "generate",
  "generate_text",
  "load_tokenizer",
  "stream",
  "stream_text",
)
