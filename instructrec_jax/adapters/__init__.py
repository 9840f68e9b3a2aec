"""What is trained beside or instead of the backbone: task heads, LoRA, and the losses."""
