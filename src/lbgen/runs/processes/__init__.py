"""Starting the workers of a run: processes of this machine, and Ray."""
