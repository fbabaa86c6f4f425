"""From logits to text: step rules decide, decoders write."""
