"""Pictures and sounds of examples: references, files, and what networks read of them."""
