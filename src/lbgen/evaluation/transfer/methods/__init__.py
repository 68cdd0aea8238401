"""How a backbone is measured on a data set: a linear probe on its features, or fine-tuning."""
