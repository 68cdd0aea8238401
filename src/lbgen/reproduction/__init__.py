"""The paper's tables in small, on the micro world: sets of images, backbones trained on them, what those are worth."""
