"""The study: architectures and heads side by side; suspicious labels; seeing what a model has learnt."""
