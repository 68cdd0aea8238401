"""The forms that the weights of a generator come in: folder, revision and variant on the hub, single file."""
