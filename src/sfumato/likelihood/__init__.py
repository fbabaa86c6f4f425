"""How probable a model finds texts."""
