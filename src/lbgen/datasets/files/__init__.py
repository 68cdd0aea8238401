"""How a reader gets at the files of its dataset, on this machine or on object storage."""
