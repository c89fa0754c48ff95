"""How a picture was degraded, with what noise: it becomes an observation."""
