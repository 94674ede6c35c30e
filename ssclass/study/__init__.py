"""The study: architectures and heads side by side; suspicious labels; explaining a model."""
