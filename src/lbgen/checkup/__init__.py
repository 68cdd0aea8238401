"""Checking what this machine has and lacks for a run."""
