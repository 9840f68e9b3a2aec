"""How an example becomes the text that a network reads."""

from instructrec_jax.data.example import Example


def render(example: Example) -> str:
    """Instruction, then input, then the turns of a conversation, one a line; nothing of the output."""
    turns = [f"{message.role}: {message.content}" for message in example.messages]
    return "\n".join(part for part in (example.instruction, example.input, *turns) if part)
