"""What every stage that trains shares: processes and devices, loggers, the lines of metrics."""
