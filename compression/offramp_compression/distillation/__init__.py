"""Learning from a teacher: its softened answers, its logits, its features, or from one's own deepest exit."""
