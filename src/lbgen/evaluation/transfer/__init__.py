"""Transfer: backbones on downstream data sets, by a linear probe, by fine-tuning, from few images."""
