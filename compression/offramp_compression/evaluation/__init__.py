"""What a model is worth: how often it is right, how sure it should be, what it costs, each with its uncertainty."""
