"""Transfer of backbones to downstream data sets, by linear probes and fine-tuning, also with few images."""
