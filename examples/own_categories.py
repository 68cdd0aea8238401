"""From category names to an audited dataset, in Python: align, generate, verify, audit.

    python examples/own_categories.py [OUTPUT]

It runs on the micro world, on two CPU cores in a minute or two. For real images, change what is marked with (1), (2)
and (3), and have a GPU. Started again, it continues where it was stopped.
"""

import sys
from pathlib import Path

import lbgen

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/own-categories")
folder.mkdir(parents=True, exist_ok=True)

# One name a line. (1) Your categories; the micro world's generator knows twelve, of which these are four.
vocabulary = folder / "categories.txt"
vocabulary.write_text("fish\ncup\nkey\nhouse\n")

# Fine-tune the generator on the names alone. (2) The recipe "paper" for Stable Diffusion 1.5 and CLIP.
# (3) More updates: leave out max_steps for the number of the recipe. Six only show how it goes.
alignment = lbgen.AlignConfig.from_recipe(
    "microworld", output=folder / "alignment", vocabulary=vocabulary, max_steps=6, evaluation_images=16
)
trained = lbgen.align(alignment)

# Without a recipe, generation takes prompts, scheduler, steps and guidance over from the adapter's training.
generation = lbgen.GenerateConfig.from_recipe(
    None,
    generator=alignment.generator,
    adapter=trained.adapter,
    vocabulary=vocabulary,
    size=(64, 64),
    images_per_category=20,
    output=folder / "dataset",
)
lbgen.plan(generation)  # what it will make and cost
dataset = lbgen.generate(generation)
lbgen.verify(folder / "dataset")  # every image against its hash

# Which cues other than the object tell the categories apart? Read audit/report.html.
audited = lbgen.audit(folder / "dataset", lbgen.AuditConfig(output=folder / "audit", semantics="microworld"))
print(f"{dataset.images} images in {folder / 'dataset'}; the audit is {audited.page}")
