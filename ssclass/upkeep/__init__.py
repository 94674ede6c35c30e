"""What a workspace needs in the long run: throwing away what nothing points at, and a registry made anew."""
