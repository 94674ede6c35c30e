"""What runs the pipeline by itself: deployments, the listener, the stack on one machine; not in the code digest."""
