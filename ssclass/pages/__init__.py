"""What people see in a browser: pages from templates, charts, the report of a decision."""
