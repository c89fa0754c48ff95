"""Published posterior samplers in the protocol of `posterior_jax.run`.

  config = pj.baselines.DPSConfig.published("motion_blur")
  samples, info = pj.run(pj.baselines.dps(config), denoise, observation, key)

Every method is a frozen dataclass of settings with `published(task)`, what its
paper or code uses, and `tuned()`, one setting for all tasks, and a function
from settings to a `Sampler`. States are variance exploding, x = x0 + sigma n;
each docstring says how the published algorithm reads in these variables.
"""

from posterior_jax.baselines.tasks import TASKS as TASKS
from posterior_jax.baselines.tasks import Task as Task

__all__ = ("TASKS", "Task")
