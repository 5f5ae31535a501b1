"""Export backbones for timm, ONNX and Hugging Face."""
