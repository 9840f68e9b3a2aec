"""Pretrained networks: shared layers, one file per family, and the way in from and out to a HuggingFace folder."""
