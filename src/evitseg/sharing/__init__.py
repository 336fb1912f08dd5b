"""Share models on the Hugging Face Hub."""
