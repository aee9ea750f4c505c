"""Labels for words, such as the names in a sentence (NER)."""
