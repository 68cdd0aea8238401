"""Reports of a run: lines at its start and end, estimated cost, curves and pictures in a logger, the adapter's card."""
