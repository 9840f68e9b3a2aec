"""Raw texts -> instructions with answers that stand in them, or follow from them: the verb `synthesize`."""
