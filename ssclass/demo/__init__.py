"""The demo: five deliveries to a real pipeline on embedded parts, and the pictures it draws where there are none."""
