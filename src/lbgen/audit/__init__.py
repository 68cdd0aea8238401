"""The audit finds shortcuts, cues other than the object that predict the label, in any labelled image dataset."""
