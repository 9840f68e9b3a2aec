"""Pretrained networks: shared layers, one file per family, and HuggingFace folders in and out."""
