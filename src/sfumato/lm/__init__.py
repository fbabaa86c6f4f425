"""A model with its tokenizer: from text to a request, to pages, to text."""
