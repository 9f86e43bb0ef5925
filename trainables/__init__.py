"""One trial: load the base model, wrap it with a method, train, evaluate. Knows nothing of scheduling."""
