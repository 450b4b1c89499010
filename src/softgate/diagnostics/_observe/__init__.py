"""What one forward pass shows: attention rows, hidden states, routers and logits, seen through hooks and one mode."""
