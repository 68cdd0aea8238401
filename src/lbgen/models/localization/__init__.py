"""Where in a generated image its category is, from the generator's own attention."""
