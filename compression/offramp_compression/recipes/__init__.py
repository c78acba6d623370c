"""A family of models from one TOML file: what is made of what, resumed wherever it was stopped."""
