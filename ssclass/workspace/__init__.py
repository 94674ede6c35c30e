"""The workspace: the git repository that holds every decision, its DVC data, and how it is read and written."""
