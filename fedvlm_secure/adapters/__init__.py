"""Personalised LoRA and its relatives: which tensors are shared, and how they become one flat vector."""
