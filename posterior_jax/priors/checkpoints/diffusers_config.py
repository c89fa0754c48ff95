"""What the JSON files of diffusers say of a `UNet2DModel` and its schedule."""

from collections.abc import Mapping
from typing import Any

import msgspec

from posterior_jax.foreign_files import json_file
from posterior_jax.foreign_files.messages import clean, shown
from posterior_jax.priors.nets.ddpm_unet import DDPMConfig
from posterior_jax.priors.parametrisation import EDM, VE, VP, Parametrisation


class _Network(msgspec.Struct):
  """A config.json, with diffusers' defaults for what it does not say."""

  in_channels: int = 3
  out_channels: int = 3
  time_embedding_type: str = "positional"
  time_embedding_dim: int | None = None
  freq_shift: int = 0
  flip_sin_to_cos: bool = True
  down_block_types: tuple[str, ...] = ("DownBlock2D", *("AttnDownBlock2D",) * 3)
  up_block_types: tuple[str, ...] = (*("AttnUpBlock2D",) * 3, "UpBlock2D")
  block_out_channels: tuple[int, ...] = (224, 448, 672, 896)
  layers_per_block: int = 2
  downsample_padding: int = 1
  downsample_type: str = "conv"
  upsample_type: str = "conv"
  attention_head_dim: int | None = 8
  norm_num_groups: int = 32
  attn_norm_num_groups: int | None = None
  norm_eps: float = 1e-5
  resnet_time_scale_shift: str = "default"
  add_attention: bool = True


class _Schedule(msgspec.Struct):
  """A scheduler_config.json, in so far as it is computed."""

  prediction_type: str = "epsilon"
  sigma_data: float = 0.5
  beta_start: float = VP.beta_start
  beta_end: float = VP.beta_end
  num_train_timesteps: int = VP.steps


# Options that are computed at these values alone.
_ONLY: dict[str, tuple[Any, ...]] = {
  "_class_name": ("UNet2DModel",),
  "act_fn": ("silu", "swish"),
  "center_input_sample": (False,),
  "class_embed_type": (None,),
  "downsample_padding": (0, 1),
  "downsample_type": ("conv", "resnet"),
  "mid_block_scale_factor": (1,),
  "mid_block_type": ("UNetMidBlock2D",),
  "num_class_embeds": (None,),
  "resnet_time_scale_shift": ("default", "scale_shift"),
  "time_embedding_type": ("positional", "fourier"),
  "upsample_type": ("conv", "resnet"),
}
_WHOLE = (
  "in_channels",
  "out_channels",
  "layers_per_block",
  "norm_num_groups",
  "freq_shift",
)
# Without influence on what a trained network computes.
_IGNORED = ("sample_size", "dropout", "num_train_timesteps")

# Kind of a block: whether it has attention, and how it changes the sides (None:
# as downsample_type or upsample_type say).
_DOWN = {
  "DownBlock2D": (False, "conv"),
  "AttnDownBlock2D": (True, None),
  "ResnetDownsampleBlock2D": (False, "resnet"),
}
_UP = {
  "UpBlock2D": (False, "conv"),
  "AttnUpBlock2D": (True, None),
  "ResnetUpsampleBlock2D": (False, "resnet"),
}
_OURS = {"conv": "conv", "resnet": "residual"}
# Of scheduler_config.json, ours on the right.
_BETAS = {
  "linear": "linear",
  "scaled_linear": "scaled_linear",
  "squaredcos_cap_v2": "cosine",
}


def read_network(
  said: Mapping[str, Any], parametrisation: Parametrisation
) -> DDPMConfig:
  """The shape that a config.json describes.

  Args:
    said: the file.
    parametrisation: what the network was trained to answer.

  Returns:
    The shape.

  Raises:
    ValueError: for an option that is not known or not computed here, named.
  """
  _check(said)
  c = json_file.typed(said, _Network)
  widths = c.block_out_channels
  down = [_kind(_DOWN, name) for name in c.down_block_types]
  # The coarsest comes first, as in the network.
  up = [_kind(_UP, name) for name in c.up_block_types][::-1]
  if not widths or not 0 < c.norm_eps < 1:
    raise ValueError(
      "block_out_channels of config.json must name a scale, and norm_eps lie "
      f"in (0, 1); got {len(widths)} scales and {c.norm_eps}"
    )
  fourier = c.time_embedding_type == "fourier"
  if fourier != isinstance(parametrisation, VE):
    raise ValueError(
      "time_embedding_type 'fourier' and ScoreSdeVeScheduler go together, got "
      f"{c.time_embedding_type!r} and {type(parametrisation).__name__}"
    )
  groups, scales = c.norm_num_groups, c.resnet_time_scale_shift
  middle = c.attn_norm_num_groups
  if middle is None:
    middle = groups if scales == "default" else 0
  return DDPMConfig(
    widths=widths,
    blocks=c.layers_per_block,
    attention=tuple(attention for attention, _ in down),
    attention_up=tuple(attention for attention, _ in up),
    down=tuple(_OURS[how or c.downsample_type] for _, how in down[:-1]),
    up=tuple(_OURS[how or c.upsample_type] for _, how in up[1:]),
    features=(2 if fourier else 1) * widths[0],
    embedding=c.time_embedding_dim or 4 * widths[0],
    attention_middle=c.add_attention,
    head_width=c.attention_head_dim,
    channels=c.in_channels,
    outputs=c.out_channels,
    fourier=fourier,
    cos_first=c.flip_sin_to_cos and not fourier,
    shift=c.freq_shift,
    scale_shift=scales == "scale_shift",
    padding=c.downsample_padding,
    groups=groups,
    middle_groups=middle,
    epsilon=c.norm_eps,
    parametrisation=parametrisation,
  )


def read_schedule(said: Mapping[str, Any]) -> Parametrisation:
  """The parametrisation that a scheduler_config.json describes.

  Args:
    said: the file.

  Returns:
    VP of any scheduler with a beta_schedule, EDM of the EDM schedulers, VE of
    ScoreSdeVeScheduler.

  Raises:
    ValueError: for another scheduler or schedule, named.
  """
  name = clean(str(said.get("_class_name")))
  c = json_file.typed(said, _Schedule)
  prediction = clean(c.prediction_type)
  if name == "ScoreSdeVeScheduler":
    return VE()
  if name.startswith("EDM") and prediction == "epsilon":
    return EDM(c.sigma_data)
  if "beta_schedule" not in said:
    raise ValueError(
      "the scheduler must be one with a beta_schedule, ScoreSdeVeScheduler or "
      f"an EDM scheduler that predicts epsilon; got {name} and {prediction}"
    )
  for key in ("trained_betas", "rescale_betas_zero_snr"):
    if said.get(key):
      raise ValueError(
        f"{key} of {name} must not be set, got {shown(said[key])}"
      )
  if (betas := said["beta_schedule"]) not in tuple(_BETAS):
    raise ValueError(
      f"beta_schedule of {name} must be one of {', '.join(_BETAS)}, got "
      f"{shown(betas)}"
    )
  return VP(
    schedule=_BETAS[betas],
    beta_start=c.beta_start,
    beta_end=c.beta_end,
    steps=c.num_train_timesteps,
    prediction=prediction,
  )


def _check(said: Mapping[str, Any]) -> None:
  """Refuses options that are unknown or not computed here."""
  known = {*_Network.__struct_fields__, *_ONLY, *_IGNORED}
  for key, value in said.items():
    if key not in known and not key.startswith("_"):
      raise ValueError(f"config.json has {shown(key)}, which is not known here")
    if key in _ONLY and value not in _ONLY[key]:
      raise ValueError(
        f"{key} of config.json must be one of "
        f"{', '.join(map(repr, _ONLY[key]))}, got {shown(value)}"
      )
    if key in _WHOLE and not isinstance(value, int):
      raise ValueError(
        f"{key} of config.json must be a whole number, got {shown(value)}"
      )


def _kind(
  table: Mapping[str, tuple[bool, str | None]], name: str
) -> tuple[bool, str | None]:
  if name not in table:
    raise ValueError(
      f"the block types of config.json must be of {', '.join(table)}, got "
      f"{shown(name)}"
    )
  return table[name]
