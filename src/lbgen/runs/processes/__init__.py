"""Starting the workers of a run as processes on this machine or as Ray actors."""
