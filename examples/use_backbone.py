"""Print the cosine similarities of faces: use_backbone.py RUN/export/online/huggingface IMAGE..."""

import sys

import timm
import torch
from PIL import Image, ImageOps

model = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True, num_classes=0).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
upright = [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in sys.argv[2:]]
images = torch.stack([transform(image) for image in upright])  # [B, 3, S, S]
with torch.no_grad():
    features = torch.nn.functional.normalize(model(images))  # [B, C]
print("cosine similarities of the images:\n", features @ features.T)
