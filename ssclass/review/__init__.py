"""A local page on which a person decides on held batches and wrong labels, and sees what was refused."""
