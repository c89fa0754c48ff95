"""Tuning beside the same loop in PyTorch and PEFT, from one checkpoint.

The checkpoint is made by transformers, with a tokenizer and a chat template.
Each document goes through transformers alone, so that packing is compared too.
Without the packages of the extra "parity" the tests skip; with PARITY=1, as in
the nightly workflow, they fail.
"""

import importlib
import json
import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import finetune as config
from experiments.data import packed_rows
from experiments.finetune import step, study
from experiments.harness import command_line, record
from neumann_jax import Execution, RuleOptions, checkpoint, tuning
from tests import oracles

STEPS = 50
TEMPLATE = (
  "{% for message in messages %}<|im_start|>{{ message.role }}\n"
  "{{ message.content }}<|im_end|>\n{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = 300  # bytes, a few merges and the marks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def packages():
  needed = os.environ.get("PARITY") == "1"
  load = importlib.import_module if needed else pytest.importorskip
  found = [load(name) for name in ("torch", "transformers", "peft")]
  found[0].set_num_threads(1)  # small products: more threads only wait
  return found


@pytest.fixture(scope="module")
def folder(packages, tmp_path_factory):
  """A checkpoint as transformers leaves it, and conversations beside it."""
  _, transformers, _ = packages
  from tests import make_qwen_fixtures

  path = tmp_path_factory.mktemp("tuned") / "base"
  model = make_qwen_fixtures.random_model(
    "qwen3_5_text", vocab_size=VOCABULARY, initializer_range=0.1
  )
  tokenizer = _tokenizer(transformers)
  end = tokenizer.convert_tokens_to_ids("<|im_end|>")
  model.config.eos_token_id = model.generation_config.eos_token_id = end
  model.save_pretrained(path)
  tokenizer.save_pretrained(path)
  rng = np.random.default_rng(0)
  lines = []
  for _ in range(24):
    a, b = (int(x) for x in rng.integers(0, 10, 2))
    messages = [
      {"role": "user", "content": f"{a} + {b}?"},
      {"role": "assistant", "content": f"It is {a + b}."},
      {"role": "user", "content": "And twice that?"},
      {"role": "assistant", "content": f"{2 * (a + b)}"},
    ]
    lines.append(json.dumps({"messages": messages[: 2 * (1 + a % 2)]}))
  (path.parent / "chats.jsonl").write_text("\n".join(lines))
  return path


def _tokenizer(transformers):
  import tokenizers

  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {x: i for i, x in enumerate(alphabet)} | {"It": 256}
  bare = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("I", "t")]))
  bare.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  bare.decoder = tokenizers.decoders.ByteLevel()
  made = transformers.PreTrainedTokenizerFast(
    tokenizer_object=bare, eos_token="<|im_end|>"
  )
  made.add_tokens(["<|im_start|>"], special_tokens=True)
  made.chat_template = TEMPLATE
  return made


def settings_of(folder, **changes):
  given = config.get_config("debug").to_dict()
  given |= {
    "checkpoint": str(folder),
    "data": str(folder.parent / "chats.jsonl"),
    "steps": STEPS,
    "save_every": STEPS,
    "length": 160,
  } | changes
  return command_line.to_settings(study.Settings, given)


def tuned(settings, path):
  """What a run leaves: its table and its folder."""
  task = study.prepare(settings)
  with record.Run(path) as run:
    study.finetune(task, run)
    return task, run.frame("training"), run.folder


def unpacked(rows):
  """Each document in a row of its own; what pads it comes after it."""
  tokens, wanted = [], []
  for row in zip(*rows):
    for segment in np.unique(row[1][row[2]]):
      own = np.flatnonzero(row[1] == segment)
      pad = (0, rows.tokens.shape[1] - len(own))
      tokens.append(np.pad(row[0][own], pad))
      wanted.append(np.pad(row[3][own[:-1]], pad))
  return np.array(tokens), np.array(wanted)


def torch_curve(torch, model, params, task, table):
  """Losses of the same steps; every document alone, in one AdamW."""
  settings = task.settings
  optimiser = torch.optim.AdamW(
    params, betas=(0.9, settings.optim.b2), eps=1e-8, weight_decay=0.0
  )
  losses = []
  for number in range(STEPS):
    places = packed_rows.chosen(
      number,
      batch=settings.rows,
      rows=len(task.rows.tokens),
      seed=settings.seed,
    )
    tokens, wanted = unpacked(task.rows.take(places))
    logits = model(torch.tensor(tokens).long()).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(
      logits[torch.tensor(wanted)],
      torch.tensor(tokens[:, 1:][wanted]).long(),
    )
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(params, settings.optim.clip)
    optimiser.param_groups[0]["lr"] = float(table["rate"][number])
    optimiser.step()
    losses.append(float(loss.detach()))
  return np.array(losses)


def test_adapters(packages, folder, tmp_path):
  torch, transformers, peft = packages
  settings = settings_of(folder, mesh={"data": 1, "fsdp": 1, "tensor": 1})
  task, table, made = tuned(settings, tmp_path / "run")
  # PEFT begins with our matrices A, which were drawn.
  base = checkpoint.load(folder)
  rngs = nnx.Rngs(jax.random.fold_in(jax.random.key(settings.seed), 1))
  fresh = tuning.add_adapters(base, settings.lora, rngs=rngs)
  tuning.save_adapters(fresh, tmp_path / "fresh")
  load = transformers.AutoModelForCausalLM.from_pretrained
  model = peft.PeftModel.from_pretrained(
    load(folder), tmp_path / "fresh", is_trainable=True
  )
  params = [p for p in model.parameters() if p.requires_grad]
  assert len(params) == 2 * len(tuning.adapters(fresh))
  curve = torch_curve(torch, model, params, task, table)
  gap = np.abs(curve - table["token_loss"])
  print(f"loss {curve[0]:.4f} to {curve[-1]:.4f}, largest gap {gap.max():.2e}")
  assert curve[-1] < curve[0] - 0.5
  assert gap.max() < 1e-4
  # What the run left, in PEFT and here.
  again = peft.PeftModel.from_pretrained(load(folder), made / study.ADAPTER)
  tokens = task.rows.tokens[:1, :48]
  with torch.no_grad():
    want = again.eval()(torch.tensor(tokens).long()).logits.numpy()
  ours = tuning.load_adapters(base, made / study.ADAPTER)
  for adapted in (ours, tuning.merge_adapters(ours)):
    logits, _ = nnx.jit(lambda m, t: m(t))(adapted, tokens)
    oracles.assert_close(logits, want, oracles.PARITY)
  plain, _ = nnx.jit(lambda m, t: m(t))(base, tokens)
  assert np.abs(plain - want).max() > 0.1


def test_adapters_of_peft_are_read(packages, folder, tmp_path):
  """Written by PEFT: some names, rank-stabilised, matrices not zero."""
  torch, transformers, peft = packages
  torch.manual_seed(0)
  theirs = peft.get_peft_model(
    transformers.AutoModelForCausalLM.from_pretrained(folder),
    peft.LoraConfig(
      r=3,
      lora_alpha=5,
      use_rslora=True,
      target_modules=["q_proj", "in_proj_qkv", "down_proj"],
      init_lora_weights=False,
      task_type="CAUSAL_LM",
    ),
  )
  theirs.save_pretrained(tmp_path / "theirs")
  tokens = np.arange(40, dtype=np.int32)[None]
  with torch.no_grad():
    want = theirs.eval()(torch.tensor(tokens).long()).logits.numpy()
  base = checkpoint.load(folder, Execution(rule=RuleOptions(chunk_size=16)))
  ours = tuning.load_adapters(base, tmp_path / "theirs")
  logits, _ = nnx.jit(lambda m, t: m(t))(ours, tokens)
  oracles.assert_close(logits, want, oracles.PARITY)


@pytest.fixture
def experts(packages, request, tmp_path):
  """Routed experts and a shared one; Qwen3-Next has a layer with neither."""
  from tests import make_qwen_fixtures

  make_qwen_fixtures.random_model(request.param).save_pretrained(
    tmp_path / "base"
  )
  return tmp_path / "base"


TOKENS = np.arange(40, dtype=np.int32)[None]


def logits_of(torch, model):
  with torch.no_grad():
    return model.eval()(torch.tensor(TOKENS).long()).logits.numpy()


def our_logits(model):
  return nnx.jit(lambda m: m(TOKENS))(model)[0]


@pytest.mark.parametrize(
  "experts, targets",
  [
    ("qwen3_next", "all-linear"),
    ("qwen3_next", ("up_proj", "o_proj")),
    ("qwen3_5_moe_text", "all-linear"),
  ],
  indirect=["experts"],
)
def test_adapters_beside_experts(packages, experts, tmp_path, targets):
  torch, transformers, peft = packages
  load = transformers.AutoModelForCausalLM.from_pretrained
  base = checkpoint.load(experts, Execution(rule=RuleOptions(chunk_size=16)))
  spec = tuning.LoraSpec(rank=3, alpha=6.0, targets=targets)
  ours = tuning.add_adapters(base, spec, rngs=nnx.Rngs(0))
  rng = np.random.default_rng(0)
  for each in tuning.adapters(ours):  # zeros as they are made
    shape = each.lora_b.shape
    each.lora_b[...] = jnp.float32(0.3 * rng.normal(size=shape))
  tuning.save_adapters(ours, tmp_path / "adapter")
  theirs = peft.PeftModel.from_pretrained(load(experts), tmp_path / "adapter")
  wanted = [name for name, _ in theirs.named_parameters() if ".lora_" in name]
  assert len(wanted) == 2 * len(tuning.adapters(ours))
  found = our_logits(ours)
  oracles.assert_close(found, logits_of(torch, theirs), oracles.PARITY)
  assert np.abs(found - our_logits(base)).max() > 0.1
  # As PEFT writes it again, and merged.
  theirs.save_pretrained(tmp_path / "theirs")
  again = tuning.load_adapters(base, tmp_path / "theirs")
  oracles.assert_close(our_logits(again), found, oracles.PARITY)
  merged = logits_of(torch, theirs.merge_and_unload())
  oracles.assert_close(found, merged, oracles.PARITY)


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_adapters_of_a_vision_language_folder(packages, family, tmp_path):
  """As Qwen3.5 is published: the class that the folder names, and the other."""
  torch, transformers, peft = packages
  folder = tmp_path / "base"
  _vision_language(transformers, family).save_pretrained(folder)
  base = checkpoint.load(folder, Execution(rule=RuleOptions(chunk_size=16)))
  spec = tuning.LoraSpec(rank=3, alpha=6.0)
  ours = tuning.add_adapters(base, spec, rngs=nnx.Rngs(0))
  rng = np.random.default_rng(0)
  for each in tuning.adapters(ours):  # zeros as they are made
    each.lora_b[...] = jnp.float32(0.3 * rng.normal(size=each.lora_b.shape))
  found = our_logits(ours)
  assert np.abs(found - our_logits(base)).max() > 0.1
  for kind, text_only in (("ImageTextToText", False), ("CausalLM", True)):
    path = tmp_path / kind
    tuning.save_adapters(ours, path, text_only=text_only)
    load = getattr(transformers, f"AutoModelFor{kind}").from_pretrained
    with warnings.catch_warnings(record=True) as said:
      warnings.simplefilter("always")
      theirs = peft.PeftModel.from_pretrained(load(folder), path)
    assert not [x for x in said if "adapter keys" in str(x.message)]
    oracles.assert_close(found, logits_of(torch, theirs), oracles.PARITY)
    theirs.save_pretrained(tmp_path / f"{kind}-theirs")
    again = tuning.load_adapters(base, tmp_path / f"{kind}-theirs")
    oracles.assert_close(our_logits(again), found, oracles.PARITY)


def _vision_language(transformers, family):
  from tests import make_qwen_fixtures

  text = make_qwen_fixtures.random_model(f"{family}_text").config.to_dict()
  for name in ("architectures", "dtype", "transformers_version"):
    text.pop(name, None)
  text["rope_parameters"] |= {
    "mrope_section": [1, 1, 0],
    "mrope_interleaved": True,
  }
  config = transformers.AutoConfig.for_model(
    family,
    text_config=text,
    vision_config={
      "depth": 1,
      "hidden_size": 32,
      "num_heads": 2,
      "intermediate_size": 32,
      "out_hidden_size": text["hidden_size"],
    },
    tie_word_embeddings=text["tie_word_embeddings"],
    image_token_id=44,
    video_token_id=45,
    vision_start_token_id=46,
    vision_end_token_id=47,
  )
  model = transformers.AutoModelForImageTextToText.from_config(config)
  for name, param in model.named_parameters():
    param.data.copy_(make_qwen_fixtures._draw(name, param))
  return model.float().eval()


def test_adapters_of_one_layer(packages, folder, tmp_path):
  """Written by PEFT for some of the layers, read and written again."""
  torch, transformers, peft = packages
  load = transformers.AutoModelForCausalLM.from_pretrained
  base = checkpoint.load(folder, Execution(rule=RuleOptions(chunk_size=16)))
  for name, targets in (
    ("few", {"target_modules": ["up_proj"], "layers_to_transform": [1]}),
    ("pattern", {"target_modules": r".*layers\.0\.mlp\.up_proj"}),
  ):
    theirs = peft.get_peft_model(
      load(folder),
      peft.LoraConfig(
        r=4, init_lora_weights=False, task_type="CAUSAL_LM", **targets
      ),
    )
    theirs.save_pretrained(tmp_path / name)
    ours = tuning.load_adapters(base, tmp_path / name)
    want = logits_of(torch, theirs)
    oracles.assert_close(our_logits(ours), want, oracles.PARITY)
    tuning.save_adapters(ours, tmp_path / f"{name}-ours")
    again = peft.PeftModel.from_pretrained(
      load(folder), tmp_path / f"{name}-ours"
    )
    oracles.assert_close(logits_of(torch, again), want, oracles.PARITY)
    assert np.abs(want - our_logits(base)).max() > 0.1


@pytest.mark.parametrize("experts", ["qwen3_next"], indirect=True)
def test_adapters_of_experts_are_refused(packages, experts, tmp_path):
  """Merged by PEFT, as the refusal says, they are read."""
  torch, transformers, peft = packages
  theirs = peft.get_peft_model(
    transformers.AutoModelForCausalLM.from_pretrained(experts),
    peft.LoraConfig(
      r=3,
      target_modules=["gate_proj", "up_proj", "down_proj"],
      init_lora_weights=False,
      task_type="CAUSAL_LM",
    ),
  )
  theirs.save_pretrained(tmp_path / "theirs")
  with oracles.refused(ValueError, "adapts routed experts .*merge it in PEFT"):
    tuning.load_adapters(checkpoint.load(experts), tmp_path / "theirs")
  want = logits_of(torch, theirs)
  theirs.merge_and_unload().save_pretrained(tmp_path / "merged")
  found = our_logits(checkpoint.load(tmp_path / "merged"))
  oracles.assert_close(found, want, oracles.PARITY)


def test_all_parameters(packages, folder, tmp_path):
  torch, transformers, _ = packages
  settings = settings_of(folder, tuning="full")
  task, table, made = tuned(settings, tmp_path / "run")
  load = transformers.AutoModelForCausalLM.from_pretrained
  model = load(folder)
  curve = torch_curve(torch, model, list(model.parameters()), task, table)
  gap = np.abs(curve - table["token_loss"])
  print(f"loss {curve[0]:.4f} to {curve[-1]:.4f}, largest gap {gap.max():.2e}")
  assert curve[-1] < curve[0] - 0.5
  assert gap.max() < 1e-4
  again, info = load(made / study.MODEL, output_loading_info=True)
  assert not any(info.values()), info
  tokens = task.rows.tokens[:1, :48]
  with torch.no_grad():
    want = again.eval()(torch.tensor(tokens).long()).logits.numpy()
  logits, _ = nnx.jit(lambda m, t: m(t))(
    checkpoint.load(made / study.MODEL), tokens
  )
  oracles.assert_close(logits, want, oracles.PARITY)
  tokenizer = transformers.AutoTokenizer.from_pretrained(made / study.MODEL)
  assert tokenizer.eos_token == "<|im_end|>"
  assert tokenizer.chat_template == TEMPLATE
  end = tokenizer.eos_token_id
  assert (
    again.generation_config.eos_token_id == end == again.config.eos_token_id
  )
  # What is learned of a conversation: the answers and the token that ends them.
  row = task.rows.take(np.array([0]))
  first = row.segments[0] == 0
  learned = row.tokens[0][1:][row.wanted[0] & first[1:]]
  assert learned[-1] == end and (learned == end).sum() in (1, 2)


def test_the_balance_loss(packages, tmp_path):
  """Of padded rows, in transformers' own words for it."""
  torch, _, _ = packages
  from tests import make_qwen_fixtures

  theirs = make_qwen_fixtures.random_model("qwen3_5_moe_text", seed=4)
  for name, param in theirs.named_parameters():
    if name.endswith("mlp.gate.weight"):  # uneven, or the loss is always K
      param.data *= 20
  theirs.save_pretrained(tmp_path / "experts")
  model = checkpoint.load(tmp_path / "experts")
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, model.config.vocab_size, (2, 24), dtype=np.int32)
  real = np.arange(24) < np.array([24, 15])[:, None]
  with torch.no_grad():
    want = theirs(
      torch.tensor(tokens).long(),
      attention_mask=torch.tensor(real).long(),
      output_router_logits=True,
    ).aux_loss
  _, routing = nnx.jit(
    lambda model, *given: model.routed_hidden_states(
      given[0], counted=given[1], segment_ids=given[2]
    )
  )(model, tokens, jnp.float32(real), (~real).astype(np.int32))
  found = tuning.balance_loss(routing)
  np.testing.assert_allclose(found, want, rtol=1e-5)
  assert abs(float(found) - model.config.num_experts_per_tok) > 1e-3
  plan = step.Plan(model.config, Execution(), None, None, 1.0, 8192)
  rows = packed_rows.Rows(tokens, (~real).astype(np.int32), real, real[:, 1:])
  _, count, balance = jax.jit(lambda p: step.losses(p, rows, plan))(
    step.named(model)
  )
  assert int(count) == real[:, 1:].sum()
  np.testing.assert_allclose(balance, want, rtol=1e-5)
