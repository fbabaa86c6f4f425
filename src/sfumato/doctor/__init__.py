"""What is installed, and what is whole."""
