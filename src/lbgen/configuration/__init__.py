"""How a stage is told what to do: dataclasses as flags, YAML recipes as their defaults."""
