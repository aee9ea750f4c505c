"""Prompt to completion: summaries, translations, poems, code, relations."""
