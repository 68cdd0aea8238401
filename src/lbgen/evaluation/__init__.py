"""What a backbone is worth: how it transfers to other data sets, and what it is biased to."""
