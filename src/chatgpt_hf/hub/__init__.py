"""Model folders to the Hugging Face Hub and back."""
