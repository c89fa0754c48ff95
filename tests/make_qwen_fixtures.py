"""Writes tests/fixtures/qwen_*.npz: what transformers computes on the CPU.

  python -m tests.make_qwen_fixtures

needs torch and transformers (5.17 wrote the committed files). Each file is a
small random model as `save_pretrained` stores it, and what it does to random
tokens: logits of a prefill and of single tokens after it, caches after both,
outputs of the blocks, logits of a padded batch. Decay is slow, as in trained
models.
"""

import json
import pathlib
import tempfile

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
PREFILL, DECODED = 20, 32
BLOCKS = (0, 3)  # layers whose mixer and cache are recorded: one of each kind
PADDING = ((5, 0), (0, 3))  # left and right of each row of the padded batch

# Width and depth of one period; head ratios above 1 in both kinds of layers.
SMALL = {
  "vocab_size": 48,
  "hidden_size": 32,
  "num_hidden_layers": 4,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 16,
  "linear_num_key_heads": 2,
  "linear_num_value_heads": 4,
  "linear_key_head_dim": 8,
  "linear_value_head_dim": 12,
  "max_position_embeddings": 512,
  "pad_token_id": None,
  "rope_parameters": {
    "rope_type": "default",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.25,
  },
}
EXPERTS = {
  "num_experts": 5,
  "num_experts_per_tok": 2,
  "moe_intermediate_size": 12,
  "shared_expert_intermediate_size": 16,
}
DENSE = {"intermediate_size": 40}
FAMILIES = {
  "qwen3_5_text": {**DENSE, "tie_word_embeddings": True},
  "qwen3_5_moe_text": EXPERTS,
  "qwen3_next": {
    **DENSE,
    **EXPERTS,
    "attention_bias": True,
    "mlp_only_layers": [1],
    "norm_topk_prob": False,
  },
}


def random_model(family, *, seed=0, **changes):
  """A model of the family with gates that forget slowly, in float32."""
  torch.manual_seed(seed)
  options = SMALL | FAMILIES[family] | changes
  config = transformers.AutoConfig.for_model(family, **options)
  model = transformers.AutoModelForCausalLM.from_config(config)
  for name, param in model.named_parameters():
    param.data.copy_(_draw(name, param))
  return model.float().eval()


def _draw(name, param):
  """Values on a coarse grid, so that they compress."""
  if name.endswith("A_log"):
    return torch.log(torch.empty_like(param).uniform_(0.001, 0.01))
  if name.endswith("dt_bias"):
    return torch.empty_like(param).uniform_(0.5, 1.5)
  if "norm" in name:
    draw = param + torch.empty_like(param).uniform_(-0.3, 0.3)
  else:
    draw = torch.randn_like(param) * (0.3 if "conv1d" in name else 0.1)
  return torch.round(draw * 32) / 32


def directory(model):
  """What `save_pretrained` writes: config, and tensors by name."""
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    return config, load_file(pathlib.Path(folder) / "model.safetensors")


@torch.no_grad()
def record(model, *, seed=0, prefill=PREFILL, decoded=DECODED):
  """Tokens, and what the model computes from them, as numpy arrays."""
  rng = np.random.default_rng(seed)
  size = model.config.vocab_size
  tokens = rng.integers(0, size, (2, prefill + decoded), dtype=np.int32)
  found = {"tokens": tokens}
  layers = model.model.layers
  hooks = [_watch(layers[i], i, found) for i in BLOCKS]
  out = model(torch.tensor(tokens[:, :prefill]).long(), use_cache=True)
  for hook in hooks:
    hook.remove()
  found |= _cache(out.past_key_values, "prefill")
  logits = [out.logits.numpy()]
  for t in range(prefill, prefill + decoded):
    token = torch.tensor(tokens[:, t : t + 1]).long()
    out = model(token, past_key_values=out.past_key_values, use_cache=True)
    logits.append(out.logits.numpy())
  found |= _cache(out.past_key_values, "decode")
  found["logits"] = np.concatenate(logits, axis=1)
  return found | _padded(model, tokens[:, :prefill])


def _watch(layer, index, found):
  """Records what the token mixer of a layer reads and returns."""
  mixer = getattr(layer, "linear_attn", None) or layer.self_attn

  def hook(module, args, kwargs, out):
    out = out[0] if isinstance(out, tuple) else out
    found[f"block{index}_input"] = kwargs["hidden_states"].numpy().copy()
    found[f"block{index}_output"] = out.numpy().copy()

  return mixer.register_forward_hook(hook, with_kwargs=True)


def _cache(cache, when):
  found = {}
  for i in BLOCKS:
    layer = cache.layers[i]
    if hasattr(layer, "recurrent_states"):
      parts = {
        "conv": layer.conv_states[0],
        "recurrent": layer.recurrent_states[0],
      }
    else:
      parts = {"keys": layer.keys, "values": layer.values}
    for name, part in parts.items():
      found[f"{when}{i}_{name}"] = part.numpy().copy()
  return found


def _padded(model, tokens):
  """Logits of rows that are padded, each on its own side."""
  length = tokens.shape[1] + max(map(sum, PADDING))
  padded, mask = np.zeros((2, 2, length), np.int32)
  for row, (left, right) in enumerate(PADDING):
    real = slice(left, length - right)
    count = len(range(*real.indices(length)))
    padded[row, real] = np.resize(tokens[row], count)
    mask[row, real] = 1
  logits = model(
    torch.tensor(padded).long(), attention_mask=torch.tensor(mask).long()
  ).logits.numpy()
  return {
    "padded_tokens": padded,
    "padded_mask": mask,
    "padded_logits": logits,
  }


def main():
  """Writes one file a family."""
  FIXTURES.mkdir(exist_ok=True)
  for family in FAMILIES:
    model = random_model(family)
    config, tensors = directory(model)
    named = {f"tensor/{name}": tensor for name, tensor in tensors.items()}
    path = FIXTURES / f"qwen_{family}.npz"
    np.savez_compressed(
      path, config=json.dumps(config), **named, **record(model)
    )
    print(path.name, path.stat().st_size)


if __name__ == "__main__":
  main()
