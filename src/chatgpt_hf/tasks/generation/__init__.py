"""Completing prompts: summaries, translations, poems, code, relations."""
