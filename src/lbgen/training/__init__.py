"""Code shared by the training stages: processes and devices, loggers, lines of metrics."""
