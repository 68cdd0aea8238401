"""The methods of measuring a backbone on a data set: a linear probe on its features, or fine-tuning."""
