"""Access to the files of a dataset, on this machine or on object storage."""
