"""Configuration of the stages: dataclasses whose fields are flags, and YAML recipes that replace their defaults."""
