"""A trained model at work on cells it has never seen: labels, embeddings, denoised expression."""
