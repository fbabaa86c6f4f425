"""What is on disk and on the Hub: read, written whole, checked."""
