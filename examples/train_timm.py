"""Train a timm model on a generated dataset.

    python examples/train_timm.py DATASET [EPOCHS]

DATASET is the output of `lbgen generate` in its default format, which is an ImageFolder: one folder a split, one folder
a category. Any program that reads such folders can train on it; other formats have an example in the dataset's card.
"""

import sys

import timm
import torch
from timm.data import create_transform
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

dataset = sys.argv[1]
epochs = int(sys.argv[2]) if len(sys.argv) > 2 else 5

torch.manual_seed(0)
size = (3, 64, 64)  # of the micro world's images; (3, 224, 224) for photographs
images = ImageFolder(f"{dataset}/train", create_transform(size, is_training=True, scale=(0.5, 1)))
loader = DataLoader(images, batch_size=32, shuffle=True)
model = timm.create_model("resnet18", num_classes=len(images.classes))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

for epoch in range(epochs):
    right = 0
    for pixels, labels in loader:
        scores = model(pixels)
        loss = torch.nn.functional.cross_entropy(scores, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right += (scores.argmax(1) == labels).sum().item()
    print(f"epoch {epoch + 1}: {right / len(images):.1%} of {len(images)} training images right")
