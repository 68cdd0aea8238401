"""The version of lbgen, which the records of runs hold."""

__version__ = "0.1.0"
