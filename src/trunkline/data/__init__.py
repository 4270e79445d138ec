"""From files to encoded rows: read, join words, tokenize, collate. Imports `core` only."""
