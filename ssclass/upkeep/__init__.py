"""What a workspace needs in the long run: throwing away what nothing points at, forgetting photos, a registry made anew."""
