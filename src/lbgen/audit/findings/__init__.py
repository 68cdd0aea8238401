"""What the measures say, for people and scripts: the tests, the verdict in words, and one row an image."""
