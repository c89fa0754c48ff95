"""The Gated DeltaNet layer of transformers with the weights of ours."""

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import neumann_jax
from experiments.peers import gpu

_MODULE = "transformers.models.qwen3_5.modeling_qwen3_5"
_RULE = "torch_chunk_gated_delta_rule"
# Of ours to theirs: transposed, because torch stores [out, in].
_LINEAR = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")


def missing(*packages: str) -> str | None:
  """Why the layer cannot be timed here, as a clause, or None."""
  for package in ("transformers", *packages):
    reason = gpu.missing(package)
    if reason is not None:
      return reason
  return None


def layer(
  block: neumann_jax.GatedDeltaNet,  # ours, whose weights it gets
  device: str = "cuda",  # torch's name of where it goes
) -> Any:
  """transformers' Qwen3_5GatedDeltaNet in bfloat16, gates float32."""
  torch = importlib.import_module("torch")
  config = importlib.import_module("transformers").Qwen3_5TextConfig(
    hidden_size=block.config.hidden_size,
    linear_num_key_heads=block.config.linear_num_key_heads,
    linear_num_value_heads=block.config.linear_num_value_heads,
    linear_key_head_dim=block.config.linear_key_head_dim,
    linear_value_head_dim=block.config.linear_value_head_dim,
    linear_conv_kernel_dim=block.config.linear_conv_kernel_dim,
    num_hidden_layers=1,
    layer_types=["linear_attention"],
  )
  with torch.device("meta"):
    theirs = importlib.import_module(_MODULE).Qwen3_5GatedDeltaNet(config, 0)
  weights = {
    f"{name}.weight": getattr(block, name).kernel[...].T for name in _LINEAR
  }
  weights |= {
    "conv1d.weight": block.conv1d[...].T[:, None],
    "norm.weight": block.norm.weight[...],
    "A_log": block.A_log[...],
    "dt_bias": block.dt_bias[...],
  }
  with torch.no_grad():
    tensors = {
      name: gpu.shared(x).to(device).clone() for name, x in weights.items()
    }
    theirs.load_state_dict(tensors, assign=True)
  return theirs.eval()


def forward(theirs: Any, *, fla: bool) -> Callable[[Any], Any]:
  """The prefill x -> y, torch tensors, by fla's kernels or in torch alone."""
  torch = importlib.import_module("torch")

  def run(x: Any) -> Any:
    with torch.inference_mode(), contextlib.nullcontext() if fla else _plain():
      return theirs(x)

  return run


@contextlib.contextmanager
def _plain() -> Iterator[None]:
  """Takes the rule that transformers falls back to where fla is missing."""
  module = importlib.import_module(_MODULE)
  taken = getattr(module, _RULE)
  setattr(module, _RULE, inspect.unwrap(taken))
  try:
    yield
  finally:
    setattr(module, _RULE, taken)
