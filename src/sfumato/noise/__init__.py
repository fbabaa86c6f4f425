"""How text turns into noise, and back."""
