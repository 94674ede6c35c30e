"""What a workspace needs in the long run: throwing away, forgetting photos, and a registry made anew."""
