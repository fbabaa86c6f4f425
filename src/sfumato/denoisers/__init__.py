"""Networks as they are read: what they see, and how their output is shifted, guided, cached."""
