"""What is trained beside or instead of the backbone: task heads and their shapes."""
