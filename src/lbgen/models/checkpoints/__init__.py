"""The forms of a generator's weights: folder, revision and variant on the hub, single file."""
